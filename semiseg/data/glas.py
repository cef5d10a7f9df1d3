"""GlaS: glands in colon histology."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.io import reading


class GlaS(SegmentationDataModule):
    """Gland segmentation in H&E-stained colon tissue (GlaS challenge 2015): 85 training, 60 + 20 test images.

    Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", Medical Image
    Analysis 2017, https://arxiv.org/abs/1603.00275. Masks hold gland instances: above 0 is gland. `Grade.csv`, where
    present, gives the patient of each image and the grade (benign, malignant) that folds are stratified by; without it
    each image counts as a patient. The official split is train against testA and testB.

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
        grades = {folder: _read_grades(folder / "Grade.csv") for folder in {path.parent for path in images}}
        cases = []
        for path in images:
            patient, grade = grades[path.parent].get(path.stem, (path.stem, ""))
            mask = path.with_name(f"{path.stem}_anno.bmp")
            cases.append(Case(path.stem, patient, path, mask, grade, "train" if path.stem[1] == "r" else "test"))
        return cases


def _read_grades(path: Path) -> dict[str, tuple[str, str]]:
    """Image name to (patient, grade)."""
    if not path.exists():
        return {}
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        return {row["name"].strip(): (row["patient ID"].strip(), row["grade (GlaS)"].strip()) for row in rows}
