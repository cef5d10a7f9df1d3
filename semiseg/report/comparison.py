"""From runs to what a report shows: cells, differences, ranks, curves, of each protocol for itself."""

from __future__ import annotations

import base64
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.statistics import average_ranks, holm, mean_interval, paired_difference
from semiseg.report.checks import read_picture
from semiseg.report.protocols import Key, Result, protocols_of
from semiseg.report.published import names_of, published
from semiseg.report.runs import PER_CASE, Run
from semiseg.running.folder import versions
from semiseg.running.results import cases_name

METRICS = (
    ("dice", "Dice", "higher", "", "mean over cases"),
    ("dice_pooled", "pooled Dice", "higher", "", "over the voxels of all cases together, as the papers report it"),
    ("jaccard", "Jaccard", "higher", "", "mean over cases"),
    ("jaccard_pooled", "pooled Jaccard", "higher", "", "over the voxels of all cases together"),
    ("hd95", "HD95", "lower", "mm or px", "95th percentile of the surface distances, mean over cases"),
    ("asd", "ASD", "lower", "mm or px", "average surface distance, mean over cases"),
)
PANEL_BYTES = 3_000_000
RULES = (
    ("Split", "training, validation and test are disjoint by patient; the masks of unlabeled cases are never read"),
    ("Checkpoint", "the best on validation; the last is shown beside it; nothing is chosen on test"),
    ("Threshold", "argmax, or searched on validation where the protocol says so; a search on the test images, as "
     "in the papers' code (worth about 3 to 6 points of Dice at 5 % of GlaS), is not offered"),
    ("Interval", "mean over runs (folds and seeds) with its 90 % t interval; for one run there is none"),
    ("Difference", "paired by fold, seed and case; 95 % bootstrap interval over patients; Wilcoxon's signed-rank test "
     "over patients, Holm's correction over the methods of a data set and label fraction"),
    ("Empty masks", "both empty: Dice 1 and distance 0; one empty: Dice 0 and distance the image's diagonal"),
    ("Controls", "segmentations that learn nothing from images: what a method must beat"),
    ("Published", "pooled at 128 x 128 pixels, distances in pixels, mean of ten runs; their checkpoint and threshold "
     "were chosen on the test images; their HD95 is MedPy's, of both directions pooled, which is lower: hd95_medpy in "
     "cases.csv of the published protocol; their label fractions are of images, ours of patients where these are "
     "known"),
)  # fmt: skip


def compare(
    runs: Sequence[Run], others: Sequence[tuple[str, str]], title: str, command: str, baseline: str = "supervised"
) -> dict[str, Any]:
    """All that a report shows, in plain types.

    Args:
        runs: tested runs.
        others: name and reason of runs that have no test.
        title: title of the report.
        command: how it was made.
        baseline: method that the others are compared with.
    """
    protocols, members = protocols_of(runs)
    cells, differences, distributions, curves, pictures = [], [], [], [], []
    problems: dict[str, str] = {}
    shown: set[str] = set()
    for protocol, groups in members.items():
        tables = {key: {r.run.fold_and_seed: r.run.tables[r.key] for r in group} for key, group in groups.items()}
        for key, group in groups.items():
            where = {**dict(zip(("dataset", "labeled", "method"), key, strict=True)), "protocol": protocol}
            place = group[0].run.name.rpartition("/")[0]
            shown.update(result.run.name for result in group)
            failed = sum(name.startswith(f"{place}/") for name, _ in others)
            cells.append({**where, "name": _title(key[2]), **_cell(group), "failed": failed})
            distributions.append({**where, "dice": _case_means(tables[key].values())})
            curves += [{**where, **curve} for curve in [_curve(group)] if curve["step"]]
            pictures += [(where, group[0])] if not group[0].run.is_control else []
        differences += _differences(protocol, tables, baseline, problems)
    software = Counter(tuple(sorted((run.status.get("versions") or {}).items())) for run in runs)
    for facts in protocols if len(software) > 1 else ():
        facts["notes"].append(f"the runs were made with {len(software)} different sets of package versions")
    for facts in protocols:
        earlier = {r.run.name for group in members[facts["id"]].values() for r in group if r.run.unrecorded}
        if earlier:
            some = ", ".join(sorted(earlier)[:3]) + (" and others" if len(earlier) > 3 else "")
            facts["notes"].append(f"the test of {some} recorded no step: it may be of an earlier checkpoint")
    problems |= {
        run.name: "no run has its split, resolution and cases, so it stands beside none"
        for run in runs
        if run.name not in shown
    }
    panels = _panels(pictures, problems)
    known = software.most_common(1)[0][0] if software else tuple(versions().items())
    return {
        "title": title,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
        "software": [list(pair) for pair in known],
        "metrics": [dict(zip(("key", "name", "better", "unit", "description"), m, strict=True)) for m in METRICS],
        "protocols": protocols,
        "cells": cells,
        "published_only": _published_only(cells),
        "differences": differences,
        "ranks": _ranks(cells),
        "distributions": distributions,
        "curves": curves,
        "initialisations": _initialisations(cells),
        "panels": panels,
        "failures": [{"run": name, "error": reason} for name, reason in [*others, *problems.items()]],
        "reference": [list(rule) for rule in RULES],
    }


def _cell(group: Sequence[Result]) -> dict[str, Any]:
    """Mean and spread of one method's runs at one label fraction of one data set."""
    run = group[0].run
    values = {key: [r.summary[key] for r in group if key in r.summary] for key, *_ in METRICS}
    intervals = {key: mean_interval(numbers) for key, numbers in values.items() if numbers}
    last_key = group[0].key.replace("best-", "last-")
    last = [r.run.summaries[last_key] for r in group if last_key in r.run.summaries]
    names = names_of(run.method)
    network = group[0].key.split("-")[1] == "network"
    paper = [
        {"source": p.source, "metric": p.metric, "mean": p.mean, "ci90": _plain(p.ci90)}
        for p in published()
        if (p.dataset, p.fraction) == (run.dataset, run.fraction) and p.method in names
        if network or p.metric.endswith("_pooled")
    ]
    seconds = [s for r in group if (s := r.run.status.get("seconds")) is not None]
    return {
        "fraction": run.fraction,
        "control": run.is_control,
        "runs": len(group),
        "values": {key: numbers for key, numbers in values.items() if numbers},
        "mean": {key: interval.mean for key, interval in intervals.items()},
        "sd": {key: _plain(interval.sd) for key, interval in intervals.items()},
        "ci90": {key: _plain(interval.ci90) for key, interval in intervals.items()},
        "minutes": fmean(seconds) / 60 if seconds else None,
        "parameters": run.status.get("parameters"),
        "last": {key: fmean(summary[key] for summary in last) for key, *_ in METRICS if last and key in last[0]},
        "published": paper,
    }


def _title(method: str) -> str:
    """Name of a method on the page: what it starts from comes first."""
    name, _, start = method.partition("-from-")
    return f"{start} → {name}" if start else name


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def _case_means(tables: Iterable[CaseTable]) -> list[float]:
    """Dice of each case, its mean over the runs that tested it."""
    dice: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            dice[str(row["case"])].append(float(row["dice"]))
    return [round(fmean(values), 4) for _, values in sorted(dice.items())]


def _curve(group: Sequence[Result], points: int = 40) -> dict[str, list[float]]:
    """Validation Dice by step: mean, lowest and highest over the runs, at no more than so many steps."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for result in group:
        for step, dice in result.run.validation.items():
            by_step[step].append(dice)
    steps = sorted(by_step)
    steps = steps[:: max(1, math.ceil(len(steps) / points))]
    ends: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "low": min, "high": max}
    return {"step": list(steps), **{name: [round(f(by_step[s]), 4) for s in steps] for name, f in ends.items()}}


def _differences(
    protocol: str,
    tables: Mapping[Key, Mapping[tuple[int, int], CaseTable]],
    baseline: str,
    problems: dict[str, str],
) -> list[dict[str, Any]]:
    """Each method against the baseline, on each data set and label fraction, Holm-corrected within these."""
    rows = []
    for (dataset, labeled), keys in itertools.groupby(tables, key=lambda key: key[:2]):
        pairs = [(key, base) for key in keys if (base := _baseline(key, baseline, tables)) not in (None, key)]
        for metric in PER_CASE:
            family = []
            for key, base in pairs:
                if not tables[key].keys() & tables[base].keys():
                    continue
                try:
                    d = paired_difference(tables[key], tables[base], metric)
                except ValueError as error:  # tables that contradict each other about the patient of a case
                    problems[f"{dataset}/{key[2]}"] = printable(f"not compared with {base[2]}: {error}", 500)
                    continue
                family.append({
                    "dataset": dataset, "labeled": labeled, "protocol": protocol, "metric": metric, "method": key[2],
                    "baseline": base[2], "mean": d.mean, "low": _plain(d.low), "high": _plain(d.high),
                    "p": _plain(d.p), "patients": d.patients, "runs": d.over_runs.n,
                    "per_run_mean": d.over_runs.mean, "per_run_sd": _plain(d.over_runs.sd),
                })  # fmt: skip
            for row, p in zip(family, holm([r["p"] if r["p"] is not None else math.nan for r in family]), strict=True):
                row["p_holm"] = _plain(p)
            rows += family
    return rows


def _baseline(key: Key, baseline: str, tables: Mapping[Key, Any]) -> Key | None:
    """What a method is compared with: the baseline of that name, else that of its experiment; itself is none's."""
    dataset, labeled, method = key
    experiment = method.rpartition(" (")[2].partition(")")[0]
    candidates = ((dataset, labeled, name) for name in (baseline, f"{baseline} ({experiment})"))
    return next((candidate for candidate in candidates if candidate in tables), None)


def _ranks(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average ranks over the data sets and label fractions where every method has a result; controls left out."""
    rows = []
    for protocol in dict.fromkeys(cell["protocol"] for cell in cells):
        for metric, _, better, *_ in METRICS:
            scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
            for cell in cells:
                if cell["protocol"] == protocol and not cell["control"] and metric in cell["mean"]:
                    scores[cell["dataset"], cell["labeled"]][cell["method"]] = cell["mean"][metric]
            methods = sorted({method for row in scores.values() for method in row})
            complete = [[row[m] for m in methods] for row in scores.values() if row.keys() == set(methods)]
            if len(methods) > 1 and len(complete) > 1:
                r = average_ranks(complete, higher_is_better=better == "higher")
                rows.append({
                    "protocol": protocol, "metric": metric, "methods": methods, "ranks": list(r.ranks),
                    "critical_difference": r.critical_difference, "cells": r.cells,
                    "p_friedman": _plain(r.p_friedman), "groups": [list(group) for group in r.groups],
                })  # fmt: skip
    return rows


def _initialisations(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Methods that were run from scratch and from a first stage."""
    by_key = {(c["protocol"], c["dataset"], c["labeled"], c["method"]): c for c in cells}
    rows = []
    for (protocol, dataset, labeled, name), cell in by_key.items():
        method, _, start = name.partition("-from-")
        scratch = by_key.get((protocol, dataset, labeled, method))
        if start and scratch is not None:
            for metric, *_ in METRICS:
                if metric in cell["mean"] and metric in scratch["mean"]:
                    rows.append({
                        "dataset": dataset, "labeled": labeled, "protocol": protocol, "method": method, "start": start,
                        "metric": metric, "scratch": scratch["mean"][metric], "pretrained": cell["mean"][metric],
                    })  # fmt: skip
    return rows


def _published_only(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of the papers for data sets and fractions that we have, of methods that we have not."""
    ours = {(cell["dataset"], cell["fraction"]): cell["labeled"] for cell in cells}
    have = {(c["dataset"], c["fraction"], name) for c in cells for name in names_of(c["method"].split(" ")[0])}
    return [
        {
            "dataset": p.dataset, "labeled": ours[p.dataset, p.fraction], "fraction": p.fraction, "method": p.method,
            "source": p.source, "metric": p.metric, "mean": p.mean, "ci90": _plain(p.ci90),
        }
        for p in published()
        if (p.dataset, p.fraction) in ours and (p.dataset, p.fraction, p.method) not in have
    ]  # fmt: skip


def _panels(pictures: Sequence[tuple[Mapping[str, str], Result]], problems: dict[str, str]) -> list[dict[str, Any]]:
    """Best, median and worst case of one run of each cell, as long as there is room: each method once, then more."""
    seen: Counter[tuple[str, str, str]] = Counter()
    queue: list[tuple[int, int, Mapping[str, str], Result]] = []
    for where, result in pictures:
        key = where["protocol"], where["dataset"], where["method"]
        queue.append((seen[key], len(queue), where, result))
        seen[key] += 1
    panels, total = [], 0
    for _, _, where, result in sorted(queue, key=lambda item: item[:2]):
        try:
            content, width, height = read_picture(result.run.path, f"figures/{cases_name(result.key)}-test.png")
        except UserError as error:  # the numbers are worth a report all the same
            problems[result.run.name] = printable(f"no picture: {error}".replace(f"{result.run.path}/", ""), 500)
            continue
        total += len(content) * 4 // 3
        if total > PANEL_BYTES:
            break
        source = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        panels.append({**where, "src": source, "width": width, "height": height})
    return panels
