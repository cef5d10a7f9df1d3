"""What run folders hold: tested runs, and those that failed or were not tested."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from semiseg.errors import UserError
from semiseg.evaluation.cases import CaseTable
from semiseg.running.folder import RunFolder
from semiseg.running.results import cases_name


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
        _, fold, _, seed = self.path.name.split("-", 3)
        return int(fold), int(seed)

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

    def cases(self, key: str) -> CaseTable:
        """The table of cases of a test."""
        return CaseTable.read_csv(self.path / f"{cases_name(key)}.csv")

    def picture(self, key: str) -> Path:
        """Best, median and worst case of a test."""
        return self.path / "figures" / f"{cases_name(key)}-test.png"

    def validation(self) -> dict[int, float]:
        """Validation Dice by step."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            return {int(row["step"]) + 1: float(row["val/dice"]) for row in rows if row.get("val/dice")}


def read_runs(root: Path) -> tuple[list[Run], list[tuple[str, str]]]:
    """All tested runs below a folder, and name and reason of those that failed, wait or were not tested.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of an experiment, such as runs/default")
    runs, others = [], []
    files = sorted(root.rglob("status.json"))
    for file in files:
        path = file.parent.absolute()
        name = "/".join(path.parts[-4:])
        status = RunFolder(path).status
        if status.get("test") and len(path.parts) > 5 and path.name.startswith("fold-"):
            try:
                config = yaml.load((path / "config.yaml").read_text(), _Loader)
                runs.append(Run(path, status, config, json.loads((path / "split.json").read_text())))
            except (OSError, ValueError, yaml.YAMLError) as error:
                others.append((name, f"cannot be read: {error}"))
        elif status.get("state") == "failed":
            others.append((name, str(status.get("error"))))
        elif status.get("state") == "done" and "best_val_dice" in status:
            others.append((name, f"not tested: semiseg test --run {path}"))
        elif status.get("state") == "running":
            others.append((name, f"at step {status.get('step', 0)}, running or killed"))
    if not files:
        raise UserError(f"{root}: holds no run; give the folder of an experiment, such as runs/default")
    return runs, others


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
