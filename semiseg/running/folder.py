"""The run folder: where a run lives, whether it may start, go on or is done."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import yaml

from semiseg.errors import UserError
from semiseg.files import atomic_path, take_lock

# What changes how a run is carried out, but not what it computes.
_FREE = {
    "data": {"num_workers", "cache_dir", "cache_gb", "root", "manifest", "ignore_unlabeled"},
    "model": {"threshold"},
}
_BOUND_TRAINER = (
    *("max_steps", "val_check_interval", "precision", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm"),
)


class RunFolder:
    """`runs/<experiment>/<dataset>/<method>/labeled-<fraction>/fold-<k>-seed-<s>/` and its files.

    `config.yaml`, `split.json`, `metrics.csv`, `checkpoints/{best,last}.ckpt`, `cases.csv`, `figures/`, `status.json`.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def config(self) -> Path:
        """The run's whole configuration, which reproduces it."""
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        """The run's split with its hash."""
        return self.path / "split.json"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    def checkpoint(self, which: str) -> Path:
        """`best` or `last` checkpoint."""
        return self.path / "checkpoints" / f"{which}.ckpt"

    @property
    def status(self) -> dict[str, Any]:
        """What `status.json` says; empty before the first start."""
        try:
            return dict(json.loads((self.path / "status.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path}/status.json: not valid JSON; delete it to let the run go on") from error

    def update_status(self, **values: Any) -> None:
        """Merge values into `status.json`, atomically."""
        status = {**self.status, **values, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with atomic_path(self.path / "status.json") as temporary:
            temporary.write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")

    def open(self) -> None:
        """Create the folder and take its lock, which the system releases when the process ends, however it ends.

        A killed process also leaves half of the checkpoint it was writing, under another name: it is removed.

        Raises:
            UserError: the folder cannot be written, or another process is at work in it.
        """
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"run folder {self.path}: {error.strerror}; choose another place with --runs_dir DIR"
            ) from error
        if self._lock is None:
            raise UserError(f"run folder {self.path}: another process is running it; wait for it or stop it")
        for half in self.checkpoint("last").parent.glob(".*.ckpt"):
            half.unlink()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def adopt_config(self, text: str) -> None:
        """Write `config.yaml` at the first start; at a later one, check that it asks for the same run.

        Raises:
            UserError: an option that changes what the run computes has another value than at the first start.
        """
        if self.config.exists() and self._begun and (changed := self.changed(text)):
            key, (before, now) = next(iter(changed.items()))
            raise UserError(
                f"run folder {self.path} holds a run with {key} {before}, not {now}"
                f"{f' (and {len(changed) - 1} more differences)' if len(changed) > 1 else ''}; use the same options to "
                "go on with it, --experiment NAME for a new one, or delete the folder"
            )
        self._write(self.config, text)

    def changed(self, text: str) -> dict[str, tuple[Any, Any]]:
        """Options that change what a run computes and differ from the run's: what it has, and what a config says."""
        before, now = (_bound(yaml.safe_load(t)) for t in (self.config.read_text(encoding="utf-8"), text))
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return {key: (before.get(key), now.get(key)) for key in keys}

    @property
    def _begun(self) -> bool:
        """Whether there is something to go on with, or a result to keep."""
        return self.checkpoint("last").exists() or self.status.get("state") == "done"

    def adopt_split(self, text: str) -> None:
        """Write `split.json`, or check that the data still give the same split as at the first start.

        Raises:
            UserError: the data changed since.
        """
        if self._begun:  # else there is nothing to go on with
            self.check_split(text, "restore them, or use --experiment NAME for a new run")
        self._write(self.split, text)

    def check_split(self, text: str, advice: str) -> None:
        """Check that the data give the split that the run was trained on.

        Raises:
            UserError: they do not, which ends with the advice.
        """
        now = json.loads(text)["hash"]
        if self.split.exists() and (old := json.loads(self.split.read_text(encoding="utf-8"))["hash"]) != now:
            raise UserError(
                f"{self.split}: the split was {old} and is {now} now: cases were added or removed since the run began, "
                f"or an option changes the split; {advice}"
            )

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("semiseg", "torch", "lightning", "monai", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def provenance() -> dict[str, Any]:
    """Where and with what a run is carried out."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "versions": versions()}


def _bound(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide what a run computes, flat."""
    flat: dict[str, Any] = {key: config.get(key) for key in ("seed_everything", "labeled_epochs")}
    trainer = config.get("trainer") or {}
    flat.update({f"trainer.{key}": trainer.get(key) for key in _BOUND_TRAINER})
    for part in ("model", "data"):
        _flatten(config.get(part), part, flat, _FREE.get(part, set()))
    weights = flat.get("model.network.weights")  # of a run: <experiment>/.../last.ckpt, wherever the runs are
    flat["model.network.weights"] = weights and "/".join(Path(weights).parts[-7:])
    return flat


def _flatten(value: Any, prefix: str, flat: dict[str, Any], skip: set[str]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in skip:
                _flatten(inner, prefix if key == "init_args" else f"{prefix}.{key}", flat, skip)
    else:
        flat[prefix] = value
