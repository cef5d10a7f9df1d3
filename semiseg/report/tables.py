"""The tables of a comparison as CSV, Markdown and LaTeX, methods by label fractions as in the papers."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semiseg.escaping import to_csv, to_latex, to_markdown
from semiseg.files import atomic_path

COLUMNS = (("dice", "Dice"), ("dice_pooled", "pooled"), ("jaccard", "Jaccard"), ("hd95", "HD95"), ("asd", "ASD"))
SCORES = ("dice", "dice_pooled", "jaccard", "jaccard_pooled")
HIGHER = SCORES


def write_tables(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write `results.csv`, `differences.csv`, `results.md` and `results.tex`."""
    _write_csv(folder / "results.csv", list(_long(comparison["cells"])))
    _write_csv(folder / "differences.csv", comparison["differences"])
    latex = [line for own, *texts in _sections(comparison, to_latex) for line in (*_latex(own, ". ".join(texts)), "")]
    heading = [f"# {to_markdown(comparison['title'])}", ""]
    for name, lines in (("results.md", [*heading, *markdown_tables(comparison)]), ("results.tex", latex)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text("\n".join(lines), encoding="utf-8")


def markdown_tables(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table for each protocol, data set and label fraction."""
    for own, title, facts in _sections(comparison, to_markdown):
        yield from (f"## {title}", "", facts, "", *_markdown(own), "")


def _sections(
    comparison: Mapping[str, Any], escape: Callable[[object], str]
) -> Iterator[tuple[list[Mapping[str, Any]], str, str]]:
    """Cells of each protocol and data set, with a title and the protocol's facts, both escaped."""
    for protocol in comparison["protocols"]:
        facts = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in protocol["facts"])
        inside = [cell for cell in comparison["cells"] if cell["protocol"] == protocol["id"]]
        for dataset, group in itertools.groupby(inside, key=lambda cell: cell["dataset"]):
            yield list(group), f"{escape(dataset)}, protocol {protocol['id']}", facts


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: to_csv(value) if isinstance(value, str) else value for key, value in row.items()})


def _long(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per cell and metric."""
    for cell in cells:
        where = {key: cell[key] for key in ("protocol", "dataset", "labeled", "method", "runs")}
        paper = {p["metric"]: p for p in reversed(cell["published"])}
        for metric in cell["mean"]:
            yield {
                **where, "metric": metric, "mean": cell["mean"][metric], "sd": cell["sd"][metric],
                "ci90": cell["ci90"][metric], "last": cell["last"].get(metric), "minutes": cell["minutes"],
                "published": paper.get(metric, {}).get("mean"), "source": paper.get(metric, {}).get("source"),
            }  # fmt: skip


def _text(cell: Mapping[str, Any] | None, metric: str, plus_minus: str) -> str:
    """Mean and interval, overlap in percent."""
    if cell is None or metric not in cell["mean"]:
        return ""
    unit = 100 if metric in SCORES else 1
    mean, ci = cell["mean"][metric] * unit, cell["ci90"][metric]
    return f"{mean:.2f}" + (f" {plus_minus} {ci * unit:.2f}" if ci is not None else "")


def _layout(
    cells: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[str], dict[tuple[str, str], Mapping[str, Any]]]:
    """Methods, label fractions, and the cells by both; controls first."""
    methods = dict.fromkeys(cell["method"] for cell in sorted(cells, key=lambda cell: not cell["control"]))
    labels = dict.fromkeys(cell["labeled"] for cell in cells)
    return list(methods), list(labels), {(cell["method"], cell["labeled"]): cell for cell in cells}


def _places(cells: Sequence[Mapping[str, Any]], metric: str, labeled: str) -> list[str]:
    """Methods at a label fraction, the best first; controls do not compete."""
    own = [c for c in cells if c["labeled"] == labeled and metric in c["mean"] and not c["control"]]
    return [c["method"] for c in sorted(own, key=lambda c: c["mean"][metric], reverse=metric in HIGHER)]


def _markdown(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    methods, labels, by_place = _layout(cells)
    for labeled in labels:
        yield f"**{to_markdown(labeled)} labeled**"
        yield ""
        yield "| method | runs | " + " | ".join(name for _, name in COLUMNS) + " |"
        yield "|---|---:|" + "---:|" * len(COLUMNS)
        best = {metric: _places(cells, metric, labeled)[:1] for metric, _ in COLUMNS}
        for method in methods:
            cell = by_place.get((method, labeled))
            if cell is not None:
                texts = [(_text(cell, metric, "±"), method in best[metric]) for metric, _ in COLUMNS]
                shown = " | ".join(f"**{text}**" if bold else text for text, bold in texts)
                yield f"| {to_markdown(method)} | {cell['runs']} | {shown} |"
        yield ""


def _latex(cells: Sequence[Mapping[str, Any]], caption: str) -> Iterator[str]:
    """A booktabs table, one block per label fraction, best in bold and second best underlined as in the papers."""
    methods, labels, by_place = _layout(cells)
    yield r"\begin{table}"
    yield rf"\caption{{{caption}.}}"
    yield r"\begin{tabular}{l" + "r" * len(COLUMNS) + "}"
    yield r"\toprule"
    arrows = [rf"{name} $\{'uparrow' if metric in HIGHER else 'downarrow'}$" for metric, name in COLUMNS]
    yield " & ".join(["Method", *arrows]) + r" \\"
    for labeled in labels:
        yield r"\midrule"
        yield rf"\multicolumn{{{len(COLUMNS) + 1}}}{{l}}{{{to_latex(labeled)} labeled}} \\"
        order = {metric: _places(cells, metric, labeled) for metric, _ in COLUMNS}
        for method in methods:
            cell = by_place.get((method, labeled))
            if cell is None:
                continue
            entries = []
            for metric, _ in COLUMNS:
                text = _text(cell, metric, r"$\pm$")
                place = order[metric].index(method) if method in order[metric] else 9
                entries.append(
                    rf"\textbf{{{text}}}" if place == 0 else rf"\underline{{{text}}}" if place == 1 else text
                )
            yield " & ".join([to_latex(method), *entries]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"
