"""The grid file, and the cells that it stands for: each a `semiseg fit` with its tests, or the trivial controls."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from semiseg.errors import UserError
from semiseg.running.configs import config_folder, read_config

Options = Mapping[str, Any]
TESTS = ("best-native", "last-native", "best-network")  # the first is the protocol's result


@dataclass(frozen=True)
class Entry:
    """A data set, method or first stage of a grid.

    Args:
        config: its file, `configs/method/uamt.yaml`, or short `uamt`.
        name: name in run folders and reports; default: that of the file (methods and first stages).
        options: options of `semiseg fit` laid over the file, by their dotted names.
        starts: for a method, the first stages that it starts from instead of the grid's; `scratch` is none.
        labels: for a method, the label fractions (or counts) instead of the grid's.
    """

    config: Path
    name: str
    options: Options = dataclasses.field(default_factory=dict)
    starts: Sequence[str] | None = None
    labels: Sequence[float] | None = None


@dataclass(frozen=True)
class Grid:
    """A comparison. Every method is run with every start, data set, label fraction, fold and seed.

    Args:
        experiment: name of the folder below `runs` that all runs go to: that of the file.
        data: data sets.
        methods: methods.
        first_stages: pretraining methods, by name; one run of each per data set, fold and seed.
        starts: what methods start from: names of first stages, or `scratch`.
        labels: label fractions, or numbers of labeled patients.
        counts: `labels` are numbers of patients.
        folds: folds.
        seeds: seeds.
        protocol: `honest`, `published`, `published_3d` or the user's own file.
        options: options of every run but those of first stages, which take only the `data` ones.
        tests: `best` or `last` checkpoint, at `native` or `network` resolution, such as `best-native`.
        controls: score everything foreground, Otsu's threshold and the mean mask as well.
    """

    experiment: str
    data: Sequence[Entry]
    methods: Sequence[Entry]
    labels: Sequence[float]
    counts: bool
    first_stages: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
    starts: Sequence[str] = ("scratch",)
    folds: Sequence[int] = (0,)
    seeds: Sequence[int] = (0,)
    protocol: Path = Path()
    options: Options = dataclasses.field(default_factory=dict)
    tests: Sequence[str] = TESTS
    controls: bool = True


def read_grid(path: Path) -> Grid:
    """Read a grid file. Under `base` it may name another, whose keys it replaces and to whose options it adds.

    Raises:
        UserError: it is missing, not YAML, or a key of it is unknown or has a value of the wrong kind.
    """
    if not path.exists():
        path = config_folder() / str(path).removeprefix("configs/")
    content = read_config(path)
    if "base" in content:
        base = read_config(_file(path, "benchmark", content.pop("base")))
        content = {**base, **content, "options": {**(base.get("options") or {}), **(content.get("options") or {})}}
    known = {f.name for f in dataclasses.fields(Grid)} - {"experiment", "labels", "counts"}
    known |= {"labeled_fraction", "labeled_count"}
    for key in content:
        if key not in known:
            raise UserError(f"{path}: unknown key {key}; a grid has {', '.join(sorted(known))}")
    for key in ("data", "methods"):
        if not content.get(key):
            raise UserError(f"{path}: {key} is missing; list at least one")
    counts = "labeled_count" in content
    if counts == ("labeled_fraction" in content):
        raise UserError(f"{path}: give either labeled_fraction or labeled_count, as a list")
    first_stages = [_entry(path, "method", item) for item in _list(path, "first_stages", content)]
    grid = Grid(
        experiment=path.stem,
        data=[_entry(path, "data", item) for item in _list(path, "data", content)],
        methods=[_entry(path, "method", item) for item in _list(path, "methods", content)],
        first_stages={stage.name: stage for stage in first_stages},
        labels=_numbers(path, "labeled_count" if counts else "labeled_fraction", content, int if counts else float),
        counts=counts,
        starts=[str(start) for start in _list(path, "starts", content, ["scratch"])],
        folds=_numbers(path, "folds", content, int, [0]),
        seeds=_numbers(path, "seeds", content, int, [0]),
        protocol=_file(path, "protocol", content.get("protocol", "honest")),
        options=_options(path, content.get("options")),
        tests=[str(test) for test in _list(path, "tests", content, list(TESTS))],
        controls=bool(content.get("controls", True)),
    )
    for start in {*grid.starts, *(s for method in grid.methods for s in method.starts or ())} - {"scratch"}:
        if start not in grid.first_stages:
            raise UserError(f"{path}: starts names {start}, which is not among first_stages; use scratch for none")
    for test in grid.tests:
        if test.split("-") not in [[c, e] for c in ("best", "last") for e in ("native", "network")]:
            raise UserError(f"{path}: tests: {test} is unknown; use best-native, best-network, last-native, ...")
    return grid


def _list(path: Path, key: str, content: Mapping[str, Any], default: Sequence[Any] = ()) -> list[Any]:
    value = content.get(key)
    if value is None:
        return list(default)
    if not isinstance(value, list):
        raise UserError(f"{path}: {key}: {value!r} is not a list; write [{value}]")
    return value


def _numbers(path: Path, key: str, content: Mapping[str, Any], kind: type, default: Sequence[Any] = ()) -> list[Any]:
    values = _list(path, key, content, default)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | kind):
            raise UserError(f"{path}: {key}: {value!r} is not {'a whole number' if kind is int else 'a number'}")
    if len(set(values)) < len(values):
        raise UserError(f"{path}: {key}: a value occurs twice")
    return [kind(value) for value in values]


def _options(path: Path, value: Any) -> Options:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: options: {value!r}; write them as `trainer.max_steps: 1000`")
    return {str(key): inner for key, inner in value.items()}


def _file(path: Path, family: str, name: Any) -> Path:
    """The YAML file of a short name such as `uamt`, of a path from here, or of one among the shipped files."""
    found = [
        Path(str(name)),
        config_folder() / str(name).removeprefix("configs/"),
        config_folder() / family / f"{name}.yaml",
    ]
    for candidate in found:
        if candidate.is_file():
            return candidate.absolute()
    known = ", ".join(sorted(file.stem for file in (config_folder() / family).glob("*.yaml")))
    raise UserError(f"{path}: {family} {name}: no such file; shipped are {known}")


def _entry(path: Path, family: str, item: Any) -> Entry:
    if not isinstance(item, dict):
        item = {"config": item}
    fields = {"config", "name", "options", "starts", "labeled_fraction", "labeled_count"}
    for key in item:
        if key not in fields:
            raise UserError(f"{path}: {family}: unknown key {key}; an entry has {', '.join(sorted(fields))}")
    if "config" not in item:
        raise UserError(f"{path}: {family}: {item} names no config")
    config = _file(path, family, item["config"])
    labels = item.get("labeled_fraction", item.get("labeled_count"))
    return Entry(
        config=config,
        name=str(item.get("name") or config.stem),
        options=_options(path, item.get("options")),
        starts=_list(path, "starts", item) or None,
        labels=labels if labels is None else _list(path, "labeled_fraction", {"labeled_fraction": labels}),
    )


@dataclass(frozen=True)
class Cell:
    """One run of a grid and its tests.

    Args:
        folder: run folder.
        arguments: arguments of `semiseg fit`; for controls, those of the data set.
        tests: arguments of each `semiseg test`, by the key of its result.
        steps: its budget.
        after: run folder of the first stage whose weights it starts from.
        controls: instead of a run, score the trivial controls, in folders of their own beside this one.
    """

    folder: Path
    arguments: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    steps: int
    after: Path | None = None
    controls: bool = False

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

    @property
    def digest(self) -> str:
        """Names what is asked for: the arguments, and what the files among them hold. The place of the data is free."""
        digest = hashlib.sha256()
        for name, value in pairs(self.arguments):
            if name not in ("--data.root", "--runs_dir"):
                path = Path(value)
                digest.update(name.encode() + (path.read_bytes() if name == "--config" else value.encode()))
        return digest.hexdigest()[:12]


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
        self.extra_data = tuple(a for pair in pairs(extra) if pair[0].startswith("--data.") for a in pair)

    def data_arguments(self, data: Entry) -> tuple[str, ...]:
        """What the data set of every run of an entry is made from: its file, its place, its and the grid's options."""
        root: tuple[str, ...] = ()
        if self.data_dir is not None and "data.root" not in data.options:
            usual = read_config(data.config)["data"]["init_args"]["root"]
            root = ("--data.root", str(self.data_dir / Path(usual).name))
        options = {key: value for key, value in self.grid.options.items() if key.startswith("data.")}
        lenient = ("--data.ignore_unlabeled", "true")  # methods that need masks are compared with those that do not
        own = (*_arguments(data.options), *_arguments(options), *self.extra_data)
        return ("--config", str(data.config), *lenient, *root, *own)

    def cells(self, names: Sequence[str], labeled: Callable[[int, int, float], int]) -> list[Cell]:
        """All cells, first stages before what starts from them; each once.

        Args:
            names: name of each of the grid's data sets, as run folders have it.
            labeled: number of labeled images of a data set (by its place in the grid), fold and label fraction.

        Raises:
            UserError: two entries would share a run folder.
        """
        cells: dict[Path, Cell] = {}
        grid = self.grid
        for fold, seed, (i, name) in itertools.product(grid.folds, grid.seeds, enumerate(names)):
            for cell in self._of_fold(name, grid.data[i], fold, seed, partial(labeled, i, fold)):
                if cells.setdefault(cell.folder, cell).digest != cell.digest:
                    raise UserError(
                        f"{cell.name}: two entries of the grid share this name; give one a `name` of its own"
                    )
        return list(cells.values())

    def _of_fold(self, name: str, data: Entry, fold: int, seed: int, labeled: Callable[[float], int]) -> Iterator[Cell]:
        grid = self.grid
        root = self.runs_dir / grid.experiment / name
        run = f"fold-{fold}-seed-{seed}"
        place = ("--runs_dir", str(self.runs_dir), "--experiment", grid.experiment)
        common = ("--data.fold", str(fold), "--seed_everything", str(seed), *place)
        data_arguments = self.data_arguments(data)
        data_file, data_options = data_arguments[:2], data_arguments[2:]

        def cell(method: str, label: float | None, configs: Sequence[Path], *options: str, **more: Any) -> Cell:
            files = itertools.chain.from_iterable(("--config", str(config)) for config in configs)
            arguments = (*data_file, *files, *data_options, *common, "--method_name", method, *options)
            steps = _steps(arguments, 0 if label is None else labeled(label))
            folder = "labeled-1" if label is None else self._folder(label)
            return Cell(root / method / folder / run, arguments, steps=steps, **more)

        for stage in grid.first_stages.values():
            yield cell(stage.name, None, [stage.config], *_arguments(stage.options), tests={})
        for method in grid.methods:
            options = {**grid.options, **method.options}
            threshold = _setting(("--config", str(grid.protocol), *_arguments(options), *self.extra), "model.threshold")
            searched = "-threshold" if threshold == "validation" else ""
            for label, start in itertools.product(method.labels or grid.labels, method.starts or grid.starts):
                title, after = method.name, None
                weights: tuple[str, ...] = ()
                if start != "scratch":
                    title, after = f"{method.name}-from-{start}", root / start / "labeled-1" / run
                    weights = ("--model.network.weights", str(after / "checkpoints" / "last.ckpt"))
                yield cell(
                    title, label, [grid.protocol, method.config],
                    *(*self._label_option(label), *_arguments(options), *self.extra, *weights),
                    tests={test + searched: _test(test) for test in grid.tests}, after=after,
                )  # fmt: skip
        if grid.controls and seed == grid.seeds[0]:
            for label in dict.fromkeys(label for method in grid.methods for label in method.labels or grid.labels):
                arguments = (*data_arguments, "--data.fold", str(fold), *self._label_option(label))
                tests = {f"best-{place}": ("--data.evaluation", place) for place in _places(grid.tests)}
                yield Cell(root / "controls" / self._folder(label) / run, arguments, tests, 0, controls=True)

    def _label_option(self, label: float) -> tuple[str, str]:
        return ("--data.labeled_count" if self.grid.counts else "--data.labeled_fraction", f"{label:g}")

    def _folder(self, label: float) -> str:
        return f"labeled-{label:g}-patients" if self.grid.counts else f"labeled-{label:g}"


def pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each argument."""
    return zip(arguments[::2], arguments[1::2], strict=True)


def _arguments(options: Options) -> tuple[str, ...]:
    """Options by their dotted names as arguments of the command line."""
    pairs = ((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in options.items())
    return tuple(itertools.chain.from_iterable(pairs))


def _test(test: str) -> tuple[str, ...]:
    checkpoint, place = test.split("-")
    return ("--checkpoint", checkpoint, "--data.evaluation", place)


def _places(tests: Sequence[str]) -> list[str]:
    """The resolutions of some tests."""
    return list(dict.fromkeys(test.split("-")[1] for test in tests))


def _setting(arguments: Sequence[str], key: str, default: Any = None) -> Any:
    """What some arguments set an option to, later ones winning; for options whose value is plain."""
    value = default
    for name, text in pairs(arguments):
        if name == "--config":
            inner: Any = read_config(Path(text))
            for part in key.split("."):
                inner = inner.get("init_args", inner) if isinstance(inner, dict) else {}
                inner = inner.get(part) if isinstance(inner, dict) else None
            value = value if inner is None else inner
        elif name == f"--{key}":
            value = yaml.safe_load(text)
    return value


def _steps(arguments: Sequence[str], labeled: int) -> int:
    """The budget of a run in steps."""
    base = ("--config", str(config_folder() / "base.yaml"))
    epochs = _setting(arguments, "labeled_epochs")
    if epochs:
        return int(epochs) * math.ceil(labeled / int(_setting(arguments, "data.batch_size", 2)))
    return int(_setting((*base, *arguments), "trainer.max_steps"))
