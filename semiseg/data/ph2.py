"""PH2: skin lesions in dermoscopy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case

_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}


class PH2(SegmentationDataModule):
    """Skin lesion segmentation in 200 dermoscopic images of the Pedro Hispano Hospital.

    Mendonca et al., "PH2 - a dermoscopic image database for research and benchmarking", EMBC 2013,
    https://www.fc.up.pt/addi/ph2%20database.html. `PH2_dataset.txt`, where present, gives the diagnosis that folds are
    stratified by. Each image counts as a patient: the release does not name patients. No official split.

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
        diagnoses = _read_diagnoses(next(iter(sorted(self.root.rglob("PH2_dataset.txt"))), None))
        cases = []
        for image in self.root.rglob("*_Dermoscopic_Image/*.bmp"):
            name = image.stem
            mask = image.parent.parent / f"{name}_lesion" / f"{name}_lesion.bmp"
            cases.append(Case(name, name, image, mask, diagnoses.get(name, "")))
        return cases


def _read_diagnoses(path: Path | None) -> dict[str, str]:
    """Image name to diagnosis: the third column of a table whose columns are separated by `||`."""
    if path is None:
        return {}
    rows = re.findall(
        r"\|\|\s*(IMD\d+)\s*\|\|([^|]*)\|\|\s*(\d)\s*\|\|", path.read_text(encoding="utf-8", errors="replace")
    )
    return {name: _DIAGNOSES.get(code, code) for name, _, code in rows}
