"""What every network is to the methods."""

from torch import Tensor, nn

from semiseg.networks.layers import check_size


class Network(nn.Module):
    """A network that maps images (B, C, *S) to logits (B, K, *S): an encoder, a decoder and a head.

    Its constructor starts with (in_channels, num_classes, spatial_dims), which the data give, and takes `weights`, the
    file of an earlier stage. A network of one's own is a subclass anywhere on the Python path; a bare class name in
    YAML means a subclass of this one, so that names shared with other libraries stay clear.

    Attributes:
        stride: what every spatial size of an image must be a multiple of.
        encoder: image to a list of features, fine to coarse.
        decoder: that list to features at full resolution.
        head: those features to logits.
    """

    stride: int = 1
    encoder: nn.Module
    decoder: nn.Module
    head: nn.Module

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images.

        Raises:
            UserError: an image's size is not a multiple of `stride`.
        """
        logits: Tensor = self.head(self.features(image))
        return logits

    def features(self, image: Tensor) -> Tensor:
        """Features (B, F, *S) that the head reads.

        Raises:
            UserError: an image's size is not a multiple of `stride`.
        """
        check_size(image, self.stride)
        features: Tensor = self.decoder(self.encoder(image))
        return features
