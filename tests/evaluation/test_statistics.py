"""Intervals, paired differences over patients, Holm and ranks: by hand, against SciPy, and on simulated data."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.statistics import Interval, average_ranks, holm, mean_interval, paired_difference


def table(scores, metric="dice"):
    """A table from {"patient/case": score}."""
    return CaseTable({"case": name, "patient": name.split("/")[0], metric: score} for name, score in scores.items())


def one_run(scores):
    """One run of a method with scores (patients, cases)."""
    return {(0, 0): table({f"{p:03d}/{c}": x for p, row in enumerate(scores) for c, x in enumerate(row)})}


@pytest.fixture
def two_methods():
    random = np.random.default_rng(0)
    theirs = random.uniform(0.2, 0.6, (12, 3))
    return one_run(theirs + random.normal(0.1, 0.15, (12, 3))), one_run(theirs)


def summary(result):
    return result.mean, result.low, result.high, result.p


def test_mean_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, n = 3: t(0.95; 2) = 2.919986.
    assert mean_interval([1, 2, 3]) == Interval(2, 1, pytest.approx(2.919986 / math.sqrt(3), rel=1e-6), 3)
    single = mean_interval([0.5])
    assert (single.mean, single.n) == (0.5, 1)
    assert math.isnan(single.sd)
    assert math.isnan(single.ci90)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_difference_by_hand() -> None:
    ours = {
        (0, 0): table({"p/1": 0.9, "p/2": 0.8, "q/1": 0.5}),
        (0, 1): table({"p/1": 0.7, "p/2": 0.8, "q/1": 0.9, "q/2": 0.1}),  # q/2: only ours
        (1, 0): table({"r/1": 0.4}),
        (1, 1): table({"r/1": 0.0}),  # theirs has no such run
    }
    theirs = {
        (1, 0): table({"r/1": 0.7, "r/2": 0.3}),  # r/2: only theirs
        (0, 0): table({"p/1": 0.5, "p/2": 0.7, "q/1": 0.4}),
        (0, 1): table({"p/1": 0.5, "p/2": 0.5, "q/1": 0.4}),
    }
    result = paired_difference(ours, theirs)
    # Over runs: p/1 (0.4 + 0.2) / 2 = 0.3, p/2 (0.1 + 0.3) / 2 = 0.2, q/1 (0.1 + 0.5) / 2 = 0.3, r/1 -0.3.
    assert result.mean == pytest.approx((0.3 + 0.2 + 0.3 - 0.3) / 4)
    assert (result.patients, result.cases, result.pairs, result.dropped) == (3, 4, 7, 3)
    assert result.per_run == pytest.approx({(0, 0): 0.2, (0, 1): 1 / 3, (1, 0): -0.3})
    assert result.over_runs == mean_interval(list(result.per_run.values()))
    assert result.over_runs.sd == pytest.approx(np.std([0.2, 1 / 3, -0.3], ddof=1))
    assert result.p == 1  # patients 0.25, 0.3, -0.3: rank sums of 3.5 and 2.5 are as close as they can be


def test_the_test_is_on_patients(two_methods) -> None:
    ours, theirs = two_methods
    means = (ours[0, 0].column("dice") - theirs[0, 0].column("dice")).reshape(12, 3).mean(1)
    assert paired_difference(ours, theirs).p == pytest.approx(stats.wilcoxon(means, method="exact").pvalue)


def test_the_interval_is_the_bootstrap_over_patients() -> None:
    """Against resampled patients written out, with patients of different numbers of cases."""
    random = np.random.default_rng(1)
    scores = [random.normal(0.1 * p, 0.1, 1 + 3 * (p % 3)) for p in range(9)]
    result = paired_difference(one_run(scores), one_run([np.zeros(len(s)) for s in scores]), level=0.9, resamples=20000)
    drawn = [np.concatenate([scores[p] for p in random.integers(0, 9, 9)]).mean() for _ in range(20000)]
    tail = stats.norm.cdf(-math.sqrt(9 / 8) * 1.859548)  # t(0.95; 8)
    assert 0.02 < tail < 0.03
    assert result.mean == pytest.approx(np.concatenate(scores).mean())
    assert (result.low, result.high) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]), abs=0.01)
    by_patient = np.mean([s.mean() for s in scores])
    assert abs(result.mean - by_patient) > 0.001  # a mean over cases, not over patients


def test_swapped_methods_flip_the_sign(two_methods) -> None:
    forth, back = paired_difference(*two_methods), paired_difference(*reversed(two_methods))
    assert summary(back) == pytest.approx((-forth.mean, -forth.high, -forth.low, forth.p))


def test_a_constant_shifts_mean_and_interval(two_methods) -> None:
    ours, theirs = two_methods
    lower = {run: table({row["case"]: row["dice"] - 0.1 for row in t.rows}) for run, t in ours.items()}
    plain, shifted = paired_difference(ours, theirs), paired_difference(lower, theirs)
    assert summary(shifted)[:3] == pytest.approx([x - 0.1 for x in summary(plain)[:3]])
    assert plain.p < 0.05 < shifted.p


def test_equal_cases_of_a_patient_widen_the_interval() -> None:
    effects = np.random.default_rng(2).normal(0, 0.1, 20)
    clustered = one_run(np.repeat(effects[:, None], 4, axis=1))
    independent = {(0, 0): table({r["case"].replace("/", "-"): r["dice"] for r in clustered[0, 0].rows})}
    zero = {(0, 0): table({r["case"]: 0.0 for r in clustered[0, 0].rows})}
    zero_apart = {(0, 0): table({r["case"]: 0.0 for r in independent[0, 0].rows})}
    by_patient, by_case = paired_difference(clustered, zero), paired_difference(independent, zero_apart)
    assert (by_patient.patients, by_case.patients) == (20, 80)
    assert by_patient.mean == pytest.approx(by_case.mean)
    ratio = (by_patient.high - by_patient.low) / (by_case.high - by_case.low)
    assert 2 < ratio < 2.4  # the square root of four cases a patient, and somewhat more as patients are fewer
    assert by_patient.p > by_case.p


def test_order_changes_nothing(two_methods) -> None:
    ours, theirs = two_methods
    ours, theirs = ours | {(1, 0): theirs[0, 0]}, theirs | {(1, 0): ours[0, 0]}
    mixed = {run: CaseTable(reversed(t.rows)) for run, t in reversed(ours.items())}
    assert paired_difference(mixed, theirs) == paired_difference(ours, theirs)


def test_the_seed_is_the_only_chance(two_methods) -> None:
    first, again = (paired_difference(*two_methods, seed=3) for _ in range(2))
    other = paired_difference(*two_methods, seed=4)
    assert first == again
    assert first.low != other.low
    assert first.low == pytest.approx(other.low, abs=0.01)


@pytest.mark.parametrize("patients", [6, 30])
def test_coverage(patients) -> None:
    """The 90 % interval holds the truth about as often as it says, with effects of patients and of cases."""
    random = np.random.default_rng(patients)
    hits = 0
    for seed in range(200):
        scores = 0.1 + random.normal(0, 0.1, (patients, 1)) + random.normal(0, 0.05, (patients, 3))
        zero = np.zeros_like(scores)
        result = paired_difference(one_run(scores), one_run(zero), level=0.9, resamples=500, seed=seed)
        hits += result.low <= 0.1 <= result.high
    assert 0.85 <= hits / 200 <= 0.95  # within 2.4 deviations of 200 draws


def test_another_metric() -> None:
    ours, theirs = {(0, 0): table({"p/1": 3.0, "q/1": 5.0}, "hd95")}, {(0, 0): table({"p/1": 4.0, "q/1": 8.0}, "hd95")}
    assert paired_difference(ours, theirs, "hd95").mean == -2


def test_no_difference() -> None:
    method = one_run(np.random.default_rng(0).random((5, 2)))
    result = paired_difference(method, method)
    assert summary(result) == (0, 0, 0, 1)
    noisy = {(0, 0): table({r["case"]: r["dice"] + 1e-16 for r in method[0, 0].rows})}
    assert paired_difference(noisy, method).p == 1


def test_zeros_are_ranked_and_dropped() -> None:
    """Pratt: 0 0 | -0.1 -0.2 0.3 0.4 0.5 have the ranks 3 to 7, and 7 of the 32 sets of these sum to 7 or less."""
    steps = [[0.0], [0.0], [-0.1], [-0.2], [0.3], [0.4], [0.5]]
    assert paired_difference(one_run(steps), one_run(np.zeros((7, 1)))).p == pytest.approx(2 * 7 / 32)


def test_float_noise_makes_no_ranks() -> None:
    steps = np.array([0.1, 0.1, 0.1, -0.1, -0.1, 0.0, 0.0])[:, None]
    base = np.random.default_rng(0).random((7, 1))
    exact = paired_difference(one_run(steps), one_run(np.zeros((7, 1))))
    assert paired_difference(one_run(base + steps), one_run(base)).p == exact.p


def test_one_patient_has_no_interval() -> None:
    result = paired_difference(one_run([[0.5, 0.7]]), one_run([[0.4, 0.4]]))
    assert (result.mean, result.patients, result.cases) == (pytest.approx(0.2), 1, 2)
    assert all(math.isnan(value) for value in (result.low, result.high, result.p))


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dice of case 001/0 in run \(0, 0\) is nan"):
        paired_difference(one_run([[0.5], [0.5]]), one_run([[0.4], [math.nan]]))


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="no case"):
        paired_difference({(0, 0): table({"p/1": 0.5})}, {(0, 1): table({"p/1": 0.5})})


def test_a_case_of_two_patients_is_refused() -> None:
    other = CaseTable([{"case": "p/1", "patient": "q", "dice": 0.5}])
    with pytest.raises(ValueError, match="p/1 belongs to patient p and to patient q"):
        paired_difference({(0, 0): table({"p/1": 0.5})}, {(0, 0): other})


def test_a_large_test_set_is_quick() -> None:
    scores = np.random.default_rng(0).random((2000, 1))
    start = time.process_time()
    result = paired_difference(one_run(scores), one_run(scores / 2))
    assert time.process_time() - start < 5
    assert result.low < result.mean < result.high


def test_holm_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 and, not below that, 0.04 x 1.
    assert holm([0.02, 0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.4]) == pytest.approx([0.9, 0.8])
    assert holm([0.8, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_leaves_nan_out() -> None:
    adjusted = holm([math.nan, 0.01, math.nan, 0.04])
    assert adjusted[1::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[0])
    assert math.isnan(adjusted[2])
    assert math.isnan(holm([math.nan])[0])


def test_ranks_by_hand() -> None:
    scores = [[0.9, 0.8, 0.7], [0.9, 0.9, 0.1], [0.2, 0.5, 0.3], [0.6, 0.6, 0.6]]
    result = average_ranks(scores)
    assert result.ranks == pytest.approx([(1 + 1.5 + 3 + 2) / 4, (2 + 1.5 + 1 + 2) / 4, (3 + 3 + 2 + 2) / 4])
    assert result.cells == 4
    assert result.p_friedman == pytest.approx(stats.friedmanchisquare(*np.transpose(scores)).pvalue)
    distances = average_ranks(scores, higher_is_better=False)
    assert np.add(distances.ranks, result.ranks) == pytest.approx(4)


DEMSAR = {
    0.05: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
    0.10: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
}


@pytest.mark.parametrize("alpha", DEMSAR)
def test_critical_values_of_the_paper(alpha) -> None:
    """Demšar 2006, table 5(a): two to ten classifiers; its digits are rounded upwards now and then."""
    for k, published in enumerate(DEMSAR[alpha], start=2):
        scores = np.random.default_rng(k).random((7, k))
        quantile = average_ranks(scores, alpha=alpha).critical_difference / math.sqrt(k * (k + 1) / (6 * 7))
        assert quantile == pytest.approx(published, abs=1e-3)


def test_the_papers_example() -> None:
    """Demšar 2006, section 3.2.2: four classifiers on 14 data sets have CDs of 1.25 (0.05) and 1.12 (0.10)."""
    scores = np.random.default_rng(0).random((14, 4))
    assert average_ranks(scores).critical_difference == pytest.approx(1.25, abs=0.005)
    assert average_ranks(scores, alpha=0.10).critical_difference == pytest.approx(1.12, abs=0.005)


def test_groups() -> None:
    order = np.tile([5.0, 1.0, 4.0, 3.0, 2.0], (20, 1))  # ranks 1 5 2 3 4
    result = average_ranks(order)
    assert result.ranks == (1, 5, 2, 3, 4)
    assert 1 < result.critical_difference < 2  # neighbours are alike, others not
    assert result.groups == ((0, 2), (2, 3), (3, 4), (4, 1))
    assert average_ranks(order[:3]).groups == ((0, 2, 3, 4), (2, 3, 4, 1))  # CD 3.5
    apart = average_ranks(np.tile([3.0, 2.0, 2.0], (100, 1)))
    assert apart.groups == ((0,), (1, 2))  # a method without equals is a group of its own


def test_all_methods_tie() -> None:
    result = average_ranks(np.ones((4, 3)))
    assert (result.ranks, result.p_friedman, result.groups) == ((2, 2, 2), 1, ((0, 1, 2),))


@pytest.mark.parametrize("shape", [(5, 2), (1, 3)])
def test_too_few_for_friedman(shape) -> None:
    result = average_ranks(np.random.default_rng(0).random(shape))
    assert math.isnan(result.p_friedman)
    assert result.critical_difference > 0


@pytest.mark.parametrize("scores", [[[1.0], [2.0]], np.ones((0, 3)), [1.0, 2.0], [[1.0, math.nan]]])
def test_incomplete_scores_are_refused(scores) -> None:
    with pytest.raises(ValueError, match="must be complete"):
        average_ranks(scores)
