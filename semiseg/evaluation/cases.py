"""The table of all evaluated cases: one row per case, its summary, and its CSV file."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from semiseg.files import atomic_path

Row = Mapping[str, str | float]

METRICS = ("dice", "jaccard", "hd95", "asd", "hd95_medpy")


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
            writer.writerows(self.rows)

    @classmethod
    def read_csv(cls, path: Path | str) -> Self:
        """Read a table that ``write_csv`` wrote."""
        with Path(path).open(newline="", encoding="utf-8") as file:
            return cls(
                {name: text if name in ("case", "patient") else float(text) for name, text in row.items()}
                for row in csv.DictReader(file)
            )

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
            table.add_row(name, *(f"{summary[f'{metric}_{name}']:.4f}" for metric in self.metrics))
        table.add_section()
        table.add_row("mean", *(f"{summary[metric]:.4f}" for metric in self.metrics))
        console.print(table)
