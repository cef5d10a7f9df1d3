"""Signed distance maps of masks."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor


def signed_distances(mask: Tensor, num_classes: int) -> Tensor:
    """Distance maps (B, K - 1, *S) of the foreground classes of masks (B, *S), from -1 deep inside to 1 far outside.

    In pixels, each side divided by its own largest distance, and 0 on the class's innermost pixels at the border, as
    in DTC (Luo et al., 2021, https://arxiv.org/abs/2009.04448) and SASSNet. A class that is absent or everywhere has
    no border: its map is 1 or -1 (in the authors' code 0, which as a target would say that all is border).
    """
    maps = [[_signed_distance(sample == label) for label in range(1, num_classes)] for sample in mask.cpu().numpy()]
    return torch.from_numpy(np.array(maps, dtype=np.float32)).to(mask.device)


def _signed_distance(inside: np.ndarray) -> np.ndarray:
    if not inside.any() or inside.all():
        return np.where(inside, -1.0, 1.0)
    border = inside & ~binary_erosion(inside, border_value=1)
    within, beyond = distance_transform_edt(inside), distance_transform_edt(~inside)
    signed = beyond / beyond.max() - within / within.max()
    signed[border] = 0
    return np.asarray(signed)
