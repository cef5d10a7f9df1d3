"""The table of all evaluated cases: one row per case, its summary, and its CSV file."""

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from semiseg.errors import UserError
from semiseg.escaping import from_csv, printable, to_csv
from semiseg.files import atomic_path, read_table

Row = Mapping[str, str | float]

METRICS = ("dice", "jaccard", "hd95", "asd", "hd95_medpy")
TEXTS = ("case", "patient")
OF_A_CLASS = ("dice", "jaccard", "tp", "fp", "fn", "empty")  # what each class has; distances only after a whole test


def ci90(values: Sequence[float]) -> float:
    """Half-width of the two-sided 90 % t interval of the mean; nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.95, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


class CaseTable:
    """Rows ``{"case", "patient", **case_metrics(...)}``, one per case, in the order of the case names.

    A case counts once: samplers that pad the last batch, and merging over processes, may deliver it again.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[str, Row] = {}
        self.merge(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[Row]:
        """All rows, sorted by case."""
        return [self._rows[case] for case in sorted(self._rows)]

    def add(self, row: Row) -> None:
        """Add the row of a case unless the table has one already."""
        if self._rows and row.keys() != next(iter(self._rows.values())).keys():
            raise ValueError(f"the row of case {row['case']} has other columns than the rows before it")
        self._rows.setdefault(str(row["case"]), dict(row))

    def merge(self, rows: Iterable[Row]) -> None:
        """Add many rows, such as those of another process."""
        for row in rows:
            self.add(row)

    def column(self, name: str) -> np.ndarray:
        """The numbers of one column, in the order of ``rows``."""
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def _per_class(self, name: str) -> np.ndarray:
        return np.stack([self.column(f"{name}_{class_name}") for class_name in self.class_names])

    @property
    def columns(self) -> list[str]:
        """Column names: case, patient, means over classes, then class by class as the metrics delivered them."""
        present = list(self.rows[0]) if self._rows else ["case", "patient"]
        first = ["case", "patient", *(metric for metric in METRICS if metric in present)]
        return first + [name for name in present if name not in first]

    @property
    def class_names(self) -> list[str]:
        """Foreground classes, in the order of their labels."""
        return [name.removeprefix("tp_") for name in self.columns if name.startswith("tp_")]

    @property
    def metrics(self) -> list[str]:
        """The averaged metrics that the rows have: no distances in a quick validation."""
        return [metric for metric in METRICS if metric in self.columns]

    def summary(self) -> dict[str, float | int]:
        """Means over the cases.

        Returns:
            Every metric ``m`` as ``m`` (mean over classes) and ``m_<class>``; ``dice_ci90``; ``dice_pooled`` and
            ``jaccard_pooled``, from the voxel counts summed over all cases before the ratio, then averaged over
            classes; ``num_cases``; ``num_empty``, the (case, class) pairs where prediction or reference is empty;
            ``hd95_nonempty`` and ``asd_nonempty``, the means over all other pairs (nan if there are none).
        """
        if not self._rows:
            raise ValueError("there are no cases to summarize")
        suffixes = ["", *(f"_{name}" for name in self.class_names)]
        averaged = [f"{metric}{suffix}" for metric in self.metrics for suffix in suffixes]
        result: dict[str, float | int] = {name: float(self.column(name).mean()) for name in averaged}
        result["dice_ci90"] = ci90(self.column("dice").tolist())

        tp, fp, fn = (self._per_class(count).sum(axis=1) for count in ("tp", "fp", "fn"))
        union = tp + fp + fn
        absent = union == 0  # from every prediction and every reference
        result["dice_pooled"] = float(np.where(absent, 1, 2 * tp / np.where(absent, 1, tp + union)).mean())
        result["jaccard_pooled"] = float(np.where(absent, 1, tp / np.where(absent, 1, union)).mean())

        empty = self._per_class("empty") != 0
        result["num_cases"] = len(self)
        result["num_empty"] = int(empty.sum())
        for metric in ("hd95", "asd"):
            if metric in self.metrics:
                kept = self._per_class(metric)[~empty]
                result[f"{metric}_nonempty"] = float(kept.mean()) if kept.size else math.nan
        return result

    def best_median_worst(self) -> list[tuple[str, str]]:
        """The cases of the highest, the median and the lowest Dice, each case at most once."""
        ranked = [str(row["case"]) for row in sorted(self.rows, key=lambda row: -float(row["dice"]))]
        if len(ranked) < 3:
            return list(zip(ranked, ("best", "worst"), strict=False))
        return [(ranked[0], "best"), (ranked[len(ranked) // 2], "median"), (ranked[-1], "worst")]

    def write_csv(self, path: Path | str) -> None:
        """Write all rows, numbers in full precision; a reader never sees a half-written file."""
        with atomic_path(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows({**row, **{name: to_csv(str(row[name])) for name in TEXTS}} for row in self.rows)

    @classmethod
    def read_csv(cls, path: Path | str) -> Self:
        """Read a table that ``write_csv`` wrote, and check it.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it is not a table of cases, or its numbers are out of range or contradict each other.
        """
        rows = read_table(Path(path), TEXTS)
        names = [from_csv(row["case"]) for row in rows]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path}: the case {twice[0]} is there twice")
        table = cls()
        for name, row in zip(names, rows, strict=True):
            numbers = {column: _number(path, name, column, text) for column, text in row.items() if column not in TEXTS}
            table.add({"case": name, "patient": from_csv(row["patient"]), **numbers})
        if rows:
            table._check(path)
        return table

    def _check(self, path: Path | str) -> None:
        """Complain about numbers that no test gives."""
        wanted = {"dice", "jaccard", *(f"{metric}_{name}" for name in self.class_names for metric in OF_A_CLASS)}
        wanted |= {f"{metric}_{name}" for name in self.class_names for metric in self.metrics}
        if not self.class_names or (missing := sorted(wanted - set(self.columns))):
            raise UserError(f"{path}: lacks the column(s) {', '.join(missing) if self.class_names else 'tp_CLASS'}")
        for column in self.columns[2:]:
            for row in self.rows:
                if not _possible(column, value := float(row[column])):
                    raise UserError(f"{path}: the {column} of case {row['case']} is {value:g}")
        tp, fp, fn, empty = (self._per_class(name) for name in ("tp", "fp", "fn", "empty"))
        union = np.maximum(tp + fp + fn, 1)
        absent = tp + fp + fn == 0
        kinds = np.select([absent, tp + fp == 0, tp + fn == 0], [1, 2, 3], 0)
        followed = {
            "empty": (empty, kinds),
            "dice": (self._per_class("dice"), np.where(absent, 1, 2 * tp / (tp + union))),
            "jaccard": (self._per_class("jaccard"), np.where(absent, 1, tp / union)),
            **{f"mean {metric}": (self.column(metric), self._per_class(metric).mean(0)) for metric in self.metrics},
        }
        for name, (given, made) in followed.items():
            wrong = ~np.isclose(given, made, rtol=1e-9, atol=1e-9).reshape(-1, len(self)).all(0)
            if wrong.any():
                case = self.rows[int(wrong.argmax())]["case"]
                raise UserError(f"{path}: the {name} of case {case} does not follow from its other columns")

    def print_table(self, console: Console) -> None:
        """Print the means, one line per class and one over all classes."""
        summary = self.summary()
        table = Table(
            caption=f"{summary['num_cases']} cases, {summary['num_empty']} empty; dice ± {summary['dice_ci90']:.4f} "
            f"(90 % CI), pooled {summary['dice_pooled']:.4f}"
        )
        table.add_column("class")
        for metric in self.metrics:
            table.add_column(metric, justify="right")
        for name in self.class_names:
            table.add_row(escape(printable(name)), *(f"{summary[f'{metric}_{name}']:.4f}" for metric in self.metrics))
        table.add_section()
        table.add_row("mean", *(f"{summary[metric]:.4f}" for metric in self.metrics))
        console.print(table)


def _number(path: Path | str, case: str, column: str, text: str) -> float:
    """A number of a table.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: the {column} of case {case} is not a number: {text[:40]!r}")
    return value


def _possible(column: str, value: float) -> bool:
    """Whether a column can hold a value."""
    if re.match("(dice|jaccard)(_|$)", column):
        return 0 <= value <= 1
    return value >= 0 and (value.is_integer() or not re.match("(tp|fp|fn|empty)_", column))
