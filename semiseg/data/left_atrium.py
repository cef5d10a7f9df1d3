"""LA: the left atrium in late gadolinium-enhanced MRI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.lists import read_parts


class LeftAtrium(SegmentationDataModule):
    """Left atrium segmentation in LGE-MRI (2018 Atrial Segmentation Challenge), 0.625 mm isotropic.

    Xiong et al., "A global benchmark of algorithms for segmenting the left atrium from late gadolinium-enhanced cardiac
    magnetic resonance imaging", Medical Image Analysis 2021, https://arxiv.org/abs/2004.12314. Two layouts are read:
    the semi-supervised literature's `<case>/mri_norm2.h5` with `train.list` and `test.list` (80 and 20 scans; these
    volumes were cropped around the true atrium, test scans included, so scores on them are optimistic), and the
    challenge's own `<case>/lgemri.nrrd`, `laendo.nrrd` (whole volumes, no peeking). Official split: the two lists;
    together they name each case once.

    Args:
        root: folder that holds the lists and, at any depth, one folder per case.
        patch_size: size of training patches and of the sliding window; 96 x 96 x 80 as in the papers.
        **kwargs: options of every data set.
    """

    spatial_dims = 3
    class_names = ("background", "left atrium")
    class_values = (0, 1)
    default_spacing = (0.625, 0.625, 0.625)
    layout = "<case>/mri_norm2.h5 with train.list and test.list, or <case>/lgemri.nrrd with laendo.nrrd"

    def __init__(self, root: str, patch_size: Sequence[int] | None = (96, 96, 80), **kwargs: Any) -> None:
        super().__init__(root, patch_size=patch_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every case folder of either layout."""
        images = [*self.root.rglob("mri_norm2.h5"), *self.root.rglob("lgemri.nrrd")]
        lists: dict[Literal["train", "test"], Path] = {
            "train": self.root / "train.list",
            "test": self.root / "test.list",
        }
        official = read_parts(lists, {image.parent.name: image for image in images})
        return [
            Case(
                case=image.parent.name,
                patient=image.parent.name,
                image=image,
                mask=image if image.suffix == ".h5" else image.with_name("laendo.nrrd"),
                official=official.get(image.parent.name),
            )
            for image in images
        ]
