"""Splits by patient: a pure function of the case list, the seed, the number of folds and the fold.

Patients are ordered by a hash of (seed, patient), not by a random generator: the result does not depend on the order in
which the file system lists files, nor on the version of a library, and adding a patient does not reshuffle the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from semiseg.data.cases import Case
from semiseg.errors import UserError


@dataclass(frozen=True)
class Split:
    """Names of the cases of each part, sorted. Parts are disjoint by patient.

    `shared_patients` names patients that a data set's *official* test set shares with its training set: that is the
    publisher's choice, so it is reported instead of refused.
    """

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    shared_patients: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name this split; runs are comparable only where it is the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The split with its hash and counts, as written to `split.json`."""
        return {"hash": self.hash, "counts": {k: len(v) for k, v in asdict(self).items()}, **asdict(self)}


def make_split(
    cases: Iterable[Case],
    *,
    mode: Literal["kfold", "official"] = "kfold",
    num_folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    labeled_fraction: float = 1.0,
    labeled_count: int | None = None,
) -> Split:
    """Split cases into labeled, unlabeled, validation and test by patient.

    `kfold`: fold k is the test set, fold k+1 (cyclic) the validation set, the others are for training. `official`: the
    test set is the data set's own, and fold k of its training patients is the validation set. Folds have nearly equal
    numbers of cases within each stratum. Of the training patients with masks, the first ceil(fraction x patients) in a
    seeded order are labeled, so a smaller set is always part of a larger one; all other training cases are unlabeled.
    Fold k of K begins k/K of the way round that order: folds have different labeled sets, each patient in about equally
    many.

    Args:
        cases: the cases of the data set, in any order.
        mode: `kfold` or `official`.
        num_folds: number of folds, at least 3 for `kfold` and 2 for `official`.
        fold: which fold, 0 .. num_folds - 1.
        seed: seed of the order of patients.
        labeled_fraction: share of the training patients with masks that is labeled, above 0 and at most 1.
        labeled_count: number of labeled patients instead of a fraction.

    Raises:
        UserError: an argument is out of range, or there are too few patients.
    """
    cases = sorted(cases)
    masked = [case for case in cases if case.mask is not None]
    if mode == "official" and not any(case.official == "test" for case in cases):
        raise UserError("--data.split official: this data set has no official test cases here; use --data.split kfold")
    pool = [case for case in masked if mode == "kfold" or case.official == "train"]
    folds = _folds(pool, num_folds, fold, seed, least=3 if mode == "kfold" else 2)
    if mode == "official":
        test, validation = {case.patient for case in masked if case.official == "test"}, folds[fold]
    else:
        test, validation = folds[fold], folds[(fold + 1) % num_folds]

    train = sorted(
        {case.patient for case in pool} - validation - (test if mode == "kfold" else set()),
        key=_key(seed, start=fold / num_folds),
    )
    labeled = set(train[: _labeled_patients(len(train), labeled_fraction, labeled_count)])
    held_out = validation | test
    parts: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if mode == "official" and case.official == "test":
            part = "test"
        elif case.patient in validation:
            part = "validation"
        elif mode == "kfold" and case.patient in test:
            part = "test"
        else:
            part = "labeled" if case.patient in labeled and case.mask is not None else "unlabeled"
        if case.mask is None and part != "unlabeled":
            continue  # nothing to be scored with
        if part == "unlabeled" and case.patient in held_out and (case.mask is None or case.official is None):
            continue  # not the publisher's choice to train on this patient, so not ours
        parts[part].append(case.case)

    patient = {case.case: case.patient for case in cases}
    split = Split(
        **{part: tuple(sorted(parts[part])) for part in ("labeled", "unlabeled", "validation", "test")},
        shared_patients=tuple(sorted(test & ({c.patient for c in pool} if mode == "official" else set()))),
    )
    _assert_disjoint(split, patient)
    return split


def _key(seed: int, start: float = 0.0) -> Any:
    """Place of a patient on a circle of hashes, from a start on it between 0 and 1."""
    circle = 2**256

    def key(patient: str) -> int:
        place = int(hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest(), 16)
        return (place - int(start * circle)) % circle

    return key


def _folds(cases: Sequence[Case], num_folds: int, fold: int, seed: int, least: int) -> list[set[str]]:
    """Deal patients into folds: largest first, each to the fold that has the fewest cases of its stratum."""
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        strata[case.patient][case.stratum] += 1
    if len(strata) < least:
        parts = "training, validation and test" if least == 3 else "training and validation"
        raise UserError(
            f"only {len(strata)} patient(s) with masks to split, and at least {least} are needed, one each for "
            f"{parts}; add masks, or cases of more patients"
        )
    if num_folds < least:
        raise UserError(f"--data.num_folds {num_folds}: at least {least} are needed for train, validation and test")
    if not 0 <= fold < num_folds:
        raise UserError(f"--data.fold {fold} is out of range: with {num_folds} folds use 0 to {num_folds - 1}")
    if len(strata) < num_folds:
        raise UserError(
            f"--data.num_folds {num_folds}: only {len(strata)} patients with masks to split; "
            f"use --data.num_folds {len(strata)} or add cases"
        )
    size = {patient: sum(counts.values()) for patient, counts in strata.items()}
    stratum = {patient: min(counts, key=lambda s: (-counts[s], s)) for patient, counts in strata.items()}
    folds: list[set[str]] = [set() for _ in range(num_folds)]
    in_stratum: Counter[tuple[int, str]] = Counter()
    in_total: Counter[int] = Counter()
    key = _key(seed)
    for patient in sorted(strata, key=lambda p: (-size[p], key(p))):
        own = stratum[patient]
        k = min(range(num_folds), key=lambda i: (in_stratum[i, own], in_total[i], i))
        folds[k].add(patient)
        in_stratum[k, own] += size[patient]
        in_total[k] += size[patient]
    return folds


def _labeled_patients(patients: int, fraction: float, count: int | None) -> int:
    if count is not None:
        if not 1 <= count <= patients:
            raise UserError(f"--data.labeled_count {count}: use 1 to {patients}, the training patients with masks")
        return count
    if not 0 < fraction <= 1:
        raise UserError(f"--data.labeled_fraction {fraction:g}: use a share above 0 and at most 1 (0.05 is 5 %)")
    return max(1, math.ceil(round(fraction * patients, 9)))  # rounded: 0.07 x 100 is 7.000000000000001


def _assert_disjoint(split: Split, patient: dict[str, str]) -> None:
    train = {patient[case] for case in split.labeled + split.unlabeled}
    validation = {patient[case] for case in split.validation}
    test = {patient[case] for case in split.test} - set(split.shared_patients)
    if train & validation or train & test or validation & test:
        raise AssertionError("split leakage: a patient is in two parts")  # a bug of ours, never a user's mistake
