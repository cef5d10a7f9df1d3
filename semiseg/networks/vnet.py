"""The V-Net of the semi-supervised left-atrium literature."""

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.layers.factories import Conv, Dropout
from torch import Tensor, nn

from semiseg.errors import check_number
from semiseg.networks.base import Network, Stages
from semiseg.networks.layers import NormName, Upsampling, initialise, norm_layer, upsampling
from semiseg.networks.weights import load_weights

DEPTHS = (1, 2, 3, 3, 3)  # convolutions per stage, fine to coarse


def _norm_relu(conv: nn.Module, channels: int, spatial_dims: int, norm: NormName) -> nn.Sequential:
    return nn.Sequential(conv, norm_layer(norm, spatial_dims, channels), nn.ReLU(inplace=True))


def _stage(before: int, width: int, depth: int, spatial_dims: int, norm: NormName) -> nn.Sequential:
    """`depth` times (3^d convolution, norm, ReLU)."""
    conv = Conv[Conv.CONV, spatial_dims]
    channels = pairwise([before] + [width] * depth)
    return nn.Sequential(*(_norm_relu(conv(a, b, 3, padding=1), b, spatial_dims, norm) for a, b in channels))


class VNetEncoder(nn.Module):
    """Stages joined by strided convolutions: image (B, C, *S) to features, level i being (B, widths[i], *S / 2^i)."""

    def __init__(
        self, in_channels: int, spatial_dims: int, widths: Sequence[int], dropout: float, norm: NormName
    ) -> None:
        super().__init__()
        down = Conv[Conv.CONV, spatial_dims]
        self.stages = nn.ModuleList([_stage(in_channels, widths[0], DEPTHS[0], spatial_dims, norm)])
        for (fine, coarse), depth in zip(pairwise(widths), DEPTHS[1:], strict=True):
            halve = _norm_relu(down(fine, coarse, 2, stride=2), coarse, spatial_dims, norm)
            self.stages.append(nn.Sequential(halve, _stage(coarse, coarse, depth, spatial_dims, norm)))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of the image, fine to coarse; the coarsest went through the dropout."""
        features: list[Tensor] = []
        for stage in self.stages:
            features.append(stage(features[-1] if features else image))
        features[-1] = self.dropout(features[-1])
        return features


class VNetDecoder(Stages):
    """Upsamplings, each followed by adding the skip and a stage: features to (B, widths[0], *S)."""

    def __init__(self, spatial_dims: int, widths: Sequence[int], norm: NormName, upsample: Upsampling) -> None:
        super().__init__()
        self.channels = widths[-2::-1]
        self.ups, self.stages = nn.ModuleList(), nn.ModuleList()
        for (coarse, fine), depth in zip(pairwise(reversed(widths)), reversed(DEPTHS[:-1]), strict=True):
            up = upsampling(upsample, spatial_dims, coarse, fine)
            self.ups.append(_norm_relu(up, fine, spatial_dims, norm))
            self.stages.append(_stage(fine, fine, depth, spatial_dims, norm))

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of every stage, coarse to fine."""
        *skips, x = features
        stages = []
        for up, stage, skip in zip(self.ups, self.stages, reversed(skips), strict=True):
            x = stage(up(x) + skip)
            stages.append(x)
        return stages


class VNet(Network):
    """V-Net (Milletari, Navab, Ahmadi, 2016, https://arxiv.org/abs/1606.04797), (B, C, *S) to logits (B, K, *S).

    This is the variant of UA-MT (Yu et al., 2019, https://arxiv.org/abs/1907.07034), which the semi-supervised papers
    on the left atrium share, so that numbers can be compared: 3^d kernels instead of 5^d, ReLU instead of PReLU, no
    residual inside a stage, and skips that are added instead of concatenated. Every convolution outside the head is
    followed by a norm; whole channels are dropped at the bottleneck and before the 1x1 head.

    Args:
        in_channels: C.
        num_classes: K, background included.
        spatial_dims: 2 or 3.
        base: width of the first of five stages; it doubles with each (UA-MT: 16).
        dropout: probability of both dropouts (UA-MT: 0.5).
        norm: normalisation after each convolution outside the head (UA-MT: batch).
        upsample: a transposed convolution, or a 1x1 convolution and (bi|tri)linear or nearest interpolation.
        weights: checkpoint to start from, see `load_weights`.

    Raises:
        UserError: `weights` does not fit, or (in forward) an image's size is not a multiple of `stride`, which is 16.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        base: int = 16,
        dropout: float = 0.5,
        norm: NormName = "batch",
        upsample: Upsampling = "transposed",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_number("--model.network.base", base, 1, 4096)
        check_number("--model.network.dropout", dropout, 0, 1)
        widths = [base * 2**level for level in range(len(DEPTHS))]
        self.stride = 2 ** (len(DEPTHS) - 1)
        self.encoder = VNetEncoder(in_channels, spatial_dims, widths, dropout, norm)
        self.decoder = VNetDecoder(spatial_dims, widths, norm, upsample)
        self.head = nn.Sequential(
            Dropout[Dropout.DROPOUT, spatial_dims](dropout), Conv[Conv.CONV, spatial_dims](base, num_classes, 1)
        )
        initialise(self)
        load_weights(self, weights)
