"""Splits: properties over random case lists, one pinned result, and every mistake a user can make."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from semiseg.data.cases import Case
from semiseg.data.splits import make_split
from semiseg.errors import UserError


def case(name, patient=None, mask=True, stratum="", official=None):
    return Case(
        name, patient or name, Path(f"{name}.png"), Path(f"{name}_mask.png") if mask else None, stratum, official
    )


def simple(patients, **options):
    return [case(f"p{n:03d}", **options) for n in range(patients)]


def random_cases(seed):
    """Patients with one to four images, some without masks, in up to three strata, half of the sets with a test set."""
    draw = random.Random(seed)
    strata, official = draw.randint(1, 3), draw.random() < 0.5
    cases = []
    for number in range(draw.randint(6, 40)):
        patient = f"patient{draw.randrange(10**6):06d}-{number}"
        part = ("test" if number % 4 == 3 else "train") if official else None
        stratum = f"grade {draw.randrange(strata)}"
        masked = number < 6 or draw.random() < 0.8
        for image in range(draw.randint(1, 4)):
            mask = masked and (image == 0 or draw.random() < 0.9)
            cases.append(case(f"{patient}_{image}", patient, mask, stratum, part))
    return cases, "official" if official and draw.random() < 0.7 else "kfold"


def fractions_of(cases, **options):
    return [make_split(cases, labeled_fraction=fraction, **options) for fraction in (0.01, 0.05, 0.1, 0.3, 0.5, 1)]


@pytest.mark.parametrize("seed", range(40))
def test_properties(seed):
    cases, mode = random_cases(seed)
    by_name = {c.case: c for c in cases}
    options = {"mode": mode, "num_folds": 3, "fold": seed % 3, "seed": seed}
    splits = fractions_of(cases, **options)
    shuffled = random.Random(seed).sample(cases, len(cases))
    assert [split.hash for split in fractions_of(shuffled, **options)] == [split.hash for split in splits]
    labeled_before = set()
    for split, fraction in zip(splits, (0.01, 0.05, 0.1, 0.3, 0.5, 1), strict=True):
        parts = {part: getattr(split, part) for part in ("labeled", "unlabeled", "validation", "test")}
        names = [name for part in parts.values() for name in part]
        assert len(names) == len(set(names))
        train, validation, test = (
            {by_name[name].patient for part in group for name in parts[part]}
            for group in (("labeled", "unlabeled"), ("validation",), ("test",))
        )
        assert not (train & validation) | (train & test) | (validation & test)
        assert not split.shared_patients
        for part in ("labeled", "validation", "test"):
            assert parts[part]
            assert all(by_name[name].mask for name in parts[part])
        dropped = [c for c in cases if c.case not in names]
        assert all(c.mask is None and (c.patient in validation | test or c.official == "test") for c in dropped)
        candidates = {by_name[n].patient for n in split.labeled + split.unlabeled if by_name[n].mask}
        labeled = {by_name[name].patient for name in split.labeled}
        assert len(labeled) == max(1, math.ceil(fraction * len(candidates) - 1e-9))
        assert not any(by_name[n].mask for n in split.unlabeled if by_name[n].patient in labeled)
        assert labeled_before <= set(split.labeled)
        labeled_before = set(split.labeled)
        assert (split.validation, split.test) == (splits[0].validation, splits[0].test)


@pytest.mark.parametrize("seed", range(5))
def test_every_masked_case_is_tested_once_over_the_folds_and_validated_once(seed):
    cases, _ = random_cases(seed)
    splits = [make_split(cases, num_folds=4, fold=fold, seed=seed) for fold in range(4)]
    masked = sorted(c.case for c in cases if c.mask)
    assert sorted(name for split in splits for name in split.test) == masked
    assert sorted(name for split in splits for name in split.validation) == masked
    assert splits[0].validation == splits[1].test


def test_seed_and_fold_change_the_split_and_nothing_else_does():
    cases = simple(30)
    hashes = {make_split(cases, seed=seed, fold=fold).hash for seed in range(3) for fold in range(5)}
    assert len(hashes) == 15
    random.seed(5)
    assert make_split(cases).hash == make_split(simple(30)).hash


def test_the_split_of_a_known_list_stays_what_it_is():
    """Published results name splits by this hash: a change of the algorithm has to be meant."""
    cases = [case(f"p{n}_{k}", f"p{n}", k == 0 or n % 3 > 0, f"s{n % 2}") for n in range(12) for k in range(2)]
    split = make_split(cases, num_folds=4, fold=1, seed=7, labeled_fraction=0.5)
    assert split.hash == "82de0382eb26"
    assert split.to_dict()["hash"] == split.hash
    assert split.to_dict()["counts"]["labeled"] == len(split.labeled)


@pytest.mark.parametrize(
    ("fraction", "patients"), [(0.07, 7), (0.29, 29), (0.57, 57), (0.1, 10), (0.101, 11), (1e-6, 1), (1, 100)]
)
def test_labeled_patients_are_rounded_up_without_float_error(fraction, patients):
    cases = [*simple(100, official="train"), case("t", official="test"), case("v", official="train")]
    split = make_split(cases, mode="official", num_folds=101, labeled_fraction=fraction)
    assert len(split.labeled) == patients
    assert len(split.labeled) + len(split.unlabeled) == 100


def test_labeled_count_is_the_same_row_as_the_fraction():
    cases = simple(50)
    assert make_split(cases, labeled_count=3).hash == make_split(cases, labeled_fraction=0.1).hash
    assert set(make_split(cases, labeled_count=3).labeled) < set(make_split(cases, labeled_count=4).labeled)


@pytest.mark.parametrize("mode", ["kfold", "official"])
def test_folds_differ_in_what_is_labeled(mode):
    """A mean over folds is also one over labeled sets; drawn independently, two of 20 % would share a fifth."""
    cases = simple(100) if mode == "kfold" else [*simple(100, official="train"), case("t", official="test")]
    rows = [make_split(cases, mode=mode, num_folds=10, fold=fold, labeled_fraction=0.2).labeled for fold in range(10)]
    shared = [len(set(one) & set(other)) / len(one) for one, other in itertools.combinations(rows, 2)]
    assert sum(shared) / len(shared) < 0.25
    assert len({name for row in rows for name in row}) > 80


def test_all_images_of_a_labeled_patient_are_labeled():
    cases = [case(f"p{n}_{k}", f"p{n}") for n in range(10) for k in range(3)]
    split = make_split(cases, labeled_count=2)
    assert len(split.labeled) == 6
    assert len({name.split("_")[0] for name in split.labeled}) == 2


def test_folds_are_stratified():
    cases = [case(f"p{n}", stratum="rare" if n % 4 == 0 else "common") for n in range(40)]
    stratum = {c.case: c.stratum for c in cases}
    for fold in range(5):
        assert Counter(stratum[n] for n in make_split(cases, fold=fold).test) == {"rare": 2, "common": 6}


@pytest.mark.parametrize("seed", range(5))
def test_folds_hold_nearly_equal_numbers_of_cases_of_patients_of_any_size(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(1, 6) for _ in range(60)]
    cases = [case(f"p{n}_{k}", f"p{n}", stratum=f"s{n % 2}") for n, size in enumerate(sizes) for k in range(size)]
    tests = [make_split(cases, fold=fold, seed=seed).test for fold in range(5)]
    for end in (0, 1):
        counts = [sum(int(name[1:].split("_")[0]) % 2 == end for name in test) for test in tests]
        assert max(counts) - min(counts) <= 2


def test_a_new_patient_does_not_move_the_labeled_order_of_the_others():
    cases = simple(30)

    def order(cases):
        """Training patients of fold 0 in the order in which they are labeled."""
        row = []
        for count in range(1, 12):
            row += sorted(set(make_split(cases, labeled_count=count).labeled) - set(row))
        return row

    before, after = order(cases), order([*cases, case("new")])
    both = set(before) & set(after)
    assert len(both) > 3
    assert [p for p in before if p in both] == [p for p in after if p in both]


def test_cases_without_mask_are_unlabeled_or_left_out():
    cases = [*simple(10), *[case(f"p{n:03d}_extra", f"p{n:03d}", mask=False) for n in range(10)], case("x", mask=False)]
    split = make_split(cases, labeled_count=2)
    extra = [name for name in split.unlabeled if name.endswith("_extra")]
    held_out = {*split.validation, *split.test}
    assert "x" in split.unlabeled
    assert len(extra) == 6
    assert not {name.removesuffix("_extra") for name in extra} & held_out
    assert all("_extra" not in name for name in (*split.labeled, *held_out))


def test_official_test_set_is_the_publishers_whatever_the_fold():
    cases = [*simple(10, official="train"), *[case(f"t{n}", official="test") for n in range(3)]]
    splits = [make_split(cases, mode="official", num_folds=5, fold=fold) for fold in range(5)]
    assert {split.test for split in splits} == {("t0", "t1", "t2")}
    assert sorted(name for split in splits for name in split.validation) == [c.case for c in cases[:10]]
    assert all(len(split.labeled) == 8 for split in splits)
    assert make_split(cases, mode="official", num_folds=2).hash


def test_patients_that_an_official_test_set_shares_are_reported():
    cases = [*simple(6, official="train"), case("t1", "p001", official="test"), case("t2", official="test")]
    assert make_split(cases, mode="official", num_folds=2).shared_patients == ("p001",)
    assert make_split(cases, num_folds=3).shared_patients == ()


def test_cases_outside_the_official_split_only_add_unlabeled_images_of_training_patients():
    cases = [*simple(6, official="train"), case("t", official="test"), case("t_more", "t"), case("free")]
    split = make_split(cases, mode="official", num_folds=3)
    assert "free" in split.unlabeled
    assert "t_more" not in (*split.labeled, *split.unlabeled, *split.validation, *split.test)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labeled_fraction": 0}, "labeled_fraction 0:"),
        ({"labeled_fraction": -0.1}, "labeled_fraction -0.1"),
        ({"labeled_fraction": 1.5}, "labeled_fraction 1.5"),
        ({"labeled_fraction": math.nan}, "labeled_fraction nan"),
        ({"labeled_count": 0}, "labeled_count 0: use 1 to 6"),
        ({"labeled_count": 7}, "labeled_count 7: use 1 to 6"),
        ({"fold": 5}, "with 5 folds use 0 to 4"),
        ({"fold": -1}, "fold -1"),
        ({"num_folds": 11}, "only 10 patients"),
        ({"num_folds": 2}, "at least 3"),
        ({"num_folds": 1, "mode": "official"}, "no official test cases"),
        ({"mode": "official"}, "no official test cases"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError, match=words):
        make_split(simple(10), **options)


@pytest.mark.parametrize(
    ("cases", "options", "words"),
    [
        (
            simple(2),
            {"num_folds": 3},
            "only 2 patient.* at least 3 are needed, one each for training, validation and test",
        ),
        (simple(2), {"num_folds": 2}, "only 2 patient.* at least 3 are needed"),
        ([*simple(4, mask=False), case("x")], {}, "only 1 patient.* add masks, or cases of more patients"),
        (
            [*simple(1, official="train"), case("t", official="test")],
            {"mode": "official"},
            "only 1 patient.* at least 2 are needed, one each for training and validation;",
        ),
    ],
)
def test_too_few_patients_for_any_number_of_folds(cases, options, words):
    with pytest.raises(UserError, match=words):
        make_split(cases, **options)


def test_official_needs_two_folds():
    with pytest.raises(UserError, match="at least 2"):
        make_split([*simple(5, official="train"), case("t", official="test")], mode="official", num_folds=1)
