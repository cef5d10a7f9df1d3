"""Checkpoints that are whole or not there, and the callback that keeps the best and the last."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from semiseg.data.preprocessing import Preprocessing
from semiseg.errors import UserError
from semiseg.files import atomic_path
from semiseg.running.folder import RunFolder
from semiseg.running.loggers import MetricsCSV
from semiseg.torch_files import UnreadableError, check_state, read_torch_file

NEEDED = {"state_dict": dict, "hyper_parameters": dict, "preprocessing": dict, "global_step": int}
OPTIONAL = {  # what a run goes on from
    "epoch": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    "pytorch-lightning_version": str,
}  # fmt: skip


_MEANS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}  # of torch's optimizers, one per parameter


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, flush to the disk, then rename: a kill or a full disk leaves the former checkpoint as it was.

    Lightning's own writer goes through a temporary file elsewhere, whose move is not atomic across file systems.
    """

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read what `load_checkpoint` has let pass, into memory.

        Raises:
            UserError: the file is missing, corrupt, or not a checkpoint of this package.
        """
        load_checkpoint(Path(path))
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save atomically.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        last = Path(path).with_name("last.ckpt")
        with atomic_path(Path(path)) as temporary:
            try:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            except (RuntimeError, OSError) as error:
                if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                    raise  # else torch's zip writer, which hides the system's error
                then = f"goes on from {last}" if last.exists() else "starts afresh, as there is no last.ckpt yet"
                raise UserError(
                    f"{path}: cannot be written ({getattr(error, 'strerror', None) or 'the disk is probably full'}); "
                    f"free space and run the same command again: it {then}"
                ) from error


def fingerprint(path: Path) -> str:
    """Short hash that names a checkpoint by its content, from the checksums that the file holds of its parts.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = sorted((part.filename, part.file_size, part.CRC) for part in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({error}); restore it, or delete the run folder to train again"
        ) from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def check_complete(folder: RunFolder, has_best: bool) -> None:
    """Check that a run that is done has left everything.

    Args:
        folder: its folder.
        has_best: whether its method has a best checkpoint.

    Raises:
        UserError: a file, or the folder, was removed since, or a checkpoint is damaged.
    """
    if not folder.path.is_dir():
        raise folder.gone()
    checkpoints = [folder.checkpoint(which) for which in ("best", "last")[not has_best :]]
    for file in (folder.config, folder.split, folder.path / "metrics.csv", *checkpoints):
        if not file.is_file():
            raise UserError(
                f"{folder.path}: the run is done but {file.relative_to(folder.path)} is missing; restore it, or delete "
                "the folder to train again"
            )
    for path in checkpoints:
        fingerprint(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package on the CPU as plain values and finite tensors; these stay in the file.

    Raises:
        UserError: the file is missing, corrupt, or not a checkpoint of this package.
    """
    try:
        checkpoint = read_torch_file(path)
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= NEEDED.keys():
            raise UserError(f"{path}: not a checkpoint of a semiseg run; give RUN/checkpoints/best.ckpt")
        for name, kind in {**NEEDED, **OPTIONAL}.items():
            value = checkpoint.get(name, kind())
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UnreadableError(f"its {name} is a {type(value).__name__}")
        check_state(checkpoint["state_dict"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; `semiseg fit` writes one after its first validation") from error
    except UnreadableError as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({error}), cut short or not made by semiseg; copy it again, or delete "
            "it and let `semiseg fit` train afresh"
        ) from error
    if checkpoint["global_step"] < 0 or not all(isinstance(name, str) for name in checkpoint["hyper_parameters"]):
        raise UserError(f"{path}: not a checkpoint of a semiseg run; give RUN/checkpoints/best.ckpt")
    try:
        Preprocessing.from_dict(checkpoint["preprocessing"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return checkpoint


def restore(model: LightningModule, path: Path) -> tuple[int, str | None]:
    """Load a checkpoint of a run into its model, before anything is changed, to see that it is one of its network.

    Returns:
        The step at which it was written, and the digest of the run's `metrics.csv` then; None in one of an earlier
        version.

    Raises:
        UserError: it is missing, damaged, or of another network.
    """
    content = load_checkpoint(path)
    model.on_load_checkpoint(content)
    try:
        model.load_state_dict(content["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        name = re.search(r'(?:size mismatch for |")([\w.]+)', str(error))
        raise UserError(
            f"{path}: belongs to another network than this run's{f' ({name[1]} differs)' if name else ''}; put the "
            f"run's own {path.name} back, or use --experiment NAME for a new run"
        ) from error
    method = str(content["hyper_parameters"].get("_class_path", "")).rpartition(".")[2]
    if method not in ("", type(model).__name__):
        raise UserError(
            f"{path}: belongs to {method}, and this run to {type(model).__name__}; put the run's own {path.name} back"
        )
    state = content.get("callbacks", {}).get("KeepBestAndLast")
    parts = ("loops", "optimizer_states", "lr_schedulers")
    if not (isinstance(state, dict) and {"best_dice", "best_step", "processes"} <= state.keys()) or not all(
        content.get(part) for part in parts
    ):
        raise UserError(f"{path}: lacks what training goes on from; restore it, or use --experiment NAME for a new run")
    digest = state.get("digest")
    return int(content["global_step"]), str(digest) if digest else None


class KeepBestAndLast(Checkpoint):
    """After each validation save `last`, and `best` where `val/dice` rose; save `last` once more at the end.

    A method without such a metric, one that pretrains, leaves `last` alone.

    `best` is written before `last`: a kill between the two leaves a `last` from before, and the repeated steps, being
    the same, write the same `best` again.

    Args:
        folder: the run's folder.
        csv: the run's table of metrics, saved with each `last`.
    """

    def __init__(self, folder: RunFolder, csv: MetricsCSV) -> None:
        self.folder = folder
        self.csv = csv
        self.best_dice: float | None = None
        self.best_step = 0
        self.saved_step = -1
        self.processes: int | None = None
        self.digest = ""
        self.start = time.monotonic() - _seconds(folder.status)

    def state_dict(self) -> dict[str, Any]:
        """What decides about the next best, how many processes share a batch, and what the table of metrics held."""
        names = ("best_dice", "best_step", "processes", "digest")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: a value is not one that was saved.
        """
        kinds = {"best_dice": (float, NoneType), "best_step": (int,), "processes": (int, NoneType)}
        if odd := [name for name, kind in kinds.items() if type(state_dict.get(name, "")) not in kind]:
            raise UserError(f"{self.folder.checkpoint('last')}: its {odd[0]} is damaged; delete it to train again")
        self.best_dice, self.best_step = state_dict["best_dice"], state_dict["best_step"]
        self.processes = state_dict["processes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a run goes on with the batches that it began with, and still has its best checkpoint."""
        if self.processes not in (None, trainer.world_size):
            raise UserError(
                f"the run began with {self.processes} process(es) and would go on with {trainer.world_size}, whose "
                f"batches together are of another size; use --trainer.devices {self.processes}"
            )
        self.processes = trainer.world_size
        _check_optimizers(trainer.optimizers, self.folder.checkpoint("last"))
        if self.best_dice is not None and trainer.is_global_zero:
            load_checkpoint(self.folder.checkpoint("best"))  # it may stay the best to the end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._save_metrics(trainer)
        if pl_module.monitor is not None:
            dice = float(trainer.callback_metrics[pl_module.monitor])  # type: ignore[index]
            if self.best_dice is None or dice > self.best_dice:
                self.best_dice, self.best_step = dice, trainer.global_step
                self._save(trainer, "best")
        self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the budget, where no validation fell on it."""
        if trainer.global_step != self.saved_step:
            self._save_metrics(trainer)
            self._save_last(trainer)

    def _save_metrics(self, trainer: Trainer) -> None:
        """Save the table first: a checkpoint whose rows are missing could not be gone on with."""
        if trainer.is_global_zero:
            self.csv.save()
            self.digest = self.csv.digest(trainer.global_step)

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, "last")
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            self.folder.update_status(state="running", **self.progress(trainer))

    def _save(self, trainer: Trainer, which: str) -> None:
        if trainer.is_global_zero and not self.folder.config.exists():
            raise self.folder.gone()
        trainer.save_checkpoint(self.folder.checkpoint(which), weights_only=False)

    def progress(self, trainer: Trainer) -> dict[str, Any]:
        """How far the run is, for `status.json`."""
        seconds = round(max(0.0, time.monotonic() - self.start), 1)
        best = {} if self.best_dice is None else {"best_step": self.best_step, "best_val_dice": self.best_dice}
        return {"step": trainer.global_step, **best, "seconds": seconds}


def _check_optimizers(optimizers: Sequence[Optimizer], path: Path) -> None:
    """Check what optimizers have taken over from a checkpoint, which torch does not look at.

    Raises:
        UserError: a running mean is not of its parameter's shape, or an option is not of its kind.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kinds = {name: isinstance(value, str) for name, value in optimizer.defaults.items()}
            if odd := [name for name, is_text in kinds.items() if isinstance(group.get(name), str) != is_text]:
                raise UserError(f"{path}: the optimizer's {odd[0]} is damaged; restore it, or use --experiment NAME")
        for parameter, state in optimizer.state.items():
            for name in _MEANS & state.keys():
                if state[name].shape != parameter.shape:
                    raise UserError(f"{path}: the optimizer's {name} is damaged; restore it, or use --experiment NAME")


def _seconds(status: Mapping[str, Any]) -> float:
    """Time that the run has taken so far; 0 where that cannot be read."""
    seconds = status.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0 else 0.0
