"""Pieces that all networks here are built from."""

import math
from collections.abc import Sequence
from typing import Literal

from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from semiseg.errors import UserError, check_number

NormName = Literal["batch", "instance", "group"]
Upsampling = Literal["transposed", "bilinear", "nearest"]


def norm_layer(norm: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """Return an affine normalisation for (B, channels, *S).

    Group norm takes 8 groups (MONAI's SegResNet default), or the largest number below that divides the channels.
    """
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    layer: nn.Module = Norm[norm, spatial_dims](channels, affine=True)
    return layer


def upsampling(upsample: Upsampling, spatial_dims: int, coarse: int, fine: int) -> nn.Module:
    """Twice the resolution, from `coarse` to `fine` channels: (B, coarse, *S) to (B, fine, *2S).

    A transposed convolution, or a 1x1 convolution and interpolation, linear along each axis or by the nearest.
    """
    if upsample == "transposed":
        transposed: nn.Module = Conv[Conv.CONVTRANS, spatial_dims](coarse, fine, 2, stride=2)
        return transposed
    linear = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    resize = (
        nn.Upsample(scale_factor=2)
        if upsample == "nearest"
        else nn.Upsample(scale_factor=2, mode=linear, align_corners=True)
    )
    return nn.Sequential(Conv[Conv.CONV, spatial_dims](coarse, fine, 1), resize)


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


def check_levels(widths: Sequence[int], dropout: Sequence[float]) -> None:
    """Raise a UserError unless these are the channels and dropout probabilities of 2 to 16 levels."""
    check_number("--model.network.widths", widths, 1, 65536)
    check_number("--model.network.dropout", dropout, 0, 1)
    if not 2 <= len(widths) <= 16:
        raise UserError(f"--model.network.widths {list(widths)[:16]}: gives {len(widths)} levels; use 2 to 16")
    if len(widths) != len(dropout):
        raise UserError(
            f"the network has {len(widths)} widths and {len(dropout)} dropout values: give both one value per level"
        )
