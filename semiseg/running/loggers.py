"""Where numbers go: `metrics.csv` always, W&B wherever it can."""

from __future__ import annotations

import contextlib
import csv
import os
import socket
from collections.abc import Mapping
from netrc import netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from semiseg.files import atomic_path


class MetricsCSV(Logger):
    """One row per logged step, columns as they come; rows of steps that a resumed run repeats are dropped.

    Lightning's own CSV logger deletes the file of the run that is resumed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one per run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not here: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of this step."""
        row = next((row for row in reversed(self.rows) if row["step"] == str(step)), None)
        if row is None:
            row = {"step": str(step)}
            self.rows.append(row)
        row.update({key: value for key, value in metrics.items() if key != "epoch"})

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that will be made again."""
        self.rows = [row for row in self.rows if int(row["step"]) < step]

    @rank_zero_only
    def save(self) -> None:
        """Write the whole table, atomically."""
        columns = ["step", *sorted({key for row in self.rows for key in row} - {"step"})]
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def wandb_mode() -> str:
    """`WANDB_MODE` if set; else online. What is online without a key, or out of reach of its server, is offline."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return mode
    with contextlib.suppress(Exception):  # a broken configuration must not stop a run
        settings = wandb.setup().settings
        url = urlparse(settings.base_url)
        key = os.environ.get("WANDB_API_KEY") or settings.api_key or netrc(os.environ.get("NETRC")).hosts[url.netloc]
        if key and url.hostname:
            port = url.port or (443 if url.scheme == "https" else 80)
            with socket.create_connection((url.hostname, port), timeout=3):
                return "online"
    return "offline"


def wandb_logger(folder: Path, run_id: str, group: str, method: str, name: str) -> WandbLogger | None:
    """W&B logger that goes on with the same run at each start, or None where W&B is disabled; it never asks.

    Args:
        folder: run folder; offline data go to its `wandb` folder.
        run_id: id kept in `status.json`.
        group: data set and label fraction, so that a dashboard compares methods within it.
        method: job type.
        name: name within the group.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = wandb_mode()
    if mode == "disabled":
        return None
    for attempt in (mode, "offline"):
        logger = WandbLogger(
            project=os.environ.get("WANDB_PROJECT", "semiseg"),
            save_dir=str(folder),
            id=run_id,
            group=group,
            job_type=method,
            name=name,
            resume="allow",
            mode=attempt,
            log_model=False,
        )
        with contextlib.suppress(Exception):  # the server refuses the key or does not answer in time
            _ = logger.experiment
            return logger
    return None


def finish_wandb(failed: bool) -> None:
    """End this process's W&B run, so that the next run in it has one of its own."""
    if wandb.run is not None:
        with contextlib.suppress(Exception):  # a lost connection must not fail a run that is done
            wandb.finish(exit_code=int(failed))
