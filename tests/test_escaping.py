"""Text from files is shown and not obeyed."""

import csv
import io

import pytest

from semiseg.escaping import from_csv, printable, to_csv, to_latex, to_markdown
from semiseg.evaluation.cases import CaseTable


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " =1", "\n=1", "＝1", "'=1", "''@x"])
def test_a_formula_becomes_text_and_is_restored(text: str) -> None:
    assert to_csv(text) == f"'{text}"
    assert from_csv(to_csv(text)) == text


@pytest.mark.parametrize("text", ["", "a", "1-2", "a=b", "'quoted'", "''", "case_001", "ä"])
def test_other_text_stays(text: str) -> None:
    assert to_csv(text) == from_csv(text) == text


def test_names_in_a_table_of_cases_stay_equal(tmp_path) -> None:
    names = ["=1+1", "-x", "'=y", " lead", "\tx", "plain", "a,b", 'q"']
    row = {"dice": 1.0, "jaccard": 1.0, "dice_x": 1.0, "jaccard_x": 1.0, "tp_x": 1.0, "fp_x": 0.0, "fn_x": 0.0}
    table = CaseTable({"case": name, "patient": f"={name}", **row, "empty_x": 0.0} for name in names)
    table.write_csv(tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(io.StringIO(file.read())) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r", " ")]
    assert CaseTable.read_csv(tmp_path / "cases.csv").rows == table.rows


def test_numbers_stay_numbers(tmp_path) -> None:
    from semiseg.report.tables import _write_csv

    _write_csv(tmp_path / "t.csv", [{"method": "-x", "mean": -0.5}])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == ["method,mean", "'-x,-0.5"]


def test_terminals_get_no_control_characters() -> None:
    assert printable("\x1b[31mred\x07\r\n\u202e\udcff\x9b") == r"\x1b[31mred\x07\r\n\u202e\udcff\x9b"
    assert printable("Größe 5 % ± → 日本") == "Größe 5 % ± → 日本"
    assert printable("a" * 50, 10) == "a" * 9 + "…"
    assert printable(3) == "3"


def test_markdown_is_text() -> None:
    assert to_markdown("a_b|c`d*e<f>[g](h)\nhttps://x www.y.z &amp; $x$ ~~s~~ me@x") == (
        r"a\_b\|c\`d\*e\<f\>\[g\](h)\\nhttps\://x www\.y.z \&amp; \$x\$ \~\~s\~\~ me\@x"
    )


def test_latex_is_text() -> None:
    assert to_latex("[a]*_^~\\{}#$%&<>|\n") == (
        r"{[}a{]}{*}\_\textasciicircum{}\textasciitilde{}\textbackslash{}\{\}\#\$\%\&\textless{}\textgreater{}"
        r"\textbar{}\textbackslash{}n"
    )
