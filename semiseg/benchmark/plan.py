"""From a grid to its cells: each a `semiseg fit` with its tests, or the trivial controls."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from semiseg.benchmark.grid import SCRATCH, Entry, Grid, Options
from semiseg.errors import UserError
from semiseg.files import parse_yaml
from semiseg.running.configs import config_folder, one_budget, read_config

MAX_CELLS = 20_000
MAX_STEPS = 10**9
MAX_PROCESSES = 1000


@dataclass(frozen=True)
class Cell:
    """One run of a grid and its tests.

    Args:
        folder: run folder.
        arguments: arguments of `semiseg fit`; for controls, those of the data set.
        tests: arguments of each `semiseg test`, by the key of its result.
        steps: its budget.
        digest: names what is asked for: the arguments, what the files among them hold, the tests, and the first stage.
            Where the data and the runs are is free.
        after: run folder of the first stage whose weights it starts from.
        first_stage: digest of that run.
        controls: instead of a run, score the trivial controls, in folders of their own beside this one.
        processes: number of processes that train it together, as far as its options say it.
    """

    folder: Path
    arguments: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    steps: int
    digest: str
    after: Path | None = None
    first_stage: str | None = None
    controls: bool = False
    processes: int = 1

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.folder.parts[-4]

    @property
    def method(self) -> str:
        """Name of the method, `METHOD-from-START` where it starts from a first stage."""
        return self.folder.parts[-3]

    @property
    def name(self) -> str:
        """The run within its experiment."""
        return "/".join(self.folder.parts[-4:])


class Plan:
    """The cells of a grid.

    Args:
        grid: the grid.
        runs_dir: folder that holds all experiments.
        data_dir: folder that holds the data sets' folders, instead of `data` here.
        extra: further arguments of every run, name and value in turn; first stages take only the `--data.` ones.
    """

    def __init__(self, grid: Grid, runs_dir: Path, data_dir: Path | None = None, extra: Sequence[str] = ()) -> None:
        self.grid = grid
        self.runs_dir = runs_dir
        self.data_dir = data_dir
        self.extra = tuple(extra)
        _content.cache_clear()
        _bytes.cache_clear()
        self.extra_data = tuple(a for pair in pairs(extra) if pair[0].startswith("--data.") for a in pair)

    def data_arguments(self, data: Entry) -> tuple[str, ...]:
        """What the data set of every run of an entry is made from: its file, its place, the grid's and its options.

        Raises:
            UserError: its place is to be found in `data_dir`, but its file does not say what it is called there.
        """
        root: tuple[str, ...] = ()
        if self.data_dir is not None and "data.root" not in data.options:
            usual = (read_config(data.config)["data"].get("init_args") or {}).get("root")
            if usual is None:
                raise UserError(f"--data_dir: {data.config} names no root; give the entry the option data.root")
            root = ("--data.root", str(self.data_dir / Path(usual).name))
        options = {key: value for key, value in self.grid.options.items() if key.startswith("data.")}
        lenient = ("--data.ignore_unlabeled", "true")  # methods that need masks are compared with those that do not
        own = (*_arguments({**options, **data.options}), *self.extra_data)
        return ("--config", str(data.config), *lenient, *root, *own)

    def cells(self, names: Sequence[str], labeled: Callable[[int, int, float | None], int]) -> list[Cell]:
        """All cells, first stages before what starts from them; each once.

        Args:
            names: name of each of the grid's data sets, as run folders have it.
            labeled: number of labeled images of a data set (by its place in the grid), fold and label fraction; without
                a fraction, of all training images with masks.

        Raises:
            UserError: there are too many, or two entries would share a run folder.
        """
        cells: dict[Path, Cell] = {}
        grid = self.grid
        runs = sum(len(m.labels or grid.labels) * len(m.starts or grid.starts) for m in grid.methods)
        count = (runs + len(grid.first_stages)) * len(grid.folds) * len(grid.seeds) * len(grid.data)
        if count > MAX_CELLS:
            raise UserError(f"the grid has {count} runs, and at most {MAX_CELLS} are carried out at once; split it")
        for fold, seed, (i, name) in itertools.product(grid.folds, grid.seeds, enumerate(names)):
            for cell in self._of_fold(name, grid.data[i], fold, seed, partial(labeled, i, fold)):
                if cells.setdefault(cell.folder, cell).digest != cell.digest:
                    raise UserError(
                        f"{cell.name}: two entries of the grid share this name; give one a `name` of its own"
                    )
        return list(cells.values())

    def _of_fold(
        self, name: str, data: Entry, fold: int, seed: int, labeled: Callable[[float | None], int]
    ) -> Iterator[Cell]:
        """First stages, methods and controls of a data set, fold and seed."""
        grid = self.grid
        root = self.runs_dir / grid.experiment / name
        run = f"fold-{fold}-seed-{seed}"
        place = ("--runs_dir", str(self.runs_dir), "--experiment", grid.experiment)
        common = ("--data.fold", str(fold), "--seed_everything", str(seed), *place)
        file, options = self.data_arguments(data)[:2], self.data_arguments(data)[2:]
        first = {}
        for stage in grid.first_stages.values():
            configs = (*file, "--config", str(stage.config))
            arguments = (*configs, *options, *common, "--method_name", stage.name, *_arguments(stage.options))
            folder = root / stage.name / "labeled-1" / run
            steps, digest = _steps(arguments, labeled(None)), _digest(arguments, ())
            first[stage.name] = Cell(folder, arguments, {}, steps, digest, processes=_processes(arguments))
            yield first[stage.name]
        general = {key: value for key, value in grid.options.items() if not key.startswith("data.")}
        for method in grid.methods:
            configs = (*file, "--config", str(grid.protocol), "--config", str(method.config))
            own = (*_arguments({**general, **method.options}), *self.extra)
            for label, start in itertools.product(method.labels or grid.labels, method.starts or grid.starts):
                title, before = (
                    (method.name, None) if start == SCRATCH else (f"{method.name}-from-{start}", first[start])
                )
                arguments = (*configs, *options, *common, "--method_name", title, *self._label_option(label), *own)
                searched = "-threshold" if _setting(arguments, "model.threshold") == "validation" else ""
                tests = {test + searched: _test(test) for test in grid.tests}
                digest = _digest(arguments, tests, before.digest if before else "")
                if before is not None:
                    arguments += ("--model.network.weights", str(before.folder / "checkpoints" / "last.ckpt"))
                folder = root / title / self._folder(label) / run
                steps = _steps(arguments, labeled(label))
                yield Cell(
                    folder, arguments, tests, steps, digest, after=before.folder if before else None,
                    first_stage=before.digest if before else None, processes=_processes(arguments),
                )  # fmt: skip
        if grid.controls and seed == grid.seeds[0]:
            places = dict.fromkeys(test.split("-")[1] for test in grid.tests)
            tests = {f"best-{place}": ("--data.evaluation", place) for place in places}
            for label in dict.fromkeys(label for method in grid.methods for label in method.labels or grid.labels):
                arguments = (*file, *options, "--data.fold", str(fold), *self._label_option(label))
                folder = root / "controls" / self._folder(label) / run
                yield Cell(folder, arguments, tests, 0, _digest(arguments, tests), controls=True)

    def _label_option(self, label: float) -> tuple[str, str]:
        return ("--data.labeled_count" if self.grid.counts else "--data.labeled_fraction", f"{label:g}")

    def _folder(self, label: float) -> str:
        return f"labeled-{label:g}-patients" if self.grid.counts else f"labeled-{label:g}"


def pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each argument."""
    return zip(arguments[::2], arguments[1::2], strict=True)


@cache
def _content(config: str) -> dict[str, Any]:
    """What a file holds, read once for the thousands of cells of a grid."""
    return read_config(Path(config))


@cache
def _bytes(config: str) -> bytes:
    return Path(config).read_bytes()


def _digest(arguments: Sequence[str], tests: Sequence[str] | Mapping[str, Any], before: str = "") -> str:
    """See `Cell`."""
    digest = hashlib.sha256(" ".join([before, *tests]).encode())
    for name, value in pairs(arguments):
        if name not in ("--data.root", "--runs_dir"):
            digest.update(name.encode() + (_bytes(value) if name == "--config" else value.encode()))
    return digest.hexdigest()[:12]


def _arguments(options: Options) -> tuple[str, ...]:
    """Options by their dotted names as arguments of the command line."""
    given = ((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in options.items())
    return tuple(itertools.chain.from_iterable(given))


def _test(test: str) -> tuple[str, ...]:
    checkpoint, place = test.split("-")
    return ("--checkpoint", checkpoint, "--data.evaluation", place)


def _setting(arguments: Sequence[str], key: str, default: Any = None) -> Any:
    """What some arguments set an option to, later ones winning; for options whose value is plain."""
    value = default
    for name, text in pairs(arguments):
        if name == "--config":
            inner: Any = _content(text)
            for part in key.split("."):
                inner = inner.get("init_args", inner) if isinstance(inner, dict) else {}
                inner = inner.get(part) if isinstance(inner, dict) else None
            value = value if inner is None else inner
        elif name == f"--{key}":
            try:
                value = parse_yaml(text, f"option {key}")
            except UserError as error:
                raise UserError(f"option {key}: {text!r:.100} is no value") from error
    return value


def _processes(arguments: Sequence[str]) -> int:
    """Number of processes that a run's `trainer.devices` asks for; 1 where it is left to what the machine has."""
    devices = _setting(arguments, "trainer.devices", "auto")
    if devices in (None, "auto"):
        return 1
    if isinstance(devices, str) and "," in devices:
        devices = [device for device in devices.split(",") if device.strip()]
    if isinstance(devices, str) and not devices.isdecimal():
        raise UserError(f"option trainer.devices: {devices!r:.100}; use a number, a list of devices, or auto")
    count = len(devices) if isinstance(devices, list) else devices
    if isinstance(count, bool) or not isinstance(count, int | str) or not -1 <= int(count) <= MAX_PROCESSES:
        raise UserError(f"option trainer.devices: {devices!r:.100}; use a number from 1 to {MAX_PROCESSES}, or auto")
    return max(1, int(count))


def _whole_number(arguments: Sequence[str], key: str, default: Any = None) -> int:
    value = _setting(arguments, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STEPS:
        raise UserError(f"option {key}: {value!r:.100}; use a whole number from 1 to {MAX_STEPS}")
    return value


def _steps(arguments: Sequence[str], labeled: int) -> int:
    """The budget of a run in steps."""
    arguments = one_budget(arguments)
    if _setting(arguments, "labeled_epochs") is not None:
        batch = _whole_number(arguments, "data.batch_size", 2)
        return _whole_number(arguments, "labeled_epochs") * math.ceil(labeled / batch)
    return _whole_number(("--config", str(config_folder() / "base.yaml"), *arguments), "trainer.max_steps")
