"""What run folders hold: tested runs, and those that failed, are not finished or were not tested."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.evaluation.cases import CaseTable
from semiseg.files import read_json, read_text, read_yaml
from semiseg.report.checks import (
    NAME,
    Content,
    check_config,
    check_split,
    check_status,
    read_cases,
    read_content,
    read_curve,
)
from semiseg.running.folder import RunFolder
from semiseg.running.results import cases_name, is_result, why_stale

PER_CASE = ("dice", "jaccard", "hd95", "asd")
MARKS = ("config.yaml", "status.json", "cases.csv")  # a folder that holds one of them is a run's
NOT_RUNS = ("checkpoints", "figures", "wandb")  # folders within a run's
MAX_DEPTH, MAX_FOLDERS = 16, 500_000  # below the folder of a report


@dataclass(frozen=True)
class Run:
    """One run folder that holds a test of its present best checkpoint.

    Args:
        path: the folder, `<experiment>/<dataset>/<method>/labeled-<fraction>/fold-<k>-seed-<s>`.
        status: its `status.json`.
        config: its `config.yaml`.
        split: its `split.json`.
        tables: table of cases of each test of its best checkpoint as it is, by the key of the test.
        summaries: summary of each of these tables, and of those of the last checkpoint.
        validation: validation Dice by step.
        remarks: what of it is left out, and why.
        unrecorded: a test did not record the step of its checkpoint.
    """

    path: Path
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    tables: Mapping[str, CaseTable]
    summaries: Mapping[str, Mapping[str, float]]
    validation: Mapping[int, float]
    remarks: Sequence[str] = ()
    unrecorded: bool = False

    @property
    def name(self) -> str:
        """The run within its experiment."""
        return name_of(self.path)

    @property
    def experiment(self) -> str:
        """Set of runs that it belongs to."""
        return printable(self.path.parts[-5])

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return printable(self.path.parts[-4])

    @property
    def method(self) -> str:
        """Name of the method."""
        return printable(self.path.parts[-3])

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
        name = NAME.fullmatch(self.path.name)
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
        network = ((self.config.get("model") or {}).get("init_args") or {}).get("network") or {}
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


def name_of(path: Path) -> str:
    """A run's folder within its experiment."""
    return printable("/".join(path.absolute().parts[-4:]))


def read_runs(root: Path) -> tuple[list[Run], list[tuple[str, str]]]:
    """All tested runs below a folder, and name and reason of those that failed, wait, are damaged or were not tested.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of an experiment, such as runs/default")
    runs: dict[Any, Run] = {}
    others: list[tuple[str, str]] = []
    found = False
    for path in _folders(root.absolute(), others):
        found = True
        try:
            run = _read(path)
            if run is not None:
                key = (run.experiment, run.dataset, run.labeled, run.method, run.fold_and_seed, run.recipe)
                if runs.setdefault(key, run) is not run:
                    raise UserError(f"the same run as {runs[key].path}")
        except UserError as error:
            others.append((name_of(path), printable(str(error).replace(f"{path}/", ""), 500)))
        except Exception as error:  # a damaged file can fail anywhere
            others.append((name_of(path), printable(f"cannot be read ({type(error).__name__}: {error})", 500)))
    if not found:
        raise UserError(f"{root}: holds no run; give the folder of an experiment, such as runs/default")
    others += [(run.name, printable(remark, 500)) for run in runs.values() for remark in run.remarks]
    return list(runs.values()), others


def _folders(root: Path, others: list[tuple[str, str]]) -> Iterator[Path]:
    """Folders of runs below a folder, in the order of their names; links are named and not followed.

    Raises:
        UserError: there are too many folders, or too deep ones.
    """

    def unreadable(error: OSError) -> None:
        others.append((name_of(Path(str(error.filename))), f"cannot be read ({error.strerror})"))

    for count, (folder, names, files) in enumerate(os.walk(root, onerror=unreadable)):
        path = Path(folder)
        names.sort()
        is_run = bool({*names, *files} & set(MARKS))
        if is_run:
            names[:] = [name for name in names if name not in (*NOT_RUNS, *MARKS)]
            yield path
        for name in names:
            if (path / name).is_symlink():
                others.append((name_of(path / name), "is a link to a folder, which is not followed; give that folder"))
        if count > MAX_FOLDERS or len(path.parts) - len(root.parts) > MAX_DEPTH:
            raise UserError(
                f"{root}: more than {MAX_FOLDERS} folders, or {MAX_DEPTH} deep ({printable(path, 100)}); give the "
                "folder of an experiment, such as runs/default"
            )


def _read(path: Path) -> Run | None:
    """The tested run of a folder; None for first stages and cells of controls, which are not tested.

    Raises:
        UserError: it is damaged, not finished or not tested, or its test is of another checkpoint.
    """
    status = read_content(path, "status.json", read_json)
    state, tests = status.get("state", str, default=None), status.inner("test", default={})
    check_status(status)
    if state == "failed":
        raise UserError(f"failed: {status.get('error', str, default='status.json does not say why')}")
    if state != "done":
        if state is None and not tests.values and not {"config.yaml", "cases.csv"} & set(os.listdir(path)):
            return None
        how = {"running": "running or killed", None: "status.json does not say that it is done"}.get(state, state)
        raise UserError(f"not finished: at step {status.get('step', int, default=0)}, {how}")
    keys = [key for key in tests.values if isinstance(key, str) and is_result(key)]
    again = f"semiseg test --run {path}"
    if not keys:
        if tests.values or "best_val_dice" in status.values or (path / "checkpoints/best.ckpt").exists():
            raise UserError(f"its best checkpoint was not tested: {again}")
        if any(path.glob("cases*.csv")):
            raise UserError(f"status.json records no test, though there is a table of cases: {again}")
        return None
    if not NAME.fullmatch(path.name) or len(path.parts) < 6:
        raise UserError("not a run's folder: EXPERIMENT/DATASET/METHOD/labeled-FRACTION/fold-FOLD-seed-SEED")
    results = {key: tests.inner(key) for key in keys}
    last = [key.replace("best-", "last-", 1) for key in keys]
    results |= {key: tests.inner(key) for key in last if key in tests.values}
    remarks = []
    for key, result in list(results.items()):
        result.whole("step", default=None)
        if reason := why_stale(RunFolder(path), status.values, key):
            if key in keys:
                raise UserError(f"{reason}; {again} makes its test anew")
            remarks.append(f"{cases_name(key)}: {reason}; {again} --checkpoint last makes its test anew")
            del results[key]
    return _tested(path, status, results, remarks)


def _tested(path: Path, status: Content, results: Mapping[str, Content], remarks: list[str]) -> Run:
    """A run with its tests, after a look at each of its files.

    Raises:
        UserError: one of them is missing or damaged, or they contradict each other.
    """
    control = status.get("control", bool, default=False)
    config = read_content(path, "config.yaml", _read_whole_yaml)
    check_config(config, control)
    split = read_content(path, "split.json", read_json)
    check_split(split, path, config)
    tested = {key: read_cases(path, key, result, split.texts("test")) for key, result in results.items()}
    curve: dict[int, float] = {}
    if not control:
        try:
            curve = read_curve(path, status)
        except UserError as error:
            remarks.append(f"no learning curve: {error}")
    run = Run(
        path, status.values, config.values, {"labeled_count": None, **split.values},
        {key: table for key, (table, _) in tested.items() if is_result(key)},
        {key: summary for key, (_, summary) in tested.items()},
        curve, remarks, not control and any("step" not in result.values for result in results.values()),
    )  # fmt: skip
    for metric in PER_CASE:
        for key, summary in run.summaries.items():
            if metric not in summary:
                raise UserError(f"{cases_name(key)}.csv: lacks the column {metric}")
    try:
        _ = run.recipe
    except (TypeError, ValueError) as error:
        raise UserError(f"config.yaml: holds values that are no options ({error})") from error
    return run


def _read_whole_yaml(path: Path) -> Any:
    """A YAML file that ends with a line break, as those that were cut within a line do not.

    Raises:
        UserError: it does not, or as `read_yaml`.
    """
    content = read_yaml(path)
    if not read_text(path).endswith("\n"):
        raise UserError(f"{path}: its last line is cut; restore it")
    return content
