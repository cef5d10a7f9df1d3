"""What run folders hold: tested runs, and those that failed or were not tested."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from semiseg.errors import UserError
from semiseg.evaluation.cases import CaseTable
from semiseg.running.folder import RunFolder
from semiseg.running.results import cases_name, is_result

PER_CASE = ("dice", "jaccard", "hd95", "asd")


@dataclass(frozen=True)
class Run:
    """One run folder that holds a test.

    Args:
        path: the folder, `<experiment>/<dataset>/<method>/labeled-<fraction>/fold-<k>-seed-<s>`.
        status: its `status.json`.
        config: its `config.yaml`.
        split: its `split.json`.
    """

    path: Path
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    split: Mapping[str, Any]

    @property
    def experiment(self) -> str:
        """Set of runs that it belongs to."""
        return self.path.parts[-5]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.split["dataset"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.path.parts[-3]

    @property
    def fraction(self) -> float | None:
        """Label fraction; None where patients were counted."""
        return None if self.split["labeled_count"] is not None else float(self.split["labeled_fraction"])

    @property
    def labeled(self) -> str:
        """Label fraction or count, for people."""
        if self.fraction is None:
            return f"{self.split['labeled_count']} patients"
        return f"{100 * self.fraction:g} %"

    @property
    def is_control(self) -> bool:
        """Whether it is a trivial control, which learns nothing."""
        return bool(self.status.get("control"))

    @cached_property
    def fold_and_seed(self) -> tuple[int, int]:
        """What pairs it with the runs of other methods."""
        name = _NAME.fullmatch(self.path.name)
        assert name is not None, "read_runs takes no others"
        return int(name[1]), int(name[2])

    @property
    def data(self) -> Mapping[str, Any]:
        """Options of its data set."""
        options: Mapping[str, Any] = self.config["data"]["init_args"]
        return options

    @property
    def start(self) -> str | None:
        """First stage whose weights it started from."""
        network = (self.config.get("model", {}).get("init_args") or {}).get("network") or {}
        weights = (network.get("init_args") or {}).get("weights")
        return None if weights is None else ([None] * 5 + list(Path(weights).parts))[-5] or Path(weights).stem

    @cached_property
    def recipe(self) -> str:
        """Names what may differ between methods but not between runs of one: its options, less what a run decides."""
        model = json.loads(json.dumps(self.config.get("model", {})))
        network = (model.get("init_args") or {}).get("network") or {}
        (network.get("init_args") or {}).pop("weights", None)
        clip = self.config.get("trainer", {}).get("gradient_clip_val")
        text = json.dumps([model, clip, self.start, self.data.get("augmentation")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @cached_property
    def case_list(self) -> str:
        """Names the cases of the data set, so that runs on different versions of it are told apart."""
        parts = ("labeled", "unlabeled", "validation", "test")
        names = sorted({case for part in parts for case in self.split[part]})
        return f"{len(names)} ({hashlib.sha256(json.dumps(names).encode()).hexdigest()[:6]})"

    @cached_property
    def tables(self) -> dict[str, CaseTable]:
        """The table of cases of each test of the best checkpoint, by the key of the test."""
        keys = [key for key in self.status["test"] if is_result(key)]
        return {key: CaseTable.read_csv(self.path / f"{cases_name(key)}.csv") for key in keys}

    def picture(self, key: str) -> Path:
        """Best, median and worst case of a test."""
        return self.path / "figures" / f"{cases_name(key)}-test.png"

    @cached_property
    def validation(self) -> dict[int, float]:
        """Validation Dice by step."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return {int(row["step"]) + 1: float(row["val/dice"]) for row in rows if row.get("val/dice")}

    def check(self) -> None:
        """Read all that a report needs.

        Raises:
            Exception: of any kind: something is missing or damaged.
        """
        _ = self.dataset, self.labeled, self.fold_and_seed, self.recipe, self.case_list, self.data["split"]
        if not self.is_control:
            _ = self.config["trainer"]["max_steps"], self.data["batch_size"]
        if not self.tables:
            raise ValueError("its best checkpoint was not tested")
        for key, table in self.tables.items():
            summary = self.status["test"][key]
            if len(table) != summary["num_cases"]:
                raise ValueError(f"{cases_name(key)}.csv holds {len(table)} of {summary['num_cases']} cases")
            numbers = [summary["dice"], summary["dice_pooled"], *self.validation.values()]
            for metric in PER_CASE:
                numbers += [summary[metric], *table.column(metric)]
            if not numbers or not all(map(math.isfinite, numbers)):
                raise ValueError(f"a score of {key} is not a number")


def read_runs(root: Path) -> tuple[list[Run], list[tuple[str, str]]]:
    """All tested runs below a folder, and name and reason of those that failed, wait, are damaged or were not tested.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of an experiment, such as runs/default")
    runs: dict[Any, Run] = {}
    others = []
    files = sorted(root.rglob("status.json"))
    for file in files:
        path = file.parent.absolute()
        name = "/".join(path.parts[-4:])
        try:
            run, reason = _read(path)
        except Exception as error:  # a damaged file can fail anywhere
            run, reason = None, f"cannot be read ({type(error).__name__}: {error})"
        if run is not None:
            key = (run.experiment, run.dataset, run.labeled, run.method, run.fold_and_seed, run.recipe)
            if runs.setdefault(key, run) is not run:
                reason = f"the same run as {runs[key].path}"
        if reason:
            others.append((name, reason))
    if not files:
        raise UserError(f"{root}: holds no run; give the folder of an experiment, such as runs/default")
    return list(runs.values()), others


def _read(path: Path) -> tuple[Run | None, str]:
    """The tested run of a folder, or why it has none; neither for first stages and the like, which are not tested."""
    status = RunFolder(path).status
    if not status.get("test"):
        state = status.get("state")
        if state == "failed":
            return None, str(status.get("error"))
        if state == "done" and "best_val_dice" in status:
            return None, f"not tested: semiseg test --run {path}"
        return None, f"at step {status.get('step', 0)}, running or killed" if state == "running" else ""
    if not _NAME.fullmatch(path.name) or len(path.parts) < 6:
        return None, "not a run's folder: EXPERIMENT/DATASET/METHOD/labeled-FRACTION/fold-FOLD-seed-SEED"
    config = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), _Loader)
    run = Run(path, status, config, json.loads((path / "split.json").read_text(encoding="utf-8")))
    run.check()
    return run, ""


_NAME = re.compile(r"fold-(\d+)-seed-(\d+)")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
