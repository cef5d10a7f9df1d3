"""Scores of a whole image: at once, or by a sliding window where the network was trained on patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from monai.inferers.inferer import SlidingWindowInfererAdapt
from torch import Tensor

from semiseg.data.preprocessing import Preprocessing
from semiseg.errors import UserError

MAX_WINDOWS = 100_000  # hours, even for a small network


def whole_image(
    network: Callable[[Tensor], Tensor], image: Tensor, preprocessing: Preprocessing, overlap: float = 0.5
) -> Tensor:
    """Logits (B, K, *S) of whole images (B, C, *S).

    Windows overlap by half, as in the papers, and their logits are averaged with a Gaussian weight, so that the middle
    of a window, which sees most context, counts most (nnU-Net, Isensee et al. 2021; the papers weigh evenly). An image
    smaller than the window is padded. Where the accelerator's memory does not suffice the volume is put together in
    main memory.

    Raises:
        UserError: the windows are so small that their number is absurd.
    """
    if preprocessing.patch_size is None:
        return network(image)
    strides = [max(1, int(side * (1 - overlap))) for side in preprocessing.patch_size]
    places = zip(image.shape[2:], preprocessing.patch_size, strides, strict=True)
    if (count := math.prod(max(0, -(-(size - side) // stride)) + 1 for size, side, stride in places)) > MAX_WINDOWS:
        raise UserError(
            f"patch_size {preprocessing.patch_size}: an image of {tuple(image.shape[2:])} would need {count} windows; "
            "use a larger --data.patch_size"
        )
    infer = SlidingWindowInfererAdapt(
        roi_size=preprocessing.patch_size,
        sw_batch_size=2,
        overlap=overlap,
        mode="gaussian",
        cache_roi_weight_map=False,
    )
    return cast(Tensor, infer(image, network))
