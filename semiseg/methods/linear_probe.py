"""Linear probe: how much of the segmentation is in a network's features already."""

from __future__ import annotations

from typing import Any

from monai.networks.layers.factories import Conv

from semiseg.errors import UserError
from semiseg.methods.supervised import Supervised


class LinearProbe(Supervised):
    """Train one 1x1 convolution on labeled images, on the features of a network that stays as it is.

    The measure of the Hebbian paper's table 7 (https://arxiv.org/abs/2412.03192, section 5.4), there with a head of
    three layers; here it is linear. Encoder and decoder, from `--model.network.weights`, are frozen: no gradient, no
    dropout, and batch normalisation with its learnt statistics. The controls are a network of
    `HebbianPretrain(rule="none")`, and no weights at all. The head reads what the decoder gives to the network's own
    head, which it replaces.

    Args:
        **kwargs: as `SegmentationMethod`.

    Raises:
        UserError: the network has no last layer of its own, as `Denoiser`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        dims, classes = self.hparams["spatial_dims"], self.hparams["num_classes"]
        self.network.requires_grad_(False)
        self.network.head = probe = Conv[Conv.CONV, dims](self.network.width, classes, 1)
        if self.network.head is not probe:  # it is a part of one of the network's parts
            name = type(self.network).__name__
            raise UserError(f"--model.network {name}: its last layer cannot be replaced, as LinearProbe does; use UNet")
        self.train()

    def train(self, mode: bool = True) -> LinearProbe:
        """Keep the frozen parts in evaluation mode."""
        super().train(mode)
        self.network.encoder.eval()
        self.network.decoder.eval()
        return self
