"""Scores of a whole image: at once, or by a sliding window where the network was trained on patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from monai.inferers.inferer import SlidingWindowInfererAdapt
from torch import Tensor

from semiseg.data.preprocessing import Preprocessing


def whole_image(
    network: Callable[[Tensor], Tensor], image: Tensor, preprocessing: Preprocessing, overlap: float = 0.5
) -> Tensor:
    """Logits (B, K, *S) of whole images (B, C, *S).

    Windows overlap by half, as in the papers, and their logits are averaged with a Gaussian weight, so that the middle
    of a window, which sees most context, counts most (nnU-Net, Isensee et al. 2021; the papers weigh evenly). An image
    smaller than the window is padded. Where the accelerator's memory does not suffice the volume is put together in
    main memory.
    """
    if preprocessing.patch_size is None:
        return network(image)
    infer = SlidingWindowInfererAdapt(
        roi_size=preprocessing.patch_size,
        sw_batch_size=2,
        overlap=overlap,
        mode="gaussian",
        cache_roi_weight_map=False,
    )
    return cast(Tensor, infer(image, network))
