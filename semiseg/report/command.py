"""`semiseg report RUNS --output DIR`: one page and tables that compare all runs below a folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from semiseg.errors import OneLineParser, UserError
from semiseg.escaping import printable
from semiseg.report.comparison import compare
from semiseg.report.page import write_page
from semiseg.report.runs import read_runs
from semiseg.report.tables import write_tables


def report_command(args: Sequence[str]) -> None:
    """Write `index.html`, `results.csv`, `differences.csv`, `results.md` and `results.tex`.

    Raises:
        UserError: there is no tested run.
    """
    parser = OneLineParser("semiseg report", description="Compare runs on one page.", allow_abbrev=False)
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of an experiment, such as runs/quick_glas")
    parser.add_argument("--output", type=Path, help="folder for page and tables; default: RUNS/report")
    parser.add_argument("--baseline", default="supervised", help="method that the others are compared with")
    parser.add_argument("--title", help="default: name of the folder")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="also save the comparison as a W&B report there")
    options = parser.parse_args(args)
    runs, others = read_runs(options.runs)
    if all(run.is_control for run in runs):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in others[:3])
        raise UserError(
            f"{options.runs}: no run of a method was tested yet ({reasons or 'semiseg test --run RUN does it'})"
        )
    methods = sorted({run.method for run in runs})
    if options.baseline not in methods and options.baseline != parser.get_default("baseline"):
        raise UserError(f"--baseline {options.baseline}: no run of it; there are {', '.join(methods)}")
    title = printable(options.title or options.runs.resolve().name, 200)
    command = printable(shlex.join(["semiseg", "report", *args]))
    comparison = compare(runs, others, title, command, options.baseline)
    output = options.output or options.runs / "report"
    write_page(comparison, output / "index.html")
    write_tables(comparison, output)
    print(f"{len(runs)} runs, {len(comparison['cells'])} cells, {len(comparison['protocols'])} protocol(s)")
    if not comparison["differences"]:
        baseline = printable(options.baseline)
        print(f"no differences: no run of --baseline {baseline} has the fold and seed of another method's")
    for failure in comparison["failures"]:
        print(f"left out: {failure['run']}: {failure['error']}")
    place = printable(output)
    print(f"page: {place}/index.html\ntables: {place}/results.csv, differences.csv, results.md, results.tex")
    if options.wandb:
        from semiseg.report.workspace import save_report

        print(f"W&B report: {save_report(comparison, options.wandb)}")
