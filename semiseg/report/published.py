"""The numbers of the papers, beside which ours are put."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = {"hebbian2025": "Hebbian 2025", "diffusion2025": "Diffusion teacher-student 2025", "s3net2023": "S3-Net 2023"}
DATASETS = {"LA": "leftatrium"}  # others: their name without signs
# Pooled over all pixels, at 128 x 128 (LA: its patches), distances in pixels; mean and 90 % CI of ten runs.
METRICS = {"dice": ("dice_pooled", 0.01), "jaccard": ("jaccard_pooled", 0.01), "hd95": ("hd95", 1), "asd": ("asd", 1)}
METHODS = {
    "supervised": ["Supervised"],
    "entropy_minimization": ["ADVENT", "EntropyMinimization"],  # what the first paper calls ADVENT minimises entropy
    "cct": ["CCT"],
    "uamt": ["UAMT"],
    "cps": ["CPS"],
    "urpc": ["URPC"],
    "dtc": ["DTC"],
    "diffusion_teacher_student-from-diffusion_pretrain": ["DiffusionTeacherStudent"],
}


@dataclass(frozen=True)
class Published:
    """A number of a paper, in our units.

    Args:
        source: the paper.
        dataset: data set, as our run folders name it.
        fraction: label fraction.
        method: the paper's name of the method.
        metric: our name of the metric.
        mean: mean over its runs.
        ci90: half-width of its 90 % interval.
    """

    source: str
    dataset: str
    fraction: float
    method: str
    metric: str
    mean: float
    ci90: float


@cache
def published() -> list[Published]:
    """All numbers of the papers' tables."""
    rows = []
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] in METRICS:
                metric, unit = METRICS[row["metric"]]
                rows.append(
                    Published(
                        source=SOURCES[row["paper"]],
                        dataset=DATASETS.get(row["dataset"], re.sub("[^a-z0-9]", "", row["dataset"].lower())),
                        fraction=float(row["labelled_percent"]) / 100,
                        method=row["method"],
                        metric=metric,
                        mean=float(row["mean"]) * unit,
                        ci90=float(row["ci90"] or "nan") * unit,
                    )
                )
    return rows


def names_of(method: str) -> list[str]:
    """What the papers call one of our methods; empty where they have none like it.

    `supervised-from-hebbian_swta_tsa` is their "Hebbian SWTA-TSA", with `_k50` behind it the one of that inverse
    temperature, and `linear_probe-from-...` its linear probe.
    """
    made = re.fullmatch(r"(supervised|linear_probe)-from-hebbian_(swta|hpca)_(s|tsa)(?:_k(\d+))?", method)
    if made is None:
        return METHODS.get(method, [])
    head, rule, transposed, temperature = made.groups()
    name = f"Hebbian {rule.upper()}-{transposed.upper()}"
    return [
        name
        + (" linear probe" if head == "linear_probe" else f" inverse_temperature={temperature}" if temperature else "")
    ]
