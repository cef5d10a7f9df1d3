"""Masks by which two images become one, drawn from torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from semiseg import whole_batch


def box(size: Sequence[int], sides: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Mask (*S), true inside a box of the given sides at a uniform place."""
    mask = torch.zeros(tuple(size), dtype=torch.bool, device=device)
    starts = [int(torch.randint(0, n - side + 1, ())) for n, side in zip(size, sides, strict=True)]
    mask[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))] = True
    return mask


def cutmix_boxes(image: Tensor, probability: float = 0.5, low: float = 0.02, high: float = 0.4) -> Tensor:
    """Masks (B, *S), true where an image (B, C, *S) takes another's pixels (CutMix, https://arxiv.org/abs/1905.04899).

    With `probability` a box that covers a share between `low` and `high` of the image, the ratio of its sides between
    0.3 and 1/0.3 of that of the image's, drawn again until it fits, as in UniMatch; else nothing.
    """
    size = image.shape[2:]
    empty = torch.zeros((len(image), *size), dtype=torch.bool, device=image.device)
    return whole_batch.each(lambda masks: _with_boxes(masks, probability, low, high), empty)


def _with_boxes(masks: Tensor, probability: float, low: float, high: float) -> Tensor:
    size = masks.shape[1:]
    for mask in masks:
        if float(torch.rand(())) >= probability:
            continue
        scales = torch.full((len(size),), 2.0)
        while scales.max() > 1:
            share = torch.empty(()).uniform_(low, high)
            stretch = torch.empty(len(size)).uniform_(math.log(0.3) / 2, -math.log(0.3) / 2)
            scales = share ** (1 / len(size)) * (stretch - stretch.mean()).exp()
        sides = [max(1, round(n * float(scale))) for n, scale in zip(size, scales, strict=True)]
        mask |= box(size, sides, masks.device)
    return masks
