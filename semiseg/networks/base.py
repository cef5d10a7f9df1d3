"""What every network is to the methods."""

from collections.abc import Sequence

from torch import Tensor, nn

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
