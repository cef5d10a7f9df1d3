"""A second network or decoder beside the first, and the mean of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.losses import probabilities
from semiseg.networks import Network
from semiseg.networks.layers import initialise

WeightsFor = Literal["all", "first"]
"""Which of several networks or decoders start from the weights of an earlier stage."""


def another(make_network: Callable[..., Network], weights_for: WeightsFor, **options: Any) -> Network:
    """One more network of a method's kind, drawn afresh; earlier weights are loaded into it too, or left out.

    Its head is always drawn afresh, since two networks that start the same have nothing to teach each other.

    Raises:
        UserError: the network does not know an option.
    """
    try:
        network = make_network(**options, **({"weights": None} if weights_for == "first" else {}))
    except UserError as error:
        if weights_for == "all":
            raise UserError(f"{error}; or --model.weights_for first") from error
        raise
    except TypeError as error:
        raise UserError(f"--model.network: this method needs a network with {', '.join(options)}: {error}") from error
    initialise(network.head)
    return network


class Branch(nn.Module):
    """A decoder and a head of their own, for the features of another network's encoder.

    Args:
        network: network whose decoder and head these are; its encoder is not kept.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.decoder = network.decoder
        self.head = network.head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, *S) from the encoder's features, fine to coarse."""
        logits: Tensor = self.head(self.decoder(features))
        return logits


class MeanOf(nn.Module):
    """What to score where several predictions count alike.

    Args:
        predict: function from images to the logits of each.
    """

    def __init__(self, predict: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, image: Tensor) -> Tensor:
        """Logarithm of the mean of all predictions' probabilities (B, K, *S)."""
        return torch.stack([probabilities(logits) for logits in self.predict(image)]).mean(0).clamp_min(1e-12).log()
