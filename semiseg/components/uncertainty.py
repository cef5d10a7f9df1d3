"""How sure a network is of each pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semiseg.components.perturbations import noisy
from semiseg.losses import entropy, probabilities


@torch.no_grad()
def monte_carlo(network: Callable[[Tensor], Tensor], image: Tensor, passes: int = 8) -> tuple[Tensor, Tensor]:
    """Mean probabilities (B, K, *S) of several noisy passes, and their entropy (B, *S) from 0 to 1.

    Yu et al., UA-MT, 2019, https://arxiv.org/abs/1907.07034, after Kendall and Gal, 2017. The passes differ by the
    noise on the image and, while `network` is in training mode, by dropout. They run one after the other, so that
    memory does not grow with their number.
    """
    mean = probabilities(network(noisy(image)))
    for _ in range(passes - 1):
        mean += probabilities(network(noisy(image)))
    mean /= passes
    return mean, entropy(mean)
