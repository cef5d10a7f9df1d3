"""The comparison as a W&B report: the same tables, and live charts of the runs that W&B has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semiseg.errors import UserError
from semiseg.report.tables import markdown_tables


def make_report(comparison: Mapping[str, Any], entity: str, project: str) -> Any:
    """A `wandb_workspaces` report, not saved yet: our tables, then a grid of charts for each data set and fraction.

    Runs are found by what every run logs (its group, data set and label fraction; `method`), so runs that are synced
    later (`wandb sync RUN/wandb/offline-run-*`) appear in it by themselves.

    Args:
        comparison: as `semiseg.report.comparison.compare` makes it.
        entity: user or team.
        project: project that the runs are in.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise UserError("--wandb needs wandb-workspaces: pip install 'semiseg[workspaces]'") from error
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("Results"),
        wr.MarkdownBlock("\n".join(markdown_tables(comparison))),
    ]
    for group in dict.fromkeys(_group(cell) for cell in comparison["cells"]):
        runs = wr.Runset(
            entity=entity, project=project, name=group, groupby=["config.method"],
            filters=expr.And(expr.Metric("Group") == group),
        )  # fmt: skip
        method: Any = wr.Config("method")
        panels = [
            wr.LinePlot(title="validation Dice", x="Step", y=["val/dice"], groupby=method, groupby_rangefunc="minmax"),
            wr.LinePlot(title="training loss", x="Step", y=["train/loss"], groupby=method, groupby_rangefunc="minmax"),
            *(
                wr.BarPlot(title=name, metrics=[metric], groupby=method, groupby_rangefunc="stddev", orientation="h")
                for metric, name in (("test/dice", "test Dice"), ("test/dice_pooled", "test Dice, pooled"))
            ),
            wr.ScatterPlot(title="cost", x=wr.SummaryMetric("_runtime"), y=wr.SummaryMetric("test/dice")),
            wr.MediaBrowser(media_keys=["figures/cases-test"], num_columns=3),
        ]
        blocks += [wr.H2(group), wr.PanelGrid(runsets=[runs], panels=panels)]
    rules = [f"{name}: {text}" for name, text in comparison["reference"]]
    blocks += [wr.H1("Protocol"), wr.UnorderedList(items=rules)]
    return wr.Report(
        entity=entity, project=project, title=comparison["title"], blocks=blocks, width="fluid",
        description=f"Made {comparison['made']} by {comparison['command']}",
    )  # fmt: skip


def _group(cell: Mapping[str, Any]) -> str:
    """W&B group of a cell's runs."""
    count = cell["labeled"].removesuffix(" patients")
    return f"{cell['dataset']}/labeled-" + (
        f"{count}-patients" if cell["fraction"] is None else f"{cell['fraction']:g}"
    )


def save_report(comparison: Mapping[str, Any], target: str) -> str:
    """Save the report on W&B; returns its address.

    Args:
        comparison: as `make_report` takes it.
        target: ENTITY/PROJECT.

    Raises:
        UserError: the target has another form, or W&B refuses or cannot be reached.
    """
    entity, slash, project = target.partition("/")
    if not (entity and slash and project):
        raise UserError(f"--wandb {target}: give ENTITY/PROJECT, as in the address of the project on W&B")
    report = make_report(comparison, entity, project)
    try:
        report.save()
    except Exception as error:  # wandb raises a different kind for every kind of refusal
        raise UserError(f"--wandb {target}: {str(error).splitlines()[0]}; page and tables were written") from error
    return str(report.url)
