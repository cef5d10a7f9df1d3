"""What a data set is made of: cases that belong to patients."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semiseg.errors import UserError

NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")  # without control characters and half characters


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


def check_files(cases: Iterable[Case]) -> None:
    """Check that each file belongs to one case, as its image or as its mask; files are looked at, not opened.

    The exception is an HDF5 volume, which may hold both, and in slices that are cases.

    Raises:
        UserError: a file, maybe under two names, is there twice; or a name is not text.
    """
    used: dict[tuple[int, int], tuple[Path, Case, str]] = {}
    for case in cases:
        for file, role in ((case.image, "image"), (case.mask, "mask")):
            if file is None:
                continue
            if not NAME.fullmatch(case.case) or not NAME.fullmatch(str(file)):
                raise UserError(f"{str(file)!a}: a name that is not UTF-8, or has control characters; rename the file")
            try:
                state = file.stat()
            except OSError:  # a missing mask matters, and is reported, only where the run needs it
                continue
            other, owner, use = used.setdefault((state.st_dev, state.st_ino), (file, case, role))
            volume = file.suffix.lower() in (".h5", ".hdf5") and (file == other or case == owner)
            if (owner, use) != (case, role) and not volume:
                same = "" if file == other else f" (the same file as {other})"
                raise UserError(
                    f"{file}{same}: is the {use} of case {owner.case} and the {role} of case {case.case}; each needs a "
                    "file of its own"
                )
