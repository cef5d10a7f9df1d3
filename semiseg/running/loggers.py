"""Where numbers go: `metrics.csv` always, W&B offline unless a run asks for its server."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
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

from semiseg.errors import UserError
from semiseg.files import atomic_path, read_table


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

    def go_on(self, step: int, digest: str | None) -> None:
        """Take over the rows of the steps before `step`.

        Args:
            step: step that the run goes on from.
            digest: `digest(step)` at the time of the checkpoint; None where it was not recorded.

        Raises:
            UserError: the file is missing or damaged.
        """
        advice = "restore it, or use --experiment NAME for a new run"
        try:
            rows = [{k: v for k, v in row.items() if v != ""} for row in read_table(self.path, ["step"])]
            self.rows = [row for row in rows if int(row["step"]) < step]
        except FileNotFoundError:
            raise UserError(f"{self.path}: is missing; {advice}") from None
        except UserError as error:
            raise UserError(f"{error}; {advice}") from error
        except ValueError:
            raise UserError(f"{self.path}: holds a step that is not a number; {advice}") from None
        if digest not in (None, self.digest(step)):
            raise UserError(f"{self.path}: is not as the run left it at step {step}; {advice}")

    def digest(self, step: int) -> str:
        """Short hash of the rows of the steps before `step`."""
        rows = [sorted((key, str(value)) for key, value in row.items()) for row in self.rows if int(row["step"]) < step]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

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


def wandb_mode(asked: str | None) -> str:
    """Mode of W&B: what the run asks for, else `WANDB_MODE`, else offline; `disabled` means no W&B at all.

    Online is asked for by name only: a key that is configured on the machine sends nothing. Where the server cannot be
    reached the run is kept offline.

    Args:
        asked: the option `--wandb`.

    Raises:
        UserError: `WANDB_MODE` is none of W&B's modes.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    mode = asked or os.environ.get("WANDB_MODE") or "offline"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # their older names
    if mode not in ("online", "offline", "disabled", "shared"):
        raise UserError(f"WANDB_MODE {mode}: use online, offline or disabled")
    if mode in ("offline", "disabled"):
        return mode
    with contextlib.suppress(Exception):  # a broken configuration must not stop a run
        settings = wandb.setup().settings
        url = urlparse(settings.base_url)
        key = os.environ.get("WANDB_API_KEY") or settings.api_key or netrc(os.environ.get("NETRC")).hosts[url.netloc]
        if key and url.hostname:
            port = url.port or (443 if url.scheme == "https" else 80)
            with socket.create_connection((url.hostname, port), timeout=3):
                return mode
    return "offline"


class RunWandbLogger(WandbLogger):
    """W&B logger that keeps pictures, which show patients and name cases, to the run folder unless told otherwise.

    Args:
        images: log pictures on W&B too.
        **kwargs: as WandbLogger.
    """

    def __init__(self, images: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it at each start
        self.images = images

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures if these were asked for."""
        if self.images:
            super().log_image(key, images, step, **kwargs)


def wandb_logger(
    folder: Path, run_id: str, group: str, method: str, name: str, mode: str, images: bool
) -> tuple[WandbLogger | None, str]:
    """W&B logger that goes on with the same run at each start, with a line that says where data go; it never asks.

    Args:
        folder: run folder; offline data go to its `wandb` folder.
        run_id: id kept in `status.json`.
        group: data set and label fraction, so that a dashboard compares methods within it.
        method: job type.
        name: name within the group.
        mode: as `wandb_mode` returns it.
        images: whether pictures are logged too.

    Returns:
        The logger, or None where W&B is disabled; and the line.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "disabled":
        return None, "W&B: disabled; nothing leaves this machine"
    project = os.environ.get("WANDB_PROJECT", "semiseg")
    for attempt in dict.fromkeys((mode, "offline")):
        logger = RunWandbLogger(
            images,
            project=project,
            save_dir=str(folder.absolute()),  # the W&B process has a current folder of its own
            id=run_id,
            group=group,
            job_type=method,
            name=name,
            resume="allow",
            mode=attempt,
            log_model=False,
        )
        with contextlib.suppress(Exception):  # the server refuses the key or does not answer in time
            run = logger.experiment
            if attempt == "offline":
                return logger, f"W&B: offline, in {folder}/wandb; nothing leaves this machine"
            what = "numbers, options and pictures" if images else "numbers and options"
            return logger, f"W&B: {what} go to {run.url or wandb.setup().settings.base_url}"
    return None, "W&B: could not be started; nothing leaves this machine"


def finish_wandb(failed: bool) -> None:
    """End this process's W&B run, so that the next run in it has one of its own."""
    if wandb.run is not None:
        with contextlib.suppress(Exception):  # a lost connection must not fail a run that is done
            wandb.finish(exit_code=int(failed))
