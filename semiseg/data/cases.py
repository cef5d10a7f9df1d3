"""What a data set is made of: cases that belong to patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, order=True)
class Case:
    """One image (or volume) of one patient, by path; nothing is opened.

    Args:
        case: name of the case, unique in its data set.
        patient: name of the patient; all cases of a patient fall in the same part of a split.
        image: image file, or the folder of one DICOM series.
        mask: mask file, or None for a case that has no mask (it can only be unlabeled).
        stratum: class of the case that k-fold splits are stratified by (grade, diagnosis), or empty.
        official: part of the data set's official split, or None where it has none.
    """

    case: str
    patient: str
    image: Path
    mask: Path | None
    stratum: str = ""
    official: Literal["train", "test"] | None = None
