"""QaTa-COV19: infection in chest X-rays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.io import find_images


class QaTaCOV19(SegmentationDataModule):
    """COVID-19 infection segmentation in 9,258 chest X-rays, QaTa-COV19-v2.

    Degerli et al., "OSegNet: operational segmentation network for COVID-19 detection using chest X-ray images", ICIP
    2022, https://arxiv.org/abs/2202.10185. Official split: `Train Set` against `Test Set`. The release does not name
    patients: each image counts as one.

    Args:
        root: folder that holds `QaTa-COV19-v2`, or that folder.
        image_size: size that images are resized to; 128 x 128 as in the papers.
        **kwargs: options of every data set.
    """

    class_names = ("background", "infection")
    layout = "{Train Set,Test Set}/Images/covid_1.png with .../Ground-truths/mask_covid_1.png"

    def __init__(self, root: str, image_size: Sequence[int] | None = (128, 128), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every image of both sets; the set's name is part of the case's, as numbers could repeat."""
        cases = []
        for part, folder in (("train", "Train Set"), ("test", "Test Set")):
            for images in self.root.rglob(f"{folder}/Images"):
                for image in find_images(images):
                    mask = images.with_name("Ground-truths") / f"mask_{image.stem}.png"
                    name = f"{part}_{image.stem}"
                    cases.append(Case(name, name, image, mask, official="train" if part == "train" else "test"))
        return cases
