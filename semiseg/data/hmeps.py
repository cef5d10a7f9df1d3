"""HMEPS: pupils in infrared eye images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.io import find_images


class HMEPS(SegmentationDataModule):
    """Pupil segmentation in 11,897 infrared frames of human and mouse eyes.

    "Human and mouse eyes for pupil semantic segmentation", https://zenodo.org/records/4488164. The red channel of a
    mask above 127 is pupil. The patient is the first part of the file's name, so that both eyes and all frames of a
    subject stay together. No official split.

    Args:
        root: folder that holds `fullFrames` and `pngs` (or `annotation/png`, in later releases).
        image_size: size that images are resized to; 128 x 128 as in the papers.
        **kwargs: options of every data set.
    """

    class_names = ("background", "pupil")
    layout = "fullFrames/<subject>_<side>_<n>.jpeg and pngs/<same>.png (or annotation/png/<same>.png)"

    def __init__(self, root: str, image_size: Sequence[int] | None = (128, 128), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every image of `fullFrames`."""
        frames = self.root / "fullFrames"
        masks = next((m for m in (self.root / "pngs", self.root / "annotation" / "png") if m.is_dir()), None)
        if masks is None or not frames.is_dir():
            return []
        return [Case(p.stem, p.stem.split("_")[0], p, masks / f"{p.stem}.png") for p in find_images(frames)]

    def to_classes(self, mask: np.ndarray) -> np.ndarray:
        """Red above 127."""
        return (mask if mask.ndim == 2 else mask[..., 0]) > 127
