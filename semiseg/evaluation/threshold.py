"""The threshold of a two-class method, searched on validation cases."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

STEPS = 100


def best_threshold(cases: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The threshold among 0.01, 0.02, ..., 0.99 whose mean Dice over the cases is the highest.

    Foreground is where the probability is above the threshold. Of equally good ones the nearest to 0.5 is taken, which
    is argmax. A case without foreground counts 1 where nothing is predicted, else 0.

    Args:
        cases: foreground probability (*S) and classes (*S), 0 and 1, of each case.
    """
    scores = []
    for probability, target in cases:
        bins = (probability.float() * STEPS).ceil().long().clamp(1, STEPS) - 1  # above k / STEPS: in bin k or later
        foreground = target > 0
        size = float(foreground.sum())
        predicted = torch.bincount(bins.flatten(), minlength=STEPS).double().flip(0).cumsum(0).flip(0)
        hit = torch.bincount(bins[foreground], minlength=STEPS).double().flip(0).cumsum(0).flip(0)
        scores.append(torch.where(predicted + size > 0, 2 * hit / (predicted + size).clamp(min=1), 1.0)[1:])
    mean = torch.stack(scores).mean(0).cpu()
    thresholds = torch.arange(1, STEPS) / STEPS
    best = thresholds[mean >= mean.max() - 1e-12]
    return round(float(best[(best - 0.5).abs().argmin()]), 2)
