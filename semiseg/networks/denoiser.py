"""A U-Net that denoises: masks given an image, and images given a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from semiseg.networks.base import Network
from semiseg.networks.layers import NormName, Upsampling, check_levels, check_size, initialise
from semiseg.networks.unet import Decoder, Encoder
from semiseg.networks.weights import load_weights

EMBEDDING = 64  # channels of the sinusoidal embedding of time, as in the authors' code


class Pathway(nn.Module):
    """What is noisy beside what is known, and a time, to what is asked for.

    The time's embedding is added to the first features. `time`, `encoder` and `decoder` may be shared with another
    pathway; `stem` and `head` are its own.
    """

    def __init__(
        self, stem: nn.Module, time: nn.Module, encoder: nn.Module, decoder: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        self.time = time
        self.encoder = encoder
        self.decoder = decoder
        self.head = head

    def encode(self, image: Tensor, mask: Tensor, t: Tensor) -> list[Tensor]:
        """The encoder's features, fine to coarse, of image (B, C, *S), mask (B, K, *S) and time (B,)."""
        embedding = self.time(get_timestep_embedding(t, EMBEDDING).to(image.dtype))
        x = self.stem(torch.cat([image, mask], dim=1)) + embedding.view(*embedding.shape, *(1,) * (image.ndim - 2))
        features: list[Tensor] = self.encoder(x)
        return features

    def forward(self, image: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        """Output (B, N, *S) for image (B, C, *S), mask (B, K, *S) and time (B,)."""
        output: Tensor = self.head(self.decoder(self.encode(image, mask, t)))
        return output


class Denoiser(Network):
    """Mask pathway f_m(image, noisy mask, t) to mask logits, image pathway f_i(noisy image, mask, t) to the noise.

    The network of Ciampi et al. (2025, https://arxiv.org/abs/2504.01547, section 3.1): one U-Net with
    two heads at each end ("the teacher features two pathways"), or two networks, as in its authors' code. Time enters
    by a sinusoidal embedding of 64 channels, Linear 256, GELU, Linear to the first width, added to the first features.
    As an ordinary network it is its mask pathway without noise, at t = 0, so that any method can have it as backbone.

    Args:
        in_channels: C.
        num_classes: K, background included.
        spatial_dims: 2 or 3.
        widths: channels of each level, as `UNet`.
        dropout: dropout of each encoder level, as `UNet`.
        norm: normalisation, as `UNet`.
        upsample: of the decoder, as `UNet`.
        shared: one U-Net for both pathways, or one for each.
        image_pathway: have the image pathway; a student, and methods that only segment, do without.
        weights: checkpoint to start from, see `load_weights`; one with both pathways also fits a network without the
            image pathway.
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
        shared: bool = True,
        image_pathway: bool = True,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_levels(widths, dropout)
        conv = Conv[Conv.CONV, spatial_dims]
        self.stride = 2 ** (len(widths) - 1)
        self.num_classes = num_classes

        def body() -> tuple[nn.Module, nn.Module, nn.Module]:
            time = nn.Sequential(nn.Linear(EMBEDDING, 256), nn.GELU(), nn.Linear(256, widths[0]))
            encoder = Encoder(widths[0], spatial_dims, widths, dropout, norm)
            return time, encoder, Decoder(spatial_dims, widths, norm, upsample)

        def ends(out_channels: int) -> tuple[nn.Module, nn.Module]:
            stem = conv(in_channels + num_classes, widths[0], 3, padding=1)
            return stem, conv(widths[0], out_channels, 3, padding=1)

        stem, head = ends(num_classes)
        parts = body()
        self.mask_pathway = Pathway(stem, *parts, head)
        self.image_pathway: Pathway | None = None
        if image_pathway:
            stem, head = ends(in_channels)
            self.image_pathway = Pathway(stem, *(parts if shared else body()), head)
        initialise(self)
        load_weights(self, weights, spare=() if image_pathway else ("image_pathway.",))

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """Encoder of the mask pathway."""
        return self.mask_pathway.encoder

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """Decoder of the mask pathway."""
        return self.mask_pathway.decoder

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """Last layer of the mask pathway."""
        return self.mask_pathway.head

    def mask(self, image: Tensor, noisy_mask: Tensor, t: Tensor) -> Tensor:
        """Logits (B, K, *S) of the mask of images (B, C, *S), from a noisy mask (B, K, *S) of time t (B,).

        Raises:
            UserError: an image's size is not a multiple of `stride`.
        """
        check_size(image, self.stride)
        logits: Tensor = self.mask_pathway(image, noisy_mask, t)
        return logits

    def noise(self, noisy_image: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        """Noise (B, C, *S) in noisy images (B, C, *S) of time t (B,), given the probabilities (B, K, *S) of a mask."""
        assert self.image_pathway is not None
        noise: Tensor = self.image_pathway(noisy_image, mask, t)
        return noise

    def image_only(self) -> list[nn.Parameter]:
        """Parameters that the mask pathway does without."""
        used = {id(parameter) for parameter in self.mask_pathway.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in used]

    def encode(self, image: Tensor) -> list[Tensor]:
        """The encoder's features of images without noise, fine to coarse."""
        check_size(image, self.stride)
        empty = image.new_zeros(len(image), self.num_classes, *image.shape[2:])
        return self.mask_pathway.encode(image, empty, torch.zeros(len(image), dtype=torch.long, device=image.device))
