"""OCT-CME: cysts of macular oedema in optical coherence tomography."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.io import find_images
from semiseg.errors import UserError


class OCTCME(SegmentationDataModule):
    """Intraretinal cystoid fluid in 1,460 OCT B-scans.

    Ahmed et al., "Intraretinal cystoid fluid" data set, 2022. Masks mark cysts (first channel non-zero), some by their
    outline only, so closed outlines are filled. Two layouts are read: one folder per scan, `<id>/images/<name>.jpeg`
    with the one file of `<id>/masks/` (the scan's folder is its patient), and one `images/` with one `masks/` of equal
    stems. No official split.

    Args:
        root: folder that holds the scans' folders at any depth, or `images` and `masks`.
        image_size: size that images are resized to; 128 x 128 as in the papers.
        **kwargs: options of every data set.
    """

    class_names = ("background", "cyst")
    layout = "<id>/images/<name>.jpeg with <id>/masks/<one file>, or images/ and masks/ with equal stems"

    def __init__(self, root: str, image_size: Sequence[int] | None = (128, 128), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every image of every `images` folder that has a `masks` folder beside it."""
        cases = []
        for folder in sorted(path for path in self.root.rglob("images") if path.is_dir()):
            masks = folder.with_name("masks")
            images = find_images(folder)
            found = find_images(masks) if masks.is_dir() else []
            for image in images:
                one_scan = len(images) == 1 and folder.parent != self.root
                own = found if one_scan else [mask for mask in found if mask.stem == image.stem]
                if len(own) > 1:
                    raise UserError(f"{own[1]}: a second mask of {image.name} beside {own[0].name}; remove one")
                name = f"{folder.parent.name}_{image.stem}" if one_scan else image.stem
                patient = folder.parent.name if one_scan else image.stem
                cases.append(Case(name, patient, image, own[0] if own else _expected(masks, image)))
        return cases

    def to_classes(self, mask: np.ndarray) -> np.ndarray:
        """First channel non-zero, holes filled."""
        filled: np.ndarray = binary_fill_holes((mask if mask.ndim == 2 else mask[..., 0]) > 0)
        return filled


def _expected(masks: Path, image: Path) -> Path:
    """Where the mask would be: a labeled case without it is reported by this name."""
    return masks / f"{image.stem}.png"
