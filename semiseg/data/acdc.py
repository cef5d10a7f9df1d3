"""ACDC: heart chambers and muscle in cine MRI, slice by slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.io import Image, h5_dataset, read_image, read_mask
from semiseg.data.reading import reading
from semiseg.errors import UserError


class ACDC(SegmentationDataModule):
    """Right ventricle, myocardium and left ventricle in slices of cardiac cine MRI (end diastole and systole).

    Bernard et al., "Deep learning techniques for automatic MRI cardiac multi-structures segmentation and diagnosis: is
    the problem solved?", IEEE TMI 2018, https://doi.org/10.1109/TMI.2018.2837502, in the semi-supervised literature's
    h5 volumes: keys `image` (slices first, in [0, 1]) and `label` 0..3. As there, slices (10 mm apart) are segmented
    in 2D. In-plane spacing is not in the files; the usual 1.5 mm is assumed. No official split.

    Args:
        root: folder that holds `patientPPP_frameFF.h5` at any depth.
        image_size: size that slices are resized to; 256 x 256 as in the literature.
        **kwargs: options of every data set.
    """

    class_names = ("background", "right ventricle", "myocardium", "left ventricle")
    class_values = (0, 1, 2, 3)
    default_spacing = (1.5, 1.5)
    layout = "volumes/patientPPP_frameFF.h5 with keys image and label"

    def __init__(self, root: str, image_size: Sequence[int] | None = (256, 256), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every slice of every volume; both frames of a patient stay together."""
        cases = []
        for path in sorted(self.root.rglob("*.h5")):
            if match := re.fullmatch(r"(patient\d+)_frame\d+", path.stem):
                with reading(path), h5py.File(path, "r") as file:
                    slices = h5_dataset(path, file, "image").shape[0]
                if slices > 1000:
                    raise UserError(f"{path}: has {slices} slices; expected slices first, 1000 at most")
                cases += [Case(f"{path.stem}_slice{z:02d}", match[1], path, path) for z in range(slices)]
        return cases

    def read_image(self, case: Case) -> Image:
        """One slice of the volume."""
        volume = read_image(case.image)
        return Image(volume.array[:, _slice(case)], (1.5, 1.5), volume.suffix, volume.write)

    def read_raw_mask(self, case: Case) -> np.ndarray:
        """The same slice of the labels."""
        labels = read_mask(case.image)
        if _slice(case) >= len(labels):
            raise UserError(f"{case.image}: has labels of {len(labels)} slices, but more in its image; replace it")
        return labels[_slice(case)]

    def to_classes(self, mask: np.ndarray) -> np.ndarray:
        """Class indices as they are."""
        if mask.max() > 3 or mask.min() < 0:
            raise ValueError(f"label values {np.unique(mask)[:8].tolist()}, expected 0 to 3")
        return mask


def _slice(case: Case) -> int:
    return int(case.case.rsplit("slice", 1)[1])
