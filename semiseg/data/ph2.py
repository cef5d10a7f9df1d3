"""PH2: skin lesions in dermoscopy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.lists import check_complete
from semiseg.errors import UserError
from semiseg.files import read_text

_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}


class PH2(SegmentationDataModule):
    """Skin lesion segmentation in 200 dermoscopic images of the Pedro Hispano Hospital.

    Mendonca et al., "PH2 - a dermoscopic image database for research and benchmarking", EMBC 2013,
    https://www.fc.up.pt/addi/ph2%20database.html. `PH2_dataset.txt`, where present, gives the diagnosis that folds are
    stratified by, and must have
    a row for each. Each image counts as a patient: the release does not name patients. No official split.

    Args:
        root: folder that holds `PH2Dataset`, or that folder.
        image_size: size that images are resized to; 128 x 128 as in the papers.
        **kwargs: options of every data set.
    """

    class_names = ("background", "lesion")
    layout = "PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp and .../IMD002_lesion/..."

    def __init__(self, root: str, image_size: Sequence[int] | None = (128, 128), **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    def find_cases(self) -> list[Case]:
        """Every `<name>/<name>_Dermoscopic_Image/<name>.bmp`."""
        images = sorted(self.root.rglob("*_Dermoscopic_Image/*.bmp"))
        tables = sorted(self.root.rglob("PH2_dataset.txt"))
        if len(tables) > 1:
            raise UserError(f"{tables[1]}: there is another table, {tables[0]}; remove one")
        diagnoses = _read_diagnoses(tables[0]) if tables else {}
        if tables:
            check_complete(tables[0], diagnoses, [image.stem for image in images])
        cases = []
        for image in images:
            name = image.stem
            mask = image.parent.parent / f"{name}_lesion" / f"{name}_lesion.bmp"
            cases.append(Case(name, name, image, mask, diagnoses.get(name, "")))
        return cases


def _read_diagnoses(path: Path) -> dict[str, str]:
    """Image name to diagnosis: the third column of a table whose columns are separated by `||`."""
    diagnoses: dict[str, str] = {}
    for line in read_text(path).splitlines():
        if not (row := re.match(r"\s*\|\|\s*(IMD\d+)\s*\|", line)):
            continue
        columns = [column.strip() for column in line.split("||")]
        if len(columns) != 7 or columns[3] not in _DIAGNOSES:
            raise UserError(f"{path}: the row of {row[1]} has no clinical diagnosis 0, 1 or 2; correct it")
        if row[1] in diagnoses:
            raise UserError(f"{path}: {row[1]} has two rows; remove one")
        diagnoses[row[1]] = _DIAGNOSES[columns[3]]
    return diagnoses
