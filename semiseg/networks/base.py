"""What every network is to the methods."""

from torch import nn


class Network(nn.Module):
    """A network that maps images (B, C, *S) to logits (B, K, *S).

    Its constructor starts with (in_channels, num_classes, spatial_dims), which the data give, and takes `weights`, the
    file of an earlier stage. A network of one's own is a subclass anywhere on the Python path; a bare class name in
    YAML means a subclass of this one, so that names shared with other libraries stay clear.

    Attributes:
        stride: what every spatial size of an image must be a multiple of.
    """

    stride: int = 1
