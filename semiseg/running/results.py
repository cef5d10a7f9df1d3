"""What a test leaves in the run folder: the table of cases, its summary, pictures of the best, median and worst."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.panels import contact_sheet, show
from semiseg.running.callbacks import panel
from semiseg.running.checkpoints import fingerprint
from semiseg.running.folder import RunFolder


def key_of(checkpoint: str, evaluation: str, searched: bool, changed: Mapping[str, Any]) -> str:
    """Name of a test: `best-native`; `last-network-threshold`; `best-native+model.num_samples=10`.

    Args:
        checkpoint: `best` or `last`, which is tested.
        evaluation: `native` or `network`, the resolution of the scores.
        searched: the threshold is searched on validation.
        changed: options that differ from the run's own.
    """
    options = (f"+{name}={re.sub(r'[^A-Za-z0-9.]+', '_', str(value))}" for name, value in changed.items())
    return "-".join([checkpoint, evaluation, *["threshold"] * searched]) + "".join(options)


def is_result(key: str) -> bool:
    """Whether a test is one of the run as it is, by its best checkpoint."""
    return key.startswith("best-") and "+" not in key


def cases_name(key: str) -> str:
    """Name of the table of cases of a test, `best-native` being `cases`, `last-network` `cases-last-network`."""
    key, plus, options = key.partition("+")
    return "-".join(["cases", *(part for part in key.split("-") if part not in ("best", "native"))]) + plus + options


def why_stale(folder: RunFolder, status: Mapping[str, Any], key: str) -> str | None:
    """Why the result of a test is not one of the checkpoint that the run has now; None where it is.

    None also for what a test of an earlier version did not record, and where the checkpoint itself was removed.

    Args:
        folder: the run's folder.
        status: content of its `status.json`.
        key: key of the test in it.
    """
    which = "best" if key.startswith("best-") else "last"
    result = status["test"][key]
    tested, now = result.get("step"), status.get("best_step" if which == "best" else "step")
    if tested is not None and tested != now:
        return f"tested at step {tested}, trained on since: its {which} checkpoint is of step {now} now"
    path = folder.checkpoint(which)
    if "checkpoint" in result and path.is_file() and fingerprint(path) != result["checkpoint"]:
        return f"its {which} checkpoint is another than the one that was tested"
    return None


class WriteResults(Callback):
    """Write `cases.csv`, pictures and the summary in `status.json` at the end of a test.

    Args:
        folder: the run's folder.
        key: of the test, see `key_of`.
        checkpoint: file that is tested.

    Attributes:
        step: step at which the checkpoint was written.
    """

    def __init__(self, folder: RunFolder, key: str, checkpoint: Path) -> None:
        self.folder = folder
        self.key = key
        self.checkpoint = checkpoint
        self.step = -1
        self.name = cases_name(self.key)

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, print and draw."""
        table: CaseTable = pl_module.cases  # type: ignore[assignment]
        table.write_csv(self.folder.path / f"{self.name}.csv")
        summary = {**table.summary(), "threshold": pl_module.decision_threshold}
        tested = {"step": self.step, "checkpoint": fingerprint(self.checkpoint)}
        self.folder.update_test(self.key, {**summary, **tested})
        table.print_table(Console(width=110))
        print(f"{summary['num_cases']} cases, {summary['num_empty']} empty masks -> {self.folder.path}/{self.name}.csv")
        if "+" in self.key:
            print("the options are not those of the run: no report takes these scores")
        self._draw(trainer, pl_module, dict(table.best_median_worst()))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, notes: dict[str, str]) -> None:
        """Predict the three cases once more: to keep every prediction of a test in memory would cost too much."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        preprocessing: Any = pl_module.preprocessing
        panels = {}
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for batch in data.evaluation_loader([data.by_name[case] for case in notes]):
                batch = pl_module.brought(batch)  # type: ignore[operator]
                predictions = pl_module.class_maps(batch)  # type: ignore[operator]
                for i, prediction in enumerate(predictions):
                    case = batch["case"][i]
                    panels[notes[case]] = panel(batch, i, prediction, preprocessing, notes[case])
        sheet = contact_sheet([panels[note] for note in notes.values()], 1)
        show(trainer, sheet, self.folder.figures, f"{self.name}-test")
