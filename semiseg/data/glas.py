"""GlaS: glands in colon histology."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.lists import rows_by_case

_COLUMNS = ("name", "patient ID", "grade (GlaS)")


class GlaS(SegmentationDataModule):
    """Gland segmentation in H&E-stained colon tissue (GlaS challenge 2015): 85 training, 60 + 20 test images.

    Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", Medical Image
    Analysis 2017, https://arxiv.org/abs/1603.00275. Masks hold gland instances: above 0 is gland. `Grade.csv`, where
    present, gives the patient of each image and the grade (benign, malignant) that folds are stratified by, and must
    have a row for each; without it each image counts as a patient. The official split is train against testA and testB.

    Args:
        root: folder that holds `train_1.bmp`, `train_1_anno.bmp`, ..., itself or one level below.
        image_size: size that images are resized to; 128 x 128 as in the papers.
        **kwargs: options of every data set.
    """

    class_names = ("background", "gland")
    layout = "train_1.bmp with train_1_anno.bmp, testA_1.bmp, ... (the challenge's Warwick QU Dataset folder)"

    def __init__(self, root: str, image_size: Sequence[int] | None = (128, 128), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every `<part>_<n>.bmp`."""
        images = [
            path
            for folder in (self.root, *sorted(p for p in self.root.iterdir() if p.is_dir()))
            for path in folder.glob("*.bmp")
            if re.fullmatch(r"(train|testA|testB)_\d+", path.stem)
        ]
        grades: dict[str, dict[str, str]] = {}
        for folder in {path.parent for path in images}:
            if (table := folder / "Grade.csv").exists():
                own = [path.stem for path in images if path.parent == folder]
                grades |= rows_by_case(table, _COLUMNS, own)
        return [
            Case(
                case=path.stem,
                patient=grades[path.stem]["patient ID"] if path.stem in grades else path.stem,
                image=path,
                mask=path.with_name(f"{path.stem}_anno.bmp"),
                stratum=grades[path.stem]["grade (GlaS)"] if path.stem in grades else "",
                official="train" if path.stem.startswith("train") else "test",
            )
            for path in images
        ]
