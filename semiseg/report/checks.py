"""The files of a run folder, read within bounds and checked: each value has its type, and the files agree."""

from __future__ import annotations

import io
import math
import os
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from semiseg.data.splits import Split
from semiseg.errors import UserError
from semiseg.evaluation.cases import CaseTable
from semiseg.files import read_bytes, read_table
from semiseg.running.results import cases_name

MAX_FILE = 16 * 2**20  # bytes; what is built from them in memory takes up to twenty times as much
MAX_PIXELS = 50_000_000  # of a picture
NUMBER = (int, float)
NAME = re.compile(r"fold-(\d{1,9})-seed-(\d{1,10})")  # of a run's folder
SAME = (
    "split",
    "num_folds",
    "fold",
    "split_seed",
    "labeled_fraction",
    "labeled_count",
)  # in split.json and config.yaml
_REQUIRED = object()


class Content:
    """A mapping from a file: what is asked of it is there and of its type, or the complaint names file and key.

    Args:
        where: file, and key of a mapping within it.
        values: the mapping.

    Raises:
        UserError: it is something else.
    """

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: {reprlib.repr(values)} is not a mapping")
        self.where = where
        self.values = values

    def get(self, key: str, *kinds: type, default: Any = _REQUIRED) -> Any:
        """A value of one of some types; where it is missing or null, the default."""
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise UserError(f"{self.where}: lacks {key}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(
                f"{self.where}: {key} is {reprlib.repr(value)}, not {' or '.join(k.__name__ for k in kinds)}"
            )
        return value

    def number(self, key: str, least: float = -math.inf, most: float = math.inf, default: Any = _REQUIRED) -> Any:
        """A number in a range; infinity and nan are none."""
        value = self.get(key, *NUMBER, default=default)
        if value is not default and not (least <= value <= most and abs(value) < 1e300):
            raise UserError(f"{self.where}: {key} is {reprlib.repr(value)}")
        return value

    def whole(self, key: str, least: int = 0, default: Any = _REQUIRED) -> Any:
        """A whole number of a sensible size."""
        self.get(key, int, default=default)
        return self.number(key, least, 2**63, default=default)

    def inner(self, key: str, default: Any = _REQUIRED) -> Content:
        """A mapping within."""
        return Content(f"{self.where}: {key}", self.get(key, dict, default=default))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.where}: {key} holds something else than texts")
        return tuple(values)


def inside(folder: Path, name: str, most: int = MAX_FILE) -> Path:
    """A file of a run folder.

    Raises:
        UserError: it is missing, larger than `most` bytes, or behind a link that leads out of the folder.
    """
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"{name}: is behind a symbolic link that leads out of the run's folder; put the file itself there"
        )
    try:
        if path.stat().st_size > most:
            raise UserError(f"{name}: is larger than {most >> 20} MiB, the limit for such a file")
    except FileNotFoundError:
        raise UserError(f"{name} is missing") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    return path


def read_content(folder: Path, name: str, read: Callable[[Path], Any]) -> Content:
    """The mapping that a file of a run folder holds.

    Raises:
        UserError: it holds none, or cannot be read.
    """
    return Content(name, read(inside(folder, name)))


def check_config(config: Content, control: bool) -> None:
    """Check what a report takes from `config.yaml`, and that its last lines are there.

    Raises:
        UserError: it is not the configuration of such a run.
    """
    if control != ("model" not in config.values):
        raise UserError("config.yaml and status.json contradict each other: is it a control, which trains no model?")
    data = config.inner("data").inner("init_args")
    data.get("split", str)
    for key, least in {"num_folds": 2, "batch_size": 1}.items():
        data.whole(key, least)
    data.whole("split_seed", -(2**63))
    data.whole("unlabeled_batch_size", default=None)
    data.inner("augmentation", default={})
    for key in ("image_size", "patch_size", "spacing"):
        sizes = data.get(key, list, default=[])
        for i in range(len(sizes)):
            Content(f"config.yaml: {key}", dict(enumerate(sizes))).number(i, 0)  # type: ignore[arg-type]
    if control:
        data.get("seed", int)
        return
    for key in ("runs_dir", "experiment"):
        config.get(key, str)
    if "labeled_epochs" not in config.values:
        raise UserError("config.yaml: lacks labeled_epochs: its end is missing")
    config.whole("labeled_epochs", 1, default=None)
    trainer = config.inner("trainer")
    trainer.whole("max_steps", -1)
    trainer.number("val_check_interval", 0)
    trainer.number("gradient_clip_val", 0, default=None)
    trainer.get("precision", str, int, default=None)
    for key in ("accumulate_grad_batches", "devices", "num_nodes"):
        trainer.get(key, int, str, list, default=None)
    network = config.inner("model").inner("init_args", default={}).inner("network", default={})
    network.inner("init_args", default={}).get("weights", str, default=None)


def check_status(status: Content) -> None:
    """Check what a report takes from `status.json` beside the tests.

    Raises:
        UserError: a value has another type.
    """
    for key in ("step", "best_step", "parameters"):
        status.whole(key, default=None)
    for key in ("seconds", "best_val_dice"):
        status.number(key, 0, default=None)
    status.get("control", bool, default=False)
    versions = status.inner("versions", default={})
    for key in versions.values:
        if not isinstance(key, str) or len(versions.get(key, str)) > 100:
            raise UserError(f"status.json: versions: {reprlib.repr(key)} is not a version")


def check_split(split: Content, path: Path, config: Content) -> None:
    """Check that `split.json` is whole, and that configuration and folder name agree with it.

    Raises:
        UserError: its hash is not that of its lists, or they contradict each other.
    """
    parts = {field.name: split.texts(field.name) for field in fields(Split)}
    if Split(**parts).hash != split.get("hash", str):
        raise UserError("split.json: its hash is not that of its lists, so one of them was changed; restore it")
    count = split.whole("labeled_count", default=None)
    labeled = f"{split.number('labeled_fraction', 0, 1):g}" if count is None else f"{count}-patients"
    name = NAME.fullmatch(path.name)
    told = (split.get("dataset", str), f"labeled-{labeled}", f"fold-{split.whole('fold')}")
    if name is None or told != (path.parts[-4], path.parts[-2], f"fold-{int(name[1])}"):
        raise UserError(f"split.json: is of {'/'.join(told)[:200]}, which is not the name of its folder; restore it")
    data = config.inner("data").inner("init_args").values
    for key in SAME:
        if key in data and data[key] != split.values.get(key):
            raise UserError(
                f"split.json and config.yaml contradict each other: {key} is {reprlib.repr(split.values.get(key))} and "
                f"{reprlib.repr(data[key])}; restore the one that was changed"
            )


def read_cases(path: Path, key: str, recorded: Content, test: Sequence[str]) -> tuple[CaseTable, dict[str, Any]]:
    """The table of cases of a test with its summary, which `status.json` must have recorded as well.

    Args:
        path: folder of the run.
        key: key of the test.
        recorded: what `status.json` says of it.
        test: test cases of the split.

    Raises:
        UserError: the table is missing or damaged, is of other cases, or has another summary.
    """
    name = f"{cases_name(key)}.csv"
    table = CaseTable.read_csv(inside(path, name))
    cases, wanted = {str(row["case"]) for row in table.rows}, set(test)
    if cases != wanted:
        some = ", ".join(sorted(cases ^ wanted)[:3])
        raise UserError(
            f"{name}: holds {len(cases & wanted)} of the {len(wanted)} test cases of split.json and "
            f"{len(cases - wanted)} others, such as {some}" if wanted else "split.json: has no test cases"
        )  # fmt: skip
    summary: dict[str, Any] = dict(table.summary())
    for metric, value in summary.items():
        said = recorded.get(metric, *NUMBER)
        if not (math.isclose(said, value, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(said) and math.isnan(value))):
            raise UserError(
                f"{name} and status.json contradict each other: {metric} of {key} is {value:.6g} and {said:.6g}; one "
                f"of them was changed: semiseg test --run {path} makes both again"
            )
    return table, summary


def read_curve(path: Path, status: Content) -> dict[int, float]:
    """Validation Dice by step.

    Raises:
        UserError: `metrics.csv` is missing or damaged, or lacks validations that `status.json` tells of.
    """
    curve: dict[int, float] = {}
    for row in read_table(inside(path, "metrics.csv"), ("step", "val/dice")):
        if text := row["val/dice"]:
            try:
                step, dice = int(row["step"]) + 1, float(text)
            except ValueError:
                step, dice = 0, math.nan
            if not (0 <= dice <= 1 and max(curve, default=0) < step < 2**63):
                raise UserError(f"metrics.csv: step {row['step'][:20]!r} with a val/dice of {text[:20]!r}")
            curve[step] = dice
    best, at, last = status.number("best_val_dice", 0, 1), status.whole("best_step"), status.whole("step")
    gap = min(curve, default=0)
    if not math.isclose(curve.get(at, -1), best, rel_tol=1e-6) or not math.isclose(
        max(curve.values()), best, rel_tol=1e-6
    ):
        raise UserError(f"metrics.csv: lacks the best validation, Dice {best:.4g} at step {at}, or has a better one")
    if list(curve) != [gap * (i + 1) for i in range(len(curve))] or not 0 <= last - max(curve) < gap:
        raise UserError(f"metrics.csv: lacks validations between the first, at step {gap}, and the end, at {last}")
    return curve


def read_picture(path: Path, name: str) -> tuple[bytes, int, int]:
    """A picture of a run as WebP of at most 640 pixels across, with its width and height.

    Raises:
        UserError: it is missing, damaged or too large.
    """
    content = read_bytes(inside(path, name))
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if math.prod(picture.size) > MAX_PIXELS:
                raise UserError(f"{name}: has {picture.width} x {picture.height} pixels")
            picture.thumbnail((640, 4096))
            picture.convert("RGB").save(file, "WEBP", quality=70)
            return file.getvalue(), picture.width, picture.height
    except UserError:
        raise
    except Exception as error:  # Pillow raises a different kind for every kind of damage
        raise UserError(f"{name}: is damaged or not a picture ({type(error).__name__})") from error
