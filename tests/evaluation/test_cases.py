"""The case table: counting, means, pooling, the interval and the CSV file."""

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from semiseg.evaluation.cases import CaseTable, ci90
from semiseg.evaluation.metrics import case_metrics

NAMES = ("background", "a", "b")


def make_row(case, prediction, target, **options):
    return {"case": case, "patient": case[:2], **case_metrics(prediction, target, NAMES, (1, 1), **options)}


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (2, 5, 9, 8), generator=generator)
    maps[0, 1] *= maps[0, 1] == 1  # case 1: no b predicted
    maps[:, 2] *= maps[:, 2] == 2  # case 2: no a at all
    return list(zip(*maps, strict=True))


@pytest.fixture
def rows(pairs):
    return [make_row(f"p{index}", *pair) for index, pair in enumerate(pairs)]


def test_means_over_cases(rows):
    summary = CaseTable(rows).summary()
    for name in ("dice", "jaccard", "hd95", "asd", "dice_a", "hd95_b"):
        assert summary[name] == pytest.approx(sum(row[name] for row in rows) / 5)
    assert summary["num_cases"] == 5
    assert summary["num_empty"] == 2
    for metric in ("hd95", "asd"):
        kept = [row[f"{metric}_{name}"] for row in rows for name in "ab" if row[f"empty_{name}"] == 0]
        assert len(kept) == 8
        assert summary[f"{metric}_nonempty"] == pytest.approx(sum(kept) / 8)
    assert summary["dice_ci90"] == pytest.approx(ci90([row["dice"] for row in rows]))


def test_pooled_overlap_is_that_of_the_concatenated_cases(pairs, rows):
    prediction, target = (torch.cat(maps) for maps in zip(*pairs, strict=True))
    together = case_metrics(prediction, target, NAMES, (1, 1), distances=False)
    summary = CaseTable(rows).summary()
    assert summary["dice_pooled"] == pytest.approx(together["dice"])
    assert summary["jaccard_pooled"] == pytest.approx(together["jaccard"])
    assert summary["dice_pooled"] != pytest.approx(summary["dice"])


def test_everything_empty():
    nothing = torch.zeros(4, 4, dtype=torch.long)
    summary = CaseTable([make_row("p", nothing, nothing)]).summary()
    assert (summary["dice_pooled"], summary["jaccard_pooled"], summary["num_empty"]) == (1, 1, 2)
    assert math.isnan(summary["hd95_nonempty"])
    assert math.isnan(summary["dice_ci90"])


def test_ci90_by_hand():
    # Mean 2, standard deviation 1, n = 3: t(0.95; 2) = 2.919986.
    assert ci90([1, 2, 3]) == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6)
    assert ci90([4, 4, 4, 4]) == 0
    assert math.isnan(ci90([1]))


def test_a_case_counts_once(rows):
    table = CaseTable(rows[:3])
    table.merge(reversed(rows))
    table.add({**rows[0], "dice": 99.0})
    assert len(table) == 5
    assert table.rows == rows  # sorted by case, the first row of a case kept
    assert table.summary() == CaseTable(reversed(rows)).summary()


def test_other_columns_are_refused(pairs, rows):
    table = CaseTable(rows)
    with pytest.raises(ValueError, match="other columns"):
        table.add(make_row("q", *pairs[0], distances=False))


def test_without_distances(pairs):
    table = CaseTable([make_row("p", *pairs[0], distances=False)])
    assert table.metrics == ["dice", "jaccard"]
    assert not [name for name in table.summary() if name.startswith(("hd95", "asd"))]


def test_csv_round_trip(rows, tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("old")
    table = CaseTable({**row, "case": row["case"] + ', "ä"\nb', "patient": "007"} for row in reversed(rows))
    table.write_csv(path)
    again = CaseTable.read_csv(path)
    assert again.rows == table.rows  # exactly, floats included
    assert again.columns == table.columns
    assert [file.name for file in tmp_path.iterdir()] == ["cases.csv"]


def test_column_order(rows, tmp_path):
    shuffled = [{key: row[key] for key in sorted(row, reverse=True)} for row in rows]
    CaseTable(shuffled).write_csv(tmp_path / "cases.csv")
    header = (tmp_path / "cases.csv").read_text().splitlines()[0].split(",")
    assert header[:6] == ["case", "patient", "dice", "jaccard", "hd95", "asd"]
    assert sorted(header) == sorted(rows[0])


def test_best_median_worst(rows):
    ranked = [{**rows[0], "case": f"c{index}", "dice": dice} for index, dice in enumerate((0.3, 0.9, 0.5, 0.1, 0.7))]
    assert CaseTable(ranked).best_median_worst() == [("c1", "best"), ("c2", "median"), ("c3", "worst")]
    assert CaseTable(ranked[:2]).best_median_worst() == [("c1", "best"), ("c0", "worst")]
    assert CaseTable(ranked[:1]).best_median_worst() == [("c0", "best")]
    assert CaseTable().best_median_worst() == []


def test_empty_table(tmp_path):
    with pytest.raises(ValueError, match="no cases"):
        CaseTable().summary()
    CaseTable().write_csv(tmp_path / "cases.csv")
    assert len(CaseTable.read_csv(tmp_path / "cases.csv")) == 0


def test_print_table(rows):
    text = io.StringIO()
    table = CaseTable(rows)
    table.print_table(Console(file=text, width=100))
    assert f"{np.mean([row['dice_a'] for row in rows]):.4f}" in text.getvalue()
    assert all(word in text.getvalue() for word in ("hd95", "mean", "5 cases", "2 empty"))
