"""What every network is to the methods."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.networks.layers import check_size


class Stages(nn.Module):
    """A decoder that works stage by stage.

    Attributes:
        channels: width of each stage's features, coarse to fine.
    """

    channels: Sequence[int]

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every stage, coarse to fine; the last is at full resolution."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features at full resolution."""
        return self.pyramid(features)[-1]


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
        return self.decode(self.encode(image))

    def features(self, image: Tensor) -> Tensor:
        """Features (B, F, *S) that the head reads.

        Raises:
            UserError: an image's size is not a multiple of `stride`.
        """
        features: Tensor = self.decoder(self.encode(image))
        return features

    def encode(self, image: Tensor) -> list[Tensor]:
        """The encoder's features of images, fine to coarse.

        Raises:
            UserError: an image's size is not a multiple of `stride`.
        """
        check_size(image, self.stride)
        features: list[Tensor] = self.encoder(image)
        return features

    @property
    def width(self) -> int:
        """Channels of the features that the head reads."""
        return next(int(layer.in_channels) for layer in self.head.modules() if hasattr(layer, "in_channels"))  # type: ignore[arg-type]

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, *S) from the encoder's features, fine to coarse."""
        logits: Tensor = self.head(self.decoder(features))
        return logits


def check_memory(make_network: Callable[..., Network]) -> None:
    """Count a network's parameters before any of them is allocated.

    Args:
        make_network: what builds the network.

    Raises:
        UserError: this machine's memory cannot hold the weights, their gradients and the two moments of Adam.
    """
    try:
        with torch.device("meta"):
            size = 16 * sum(parameter.numel() for parameter in make_network(weights=None).parameters())
    except UserError:
        raise
    except Exception:  # a network that reads its own values, or takes no weights: it can only be built
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"--model.network: {size >> 30} GiB are needed to train so many parameters, and this machine has "
            f"{memory >> 30} GiB; use fewer or smaller levels, such as --model.network.widths [16,32,64,128,256]"
        )
