"""Signed distance maps of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.transforms.utils import distance_transform_edt
from torch import Tensor


def signed_distances(mask: Tensor, num_classes: int) -> Tensor:
    """Distance maps (B, K - 1, *S) of the foreground classes of masks (B, *S), from -1 deep inside to 1 far outside.

    In pixels, each side divided by its own largest distance, and 0 on the class's own pixels at its border, as in DTC
    (Luo et al., 2021, https://arxiv.org/abs/2009.04448) and SASSNet. A class that is absent or everywhere has no
    border: its map is 1 or -1 (in the authors' code 0, which as a target would say that all is border). Distances are
    SciPy's, or cuCIM's where that is installed and the masks are on a GPU. Ignored pixels count as background.
    """
    inside = F.one_hot(mask.clamp_min(0), num_classes).movedim(-1, 1)[:, 1:].bool()
    axes = tuple(range(2, inside.ndim))
    has_border = inside.any(axes, keepdim=True) & ~inside.all(axes, keepdim=True)
    within, beyond = (
        torch.as_tensor(distance_transform_edt(side.flatten(0, 1).float())).view(inside.shape).to(mask.device)
        for side in (inside, ~inside)
    )
    signed = beyond / beyond.amax(axes, keepdim=True) - within / within.amax(axes, keepdim=True)
    signed = torch.where(within == 1, 0, signed)
    return torch.where(has_border, signed, 1.0 - 2.0 * inside.float()).float()
