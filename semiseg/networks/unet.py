"""The U-Net of the semi-supervised literature."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from semiseg.networks.base import Network, Stages
from semiseg.networks.layers import NormName, Upsampling, check_levels, initialise, norm_layer, upsampling
from semiseg.networks.weights import load_weights


class Encoder(nn.Module):
    """Halve the resolution level by level.

    A level is [max pooling], conv, norm, LeakyReLU, dropout, conv, norm, LeakyReLU. The image (B, C, *S) becomes one
    feature map per width, fine to coarse: level i is (B, widths[i], *S / 2^i).
    """

    def __init__(
        self, in_channels: int, spatial_dims: int, widths: Sequence[int], dropout: Sequence[float], norm: NormName
    ) -> None:
        super().__init__()
        conv, pool = Conv[Conv.CONV, spatial_dims], Pool[Pool.MAX, spatial_dims]
        self.levels = nn.ModuleList()
        check_levels(widths, dropout)
        for level, (before, width, p) in enumerate(zip([in_channels, *widths[:-1]], widths, dropout, strict=True)):
            self.levels.append(
                nn.Sequential(
                    pool(2) if level else nn.Identity(),
                    conv(before, width, 3, padding=1),
                    norm_layer(norm, spatial_dims, width),
                    nn.LeakyReLU(0.01, inplace=True),
                    nn.Dropout(p),
                    conv(width, width, 3, padding=1),
                    norm_layer(norm, spatial_dims, width),
                    nn.LeakyReLU(0.01, inplace=True),
                )
            )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of the image, fine to coarse."""
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(features[-1] if features else image))
        return features


class Decoder(Stages):
    """Return to full resolution stage by stage: upsample, put the skip beside it, (conv, norm, ReLU) twice.

    Takes the encoder's features, fine to coarse, and returns (B, widths[0], *S).
    """

    def __init__(self, spatial_dims: int, widths: Sequence[int], norm: NormName, upsample: Upsampling) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.channels = widths[-2::-1]
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        for coarse, fine in pairwise(reversed(widths)):
            self.ups.append(upsampling(upsample, spatial_dims, coarse, fine))
            self.merges.append(
                nn.Sequential(
                    conv(2 * fine, fine, 3, padding=1),
                    norm_layer(norm, spatial_dims, fine),
                    nn.ReLU(inplace=True),
                    conv(fine, fine, 3, padding=1),
                    norm_layer(norm, spatial_dims, fine),
                    nn.ReLU(inplace=True),
                )
            )

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of every stage, coarse to fine."""
        *skips, x = features
        stages = []
        for up, merge, skip in zip(self.ups, self.merges, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
            stages.append(x)
        return stages


class UNet(Network):
    """U-Net (Ronneberger, Fischer, Brox, 2015, https://arxiv.org/abs/1505.04597), (B, C, *S) to logits (B, K, *S).

    The widths, the dropout that grows with depth and the LeakyReLU encoder are those of SSL4MIS
    (https://github.com/HiLab-git/SSL4MIS), the code base most semi-supervised papers compare on. `encoder`, `decoder`
    and `head` can be called one by one, so that several decoders can share an encoder.

    Args:
        in_channels: C.
        num_classes: K, background included.
        spatial_dims: 2 or 3.
        widths: channels of each level; n levels make the stride 2^(n-1).
        dropout: probability of the elementwise dropout inside each encoder level.
        norm: normalisation after each convolution outside the head.
        upsample: a transposed convolution, or a 1x1 convolution and (bi|tri)linear or nearest interpolation.
        head: one 3x3 convolution, or "deep": three of them through 64 and 32 channels with ReLU and dropout 0.5.
        weights: checkpoint to start from, see `load_weights`.

    Raises:
        UserError: `widths` and `dropout` are out of their range or differ in length, `weights` does not fit, or (in
            forward) an image's size is not a multiple of `stride`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        norm: NormName = "batch",
        upsample: Upsampling = "transposed",
        head: Literal["single", "deep"] = "single",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.encoder = Encoder(in_channels, spatial_dims, widths, dropout, norm)
        self.decoder = Decoder(spatial_dims, widths, norm, upsample)
        channels = [widths[0], 64, 32, num_classes] if head == "deep" else [widths[0], num_classes]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                Conv[Conv.CONV, spatial_dims](before, after, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            ]
        self.head = nn.Sequential(*layers[:-2])  # nothing follows the last convolution
        initialise(self)
        load_weights(self, weights)
