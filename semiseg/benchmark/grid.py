"""The grid file: what is to be compared with what."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr
from typing import Any

from semiseg import methods
from semiseg.errors import UserError
from semiseg.running.configs import config_folder, read_config

Options = Mapping[str, Any]
TESTS = ("best-native", "last-native", "best-network")  # the first is the protocol's result
SCRATCH = "scratch"
CONTROLS = ("controls", "everything_foreground", "otsu", "mean_mask")  # names that run folders of controls have
KEYS = (
    *("data", "methods", "first_stages", "starts", "labeled_fraction", "labeled_count", "folds", "seeds"),
    *("protocol", "options", "tests", "controls"),
)
# What the grid itself decides, and what would send a run elsewhere than its cell's folder.
OF_THE_GRID = (
    *("seed_everything", "runs_dir", "experiment", "method_name", "config", "ckpt_path", "model.network.weights"),
    *("data", "data.class_path", "data.fold", "data.labeled_fraction", "data.labeled_count", "data.evaluation"),
)
PRINTING = ("help", "h", "print_config", "print_shtab")
MAX_NAME = 100  # characters
MAX_COUNT = 10**6  # of patients; folds are fewer
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Entry:
    """A data set, method or first stage of a grid.

    Args:
        config: its file.
        name: name in run folders and reports.
        options: options of `semiseg fit` laid over the file, by their dotted names.
        starts: for a method, the first stages that it starts from instead of the grid's.
        labels: for a method, the label fractions (or counts) instead of the grid's.
    """

    config: Path
    name: str
    options: Options
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
        protocol: file of `honest`, `published`, `published_3d` or the user's own.
        options: options of every run but those of first stages, which take only the `data` ones.
        tests: `best` or `last` checkpoint, at `native` or `network` resolution, such as `best-native`.
        controls: score everything foreground, Otsu's threshold and the mean mask as well.
    """

    experiment: str
    data: Sequence[Entry]
    methods: Sequence[Entry]
    first_stages: Mapping[str, Entry]
    starts: Sequence[str]
    labels: Sequence[float]
    counts: bool
    folds: Sequence[int]
    seeds: Sequence[int]
    protocol: Path
    options: Options
    tests: Sequence[str]
    controls: bool


def read_grid(path: Path) -> Grid:
    """Read a grid file. Under `base` it may name another, whose keys it replaces and to whose options it adds.

    Raises:
        UserError: it is missing, not YAML, or a key of it is unknown or has a value of the wrong kind.
    """
    if not path.exists():
        path = config_folder() / str(path).removeprefix("configs/")
    return _Reader(path).grid()


def check_option(where: str, key: str) -> str:
    """The short form of an option's name.

    Raises:
        UserError: the grid decides about it, or it is none of a run.
    """
    short = key.replace(".init_args", "")
    if short.rpartition(".")[2] in PRINTING:
        raise UserError(f"{where}: option {key}: prints something and runs nothing; leave it out")
    if short in OF_THE_GRID:
        raise UserError(
            f"{where}: option {key}: a grid decides that by its own keys (folds, seeds, starts, tests, ...)"
        )
    return short


class _Reader:
    """Reads a grid file; every complaint names it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = self.with_base(path)

    def fail(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}")

    def with_base(self, path: Path, depth: int = 0) -> dict[str, Any]:
        """The content of a file, laid over that of its base."""
        content = read_config(path)
        if "base" not in content:
            return content
        if depth > 5:
            raise self.fail(f"base: {path} leads back to itself")
        base = self.with_base(self.file("benchmark", content.pop("base")), depth + 1)
        options = {**self.options(base.get("options")), **self.options(content.get("options"))}
        return {**base, **content, "options": options}

    def grid(self) -> Grid:
        """The grid."""
        content = self.content
        self.check_keys("a grid", content, KEYS)
        counts = "labeled_count" in content
        if counts == ("labeled_fraction" in content):
            raise self.fail("give either labeled_fraction or labeled_count, as a list")
        label = "labeled_count" if counts else "labeled_fraction"
        first_stages = [self.entry("first_stages", item) for item in self.values(content, "first_stages", [])]
        names = [stage.name for stage in first_stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise self.fail(f"first_stages: two are named {twice[0]}; give one a `name` of its own")
        if SCRATCH in names:
            raise self.fail(f"first_stages: none can be named {SCRATCH}, which stands for no first stage")
        grid = Grid(
            experiment=self.name("file name", self.path.stem),
            data=[self.entry("data", item) for item in self.values(content, "data")],
            methods=self.methods(content, label),
            first_stages={stage.name: stage for stage in first_stages},
            starts=self.texts(content, "starts", [SCRATCH]),
            labels=self.labels(content, label),
            counts=counts,
            folds=self.numbers(content, "folds", int, 0, MAX_COUNT, [0]),
            seeds=self.numbers(content, "seeds", int, 0, MAX_SEED, [0]),
            protocol=self.file("protocol", content.get("protocol", "honest")),
            options=self.options(content.get("options")),
            tests=self.texts(content, "tests", list(TESTS)),
            controls=content.get("controls", True),
        )
        if not isinstance(grid.controls, bool):
            raise self.fail(f"controls: {grid.controls!r}; use true or false")
        for start in {*grid.starts, *(s for method in grid.methods for s in method.starts or ())} - {SCRATCH}:
            if start not in grid.first_stages:
                raise self.fail(f"starts names {start}, which is not among first_stages; use scratch for none")
        for test in grid.tests:
            if test.split("-") not in [[c, e] for c in ("best", "last") for e in ("native", "network")]:
                raise self.fail(f"tests: {test} is unknown; use best-native, best-network, last-native, ...")
        return grid

    def check_keys(self, what: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
        """Complain about a key that is not known."""
        for key in content:
            if key not in known:
                raise self.fail(f"{what}: unknown key {key}; there are {', '.join(sorted(known))}")

    def values(self, content: Mapping[str, Any], key: str, default: list[Any] | None = None) -> list[Any]:
        """A list; an empty one only where that is the default."""
        value = content.get(key, default)
        if value is None or (value == [] and default != []):
            raise self.fail(f"{key} is missing; list at least one")
        if not isinstance(value, list):
            raise self.fail(f"{key}: {repr(value)} is not a list; write [{repr(value)}]")
        return value

    def texts(self, content: Mapping[str, Any], key: str, default: list[Any] | None = None) -> list[str]:
        """A list of different names."""
        names = [str(value) for value in self.values(content, key, default)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise self.fail(f"{key}: {twice[0]:.100} occurs twice")
        return names

    def numbers(
        self, content: Mapping[str, Any], key: str, kind: type[float], least: float, most: float,
        default: list[Any] | None = None,
    ) -> list[Any]:  # fmt: skip
        """A list of different numbers in a range."""
        values = self.values(content, key, default)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | kind) or not least <= value <= most:
                what = "a whole number" if kind is int else "a number"
                raise self.fail(f"{key}: {repr(value)} is not {what} from {least:g} to {most:.10g}")
        if len(set(values)) < len(values):  # such as 1 and 1.0
            raise self.fail(f"{key}: a value occurs twice")
        return [kind(value) for value in values]

    def labels(self, content: Mapping[str, Any], key: str) -> list[Any]:
        """Label fractions, or numbers of labeled patients."""
        if key == "labeled_count":
            return self.numbers(content, key, int, 1, MAX_COUNT)
        fractions = self.numbers(content, key, float, 1e-6, 1)
        for fraction in fractions:
            if float(f"{fraction:g}") != fraction:
                raise self.fail(f"{key}: {fraction} has more than six digits, which names of run folders do not have")
        return fractions

    def name(self, where: str, value: Any) -> str:
        """A name that can be a folder's."""
        if not re.fullmatch(rf"[A-Za-z0-9][\w.+-]{{,{MAX_NAME - 1}}}", str(value)) or value in CONTROLS:
            raise self.fail(
                f"{where}: name {repr(value)}; use letters, digits and . + - _, and not {', '.join(CONTROLS)}"
            )
        return str(value)

    def options(self, value: Any) -> Options:
        """Options by their dotted names."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(f"options: {value!r}; write them as `trainer.max_steps: 1000`")
        for key, inner in value.items():
            if isinstance(inner, dict) and "." not in str(key):
                raise self.fail(
                    f"options: {key}: write options by their dotted names, {key}.{next(iter(inner), 'x')}: ..."
                )
            try:
                json.dumps(inner)
            except TypeError as error:
                raise self.fail(f"options: {key}: {inner!r} is no option's value; put it in quotes") from error
        return {check_option(str(self.path), str(key)): inner for key, inner in value.items()}

    def file(self, family: str, name: Any) -> Path:
        """The YAML file of a short name such as `uamt`, of a path from here, or of one among the shipped files."""
        shipped = config_folder()
        found = [Path(str(name)), shipped / str(name).removeprefix("configs/"), shipped / family / f"{name}.yaml"]
        for candidate in found:
            if candidate.is_file():
                return candidate.absolute()
        known = ", ".join(sorted(file.stem for file in (shipped / family).glob("*.yaml")))
        raise self.fail(f"{family} {name}: no such file; shipped are {known}")

    def entry(self, family: str, item: Any, label: str = "") -> Entry:
        """A data set, method or first stage: its file, or a mapping."""
        if not isinstance(item, dict):
            item = {"config": item}
        known = {"data": ("config", "options"), "first_stages": ("config", "name", "options")}
        self.check_keys(family, item, known.get(family, ("config", "name", "options", "starts", label)))
        if "config" not in item:
            raise self.fail(f"{family}: {item} names no config")
        config = self.file("data" if family == "data" else "method", item["config"])
        if family == "data":
            self.check_data(config, item.get("options"))
        else:
            self.check_stage(config, first=family == "first_stages")
        return Entry(
            config=config,
            name=config.stem if family == "data" else self.name(family, item.get("name", config.stem)),
            options=self.options(item.get("options")),
            starts=self.texts(item, "starts") if "starts" in item else None,
            labels=self.labels(item, label) if label in item else None,
        )

    def methods(self, content: Mapping[str, Any], label: str) -> list[Entry]:
        """The methods; the same one twice, which would count once, is a mistake."""
        entries: list[Entry] = []
        for item in self.values(content, "methods"):
            entry = self.entry("methods", item, label)
            if entry in entries:
                raise self.fail(f"methods: {entry.name} is there twice; give one other options and a `name` of its own")
            if "data.root" in entry.options:
                raise self.fail(f"methods: {entry.name}: option data.root belongs to a data set, under data")
            entries.append(entry)
        return entries

    def check_data(self, config: Path, options: Any) -> None:
        """Complain about a data set's file or options that hold anything else."""
        content = read_config(config)
        if set(content) != {"data"} or not isinstance(content["data"], dict):
            raise self.fail(f"data: {config} must hold `data:` with class_path and init_args, and nothing else")
        for key in self.options(options):
            if not key.startswith("data."):
                raise self.fail(
                    f"data: option {key}: a data set's options are data.*; put others under the grid's options"
                )

    def check_stage(self, config: Path, first: bool) -> None:
        """Complain about a first stage among the methods, or the other way round; classes of one's own are let pass."""
        model = read_config(config).get("model")
        path = str(model.get("class_path") if isinstance(model, dict) else model)
        kind = getattr(methods, path.rpartition(".")[2], None)
        if isinstance(kind, type) and issubclass(kind, methods.PretrainingMethod) != first:
            where = ("first_stages", "methods") if first else ("methods", "first_stages")
            raise self.fail(f"{where[0]}: {config.stem} ({kind.__name__}) belongs under {where[1]}")
