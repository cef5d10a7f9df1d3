"""Pieces that all networks here are built from."""

import math
from typing import Literal

from monai.networks.layers.factories import Norm
from torch import Tensor, nn

from semiseg.errors import UserError

NormName = Literal["batch", "instance", "group"]


def norm_layer(norm: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """Return an affine normalisation for (B, channels, *S).

    Group norm takes 8 groups (MONAI's SegResNet default), or the largest number below that divides the channels.
    """
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    layer: nn.Module = Norm[norm, spatial_dims](channels, affine=True)
    return layer


def initialise(network: nn.Module) -> None:
    """Draw every convolution, transposed ones too, from Kaiming's normal (fan in) and set its bias to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_size(image: Tensor, stride: int) -> None:
    """Raise a UserError unless every spatial size of `image` (B, C, *S) is a multiple of `stride`."""
    size = tuple(image.shape[2:])
    if any(length % stride for length in size):
        raise UserError(
            f"image size {size}: this network halves its input and needs each size to be a multiple of {stride}; "
            "crop, pad or resize the images to such a size (--data.image_size, or --data.patch_size)"
        )
