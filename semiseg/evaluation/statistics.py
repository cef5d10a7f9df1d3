"""Comparing methods: intervals, paired differences over patients, correction for many tests, ranks over data sets."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.multitest import multipletests

from semiseg.evaluation.cases import CaseTable, ci90

Run = tuple[int, int]
"""(fold, seed): two methods' runs of the same fold and seed are compared with each other."""
K = TypeVar("K")


@dataclass(frozen=True)
class Interval:
    """A mean with its spread: `sd` of the `n` values, half-width `ci90` of the mean's 90 % t interval."""

    mean: float
    sd: float
    ci90: float
    n: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean, standard deviation (n - 1) and 90 % t interval of the mean; spread nan for one value.

    Raises:
        ValueError: there are no values.
    """
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Interval(fmean(values), sd, ci90(values), len(values))


@dataclass(frozen=True)
class PairedDifference:
    """One method's scores minus another's, as `paired_difference` finds them.

    Attributes:
        mean: mean over cases.
        low: lower end of the bootstrap interval over patients.
        high: upper end.
        p: two-sided p-value of Wilcoxon's signed-rank test over patients.
        per_run: mean difference of each run over the cases it tested.
        over_runs: mean and spread of `per_run`. Over seeds of one fold the spread is the noise of training; over folds
            it holds the folds' differences as well.
        patients: number of patients, the units of interval and test.
        cases: number of cases.
        pairs: number of (run, case) pairs that the difference rests on.
        dropped: number of (run, case) pairs that only one method has.
    """

    mean: float
    low: float
    high: float
    p: float
    per_run: dict[Run, float]
    over_runs: Interval
    patients: int
    cases: int
    pairs: int
    dropped: int


def paired_difference(
    ours: Mapping[Run, CaseTable],
    theirs: Mapping[Run, CaseTable],
    metric: str = "dice",
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> PairedDifference:
    """How much better one method is than another on the same cases, and whether other patients would say the same.

    Scores are paired by fold, seed and case. A case tested in several runs counts once, with the mean of its
    differences. The mean is over cases, as in tables of results. Cases of one patient are not independent, so patients
    are what is resampled and tested:

    * the interval is a bootstrap of the mean over the cases of resampled patients (cluster bootstrap; Davison and
      Hinkley, "Bootstrap methods and their application", 1997, section 3.8), with percentiles expanded for small
      numbers. It holds its level from about six patients on; of two or three it is the range, and too narrow;
    * p is of Wilcoxon's signed-rank test of the patients' mean differences. Zeros are ranked with the others and then
      dropped (Pratt 1959). It is exact for at most 50 patients without ties or zeros and 13 with them, else from the
      normal approximation (SciPy's "auto"). With fewer than six patients it cannot fall to 0.05.

    Both speak of other patients for the networks at hand, not of training anew; `over_runs` does. Both are nan for
    fewer than two patients; p is 1 if no patient differs.

    Args:
        ours: test results by run.
        theirs: test results by run of the method to compare with.
        metric: column of the tables.
        level: level of the interval.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the two have no case of the same run in common, a case belongs to two patients, or a score is nan.
    """
    patient_of: dict[str, str] = {}
    first, second = (_scores(tables, metric, patient_of) for tables in (ours, theirs))
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("no case was tested by both methods in a run of the same fold and seed")
    differences = {pair: first[pair] - second[pair] for pair in common}

    run_means = _means((run, d) for (run, _), d in differences.items())
    case_means = _means((case, d) for (_, case), d in differences.items())
    patient_means = _means((patient_of[case], d) for case, d in case_means.items())
    cases_of = Counter(patient_of[case] for case in case_means)
    low, high, p = math.nan, math.nan, math.nan
    if len(patient_means) > 1:
        means = np.array(list(patient_means.values()))
        counts = np.array([cases_of[patient] for patient in patient_means])
        low, high = _bootstrap(means, counts, level, resamples, seed)
        p = _signed_rank(means)
    return PairedDifference(
        mean=fmean(case_means.values()),
        low=low,
        high=high,
        p=p,
        per_run=run_means,
        over_runs=mean_interval(list(run_means.values())),
        patients=len(patient_means),
        cases=len(case_means),
        pairs=len(common),
        dropped=len(first.keys() ^ second.keys()),
    )


def _scores(tables: Mapping[Run, CaseTable], metric: str, patient_of: dict[str, str]) -> dict[tuple[Run, str], float]:
    """Score of each (run, case); notes the patients of the cases."""
    scores = {}
    for run, table in tables.items():
        for row in table.rows:
            case, patient = str(row["case"]), str(row["patient"])
            if patient_of.setdefault(case, patient) != patient:
                raise ValueError(f"case {case} belongs to patient {patient_of[case]} and to patient {patient}")
            scores[run, case] = score = float(row[metric])
            if math.isnan(score):
                raise ValueError(f"the {metric} of case {case} in run {run} is nan")
    return scores


def _means(items: Iterable[tuple[K, float]]) -> dict[K, float]:
    """Mean of the values of each key."""
    values: dict[K, list[float]] = defaultdict(list)
    for key, value in items:
        values[key].append(value)
    return {key: fmean(group) for key, group in values.items()}


def _bootstrap(means: np.ndarray, counts: np.ndarray, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Interval of the mean over cases, from the mean (P,) and the number of cases (P,) of each patient.

    The expanded percentile interval of Hesterberg, "What teachers should know about the bootstrap", 2015,
    https://arxiv.org/abs/1411.5279: plain percentiles miss the truth too often where patients are few, so outer ones
    are taken, by as much as a t interval is wider than a normal one with the variance over n. BCa would not mend that,
    and has no value where nearly all patients agree.
    """
    patients = len(means)
    widening = math.sqrt(patients / (patients - 1)) * stats.t.ppf((1 + level) / 2, patients - 1)

    def mean_over_cases(sums: np.ndarray, counts: np.ndarray, axis: int) -> Any:
        return sums.sum(axis) / counts.sum(axis)

    result = stats.bootstrap(
        (means * counts, counts),
        mean_over_cases,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * stats.norm.cdf(-widening),
        n_resamples=resamples,
        batch=max(1, 2_000_000 // patients),  # patients x resamples that are in memory at once
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _signed_rank(differences: np.ndarray) -> float:
    """Wilcoxon's p; rounded first, so that equal differences tie whatever the last digits of the floats."""
    rounded = differences.round(12)
    return float(stats.wilcoxon(rounded, zero_method="pratt", method="auto").pvalue) if rounded.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    The smallest of m is multiplied by m, the next by m - 1 and so on, none below the one before it or above 1. A p of
    nan, a test that could not be done, stays nan and does not count.
    """
    adjusted = np.array(p_values, dtype=np.float64)
    done = ~np.isnan(adjusted)
    if done.any():
        adjusted[done] = multipletests(adjusted[done], method="holm")[1]
    return adjusted.tolist()


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods, 1 the best, as `average_ranks` finds them.

    Attributes:
        ranks: average rank of each method.
        p_friedman: p-value of Friedman's test that all methods are alike.
        critical_difference: ranks that differ by more are told apart by Nemenyi's test.
        cells: number of cells (data set, label fraction, ...) that were ranked.
        groups: maximal sets of methods, as indices from the best rank on, that are not told apart. Every method is in
            at least one. To be read only where Friedman's test rejects.
    """

    ranks: tuple[float, ...]
    p_friedman: float
    critical_difference: float
    cells: int
    groups: tuple[tuple[int, ...], ...]


def average_ranks(scores: ArrayLike, higher_is_better: bool = True, alpha: float = 0.05) -> Ranks:
    """Rank methods in each cell of a benchmark and average: no cell counts more because its scores spread more.

    Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006,
    https://jmlr.org/papers/v7/demsar06a.html: Friedman's test, then Nemenyi's critical difference
    q_alpha sqrt(k(k + 1) / 6N) for k methods and N cells, where q_alpha is the quantile of the studentized range over
    sqrt 2. Cells are taken as independent, which label fractions of one data set are not quite.

    Args:
        scores: one score (N, k) per cell and method, none missing; ties get their mean rank.
        higher_is_better: false for distances.
        alpha: level of the critical difference.

    Returns:
        The ranks; Friedman's p is nan for fewer than three methods or two cells and 1 if all methods tie everywhere.

    Raises:
        ValueError: a score is missing, or there are no cells or fewer than two methods.
    """
    table = np.array(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2 or np.isnan(table).any():
        raise ValueError(f"scores {table.shape} must be complete, of one cell or more and two methods or more")
    cells, methods = table.shape
    in_cell = stats.rankdata(-table if higher_is_better else table, axis=1)
    ranks = in_cell.mean(axis=0)
    p_friedman = math.nan
    if methods > 2 and cells > 1:
        all_tie = np.ptp(in_cell) == 0
        p_friedman = 1.0 if all_tie else float(stats.friedmanchisquare(*in_cell.T).pvalue)
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    difference = float(quantile * math.sqrt(methods * (methods + 1) / (6 * cells)))
    return Ranks(tuple(ranks.tolist()), p_friedman, difference, cells, _groups(ranks, difference))


def _groups(ranks: np.ndarray, difference: float) -> tuple[tuple[int, ...], ...]:
    """Maximal sets of methods whose ranks span at most the critical difference, best first."""
    order = np.argsort(ranks, kind="stable").tolist()
    groups: list[tuple[int, ...]] = []
    for start, best in enumerate(order):
        group = tuple(method for method in order[start:] if ranks[method] - ranks[best] <= difference)
        if not groups or group[-1] != groups[-1][-1]:  # else it is part of the group before it
            groups.append(group)
    return tuple(groups)
