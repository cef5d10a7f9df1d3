"""What semi-supervised losses are made of: probabilities, their entropy and distances, and means over chosen pixels.

Probabilities are (B, K, *S) and sum to one over K; maps and masks are (B, *S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semiseg import whole_batch

EPSILON = 1e-6  # in logarithms, as in SSL4MIS


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes, at least in single precision."""
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of a map over the pixels of a mask, or weighted by it; of no pixels it is 0, and its gradient too.

    In several processes the mean runs over the pixels of all, see `semiseg.whole_batch.ratio`.
    """
    mask = mask.to(values.dtype)
    return whole_batch.ratio((values * mask).sum(), mask.sum())


def entropy(p: Tensor) -> Tensor:
    """Entropy of each pixel, from 0 to 1: divided by log K, the most that K classes have."""
    return -(p * (p + EPSILON).log()).sum(1) / math.log(p.shape[1])


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """Squared difference of each pixel's probabilities, averaged over the classes."""
    return (p - q).square().mean(1)


def sharpened(p: Tensor, temperature: float = 0.1) -> Tensor:
    """Probabilities p^(1/T), normalised again; for two classes the function of MC-Net.

    MC-Net's own does not sum to one for more classes. Computed from logarithms, so that small temperatures neither
    overflow nor divide 0 by 0.
    """
    return ((p + EPSILON).log() / temperature).softmax(1)
