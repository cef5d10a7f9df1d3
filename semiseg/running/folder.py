"""The run folder: where a run lives, whether it may start, go on or is done."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from semiseg.data.splits import Split
from semiseg.errors import UserError
from semiseg.files import OPTIONS, TEMPORARY, atomic_path, parse_yaml, read_json, read_yaml, take_lock

# What changes how a run is carried out, but not what it computes.
_FREE = {
    "data": {"num_workers", "cache_dir", "cache_gb", "root", "manifest", "ignore_unlabeled"},
    "model": {"threshold"},
}
BOUND_TRAINER = (
    *("max_steps", "val_check_interval", "precision", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm"),
)
_SECTIONS = ("trainer", "model", "data")
_THREADS = threading.Lock()
PATIENCE = 30.0  # seconds to wait for another process that writes the status
_RESTORE = "restore it, or use --experiment NAME for a new run"
_MISSING = f"is missing, so the run cannot be told from others; {_RESTORE}"


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
    def note(self) -> Path:
        """Why the run ended early, for its other processes; removed at the next start."""
        return self.path / ".ended.json"

    @property
    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty before the first start.

        Raises:
            UserError: it is damaged.
        """
        try:
            status = read_json(self.path / "status.json")
        except FileNotFoundError:
            return {}
        except UserError as error:
            raise UserError(f"{error}; delete it to go on without the results of tests in it") from error
        if not isinstance(status, dict) or not isinstance(status.get("test", {}), dict):
            raise UserError(
                f"{self.path}/status.json: does not hold a run's status; delete it to go on without the results of "
                "tests in it"
            )
        return status

    @property
    def wandb_id(self) -> str:
        """Id of the run on W&B, the same at each start; a new one where `status.json` holds none."""
        known = str(self.status.get("wandb_id", ""))
        return known if re.fullmatch(r"[a-z0-9]{8}", known) else uuid.uuid4().hex[:8]

    def update_status(self, **values: Any) -> None:
        """Merge values into `status.json`, atomically, one process at a time.

        Raises:
            UserError: the run folder is gone, cannot be written, or `status.json` is damaged.
        """
        with self._locked_status() as status:
            status.update(values)

    def update_test(self, key: str, result: Mapping[str, Any]) -> None:
        """Add the result of a test to those in `status.json`.

        Args:
            key: name of the test.
            result: its summary, and which checkpoint was tested.

        Raises:
            UserError: as `update_status`.
        """
        with self._locked_status() as status:
            status["test"] = {**status.get("test", {}), key: dict(result)}

    @contextlib.contextmanager
    def _locked_status(self) -> Iterator[dict[str, Any]]:
        """The status, which is written when the block has changed it; nobody else writes it meanwhile."""
        lock = None
        if not _THREADS.acquire(timeout=PATIENCE):  # the lock below is held by the process
            raise UserError(f"{self.path}/status.json: another thread does not let go of it")
        try:
            lock = take_lock(self.path / ".status.lock", PATIENCE)
            if lock is None:
                raise UserError(f"{self.path}/status.json: another process does not let go of it; stop that process")
            status = self.status
            yield status
            status["updated"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self._write(self.path / "status.json", json.dumps(status, indent=1) + "\n")
        except OSError as error:
            if not self.path.is_dir():
                raise self.gone() from error
            raise UserError(
                f"{self.path}/status.json: cannot be written ({error.strerror}); make room, or use --runs_dir DIR"
            ) from error
        finally:
            if lock is not None:
                lock.close()
            _THREADS.release()

    def gone(self) -> UserError:
        """The error of a run whose folder was removed while it went on."""
        return UserError(
            f"run folder {self.path}: was removed while the run went on; run the same command again to start over"
        )

    def refuse_links(self) -> None:
        """Check that nothing in the folder leads elsewhere: what is written or read below it must be the run's own.

        Raises:
            UserError: a symbolic link leads out of the folder.
        """
        root = os.path.realpath(self.path)
        for folder, names, files in os.walk(self.path):
            for name in [*names, *files]:
                path = os.path.join(folder, name)
                if os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep):
                    raise UserError(f"{path}: is a link that leads out of the run folder; remove it")
            if folder == str(self.path):  # W&B links to its logs; it makes a new folder in there at each start
                names[:] = [name for name in names if name != "wandb"]

    def open(self) -> None:
        """Create the folder and take its lock, which the system releases when the process ends, however it ends.

        What a killed process left half-written is removed.

        Raises:
            UserError: the folder cannot be written, holds a link that leads elsewhere, or another process uses it.
        """
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self.refuse_links()
            self._lock = take_lock(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"run folder {self.path}: {error.strerror}; choose another place with --runs_dir DIR"
            ) from error
        if self._lock is None:
            raise UserError(f"run folder {self.path}: another process is running it; wait for it or stop it")
        for folder in (self.path, self.path / "checkpoints", self.figures):
            for half in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(".*.ckpt")):  # .*.ckpt: of earlier versions
                with contextlib.suppress(OSError):
                    half.unlink()
        self.note.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def adopt(self, config: str, split: str) -> None:
        """Write `config.yaml` and `split.json` at the first start; later, check that they ask for the same run.

        Args:
            config: whole configuration of the run that is asked for.
            split: its split, and the fingerprints of its cases.

        Raises:
            UserError: an option that changes what the run computes has another value than at the first start, the data
                have changed, or a file of the run is missing or damaged.
        """
        if self._begun:
            if changed := self.changed(config):
                key, (before, now) = next(iter(changed.items()))
                raise UserError(
                    f"run folder {self.path} holds a run with {key} {before}, not {now}"
                    f"{f' (and {len(changed) - 1} more differences)' if len(changed) > 1 else ''}; use the same "
                    "options to go on with it, --experiment NAME for a new one, or delete the folder"
                )
            self.check_split(split, "restore them, or use --experiment NAME for a new run")
        self._write(self.config, config)
        self._write(self.split, split)

    def changed(self, text: str) -> dict[str, tuple[Any, Any]]:
        """Options that change what a run computes and differ from the run's: what it has, and what a config says."""
        before, now = _bound(self.read_config()), _bound(parse_yaml(text, "configuration"))
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return {key: (before.get(key), now.get(key)) for key in keys}

    def read_config(self) -> dict[str, Any]:
        """Content of `config.yaml`.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            config = read_yaml(self.config, OPTIONS)
        except FileNotFoundError:
            raise UserError(f"{self.config}: {_MISSING}") from None
        except UserError as error:
            raise UserError(f"{error}; {_RESTORE}") from error
        if not isinstance(config, dict) or not all(isinstance(config.get(key) or {}, dict) for key in _SECTIONS):
            raise UserError(f"{self.config}: does not hold the options of a run; {_RESTORE}")
        return config

    @property
    def _begun(self) -> bool:
        """Whether there is something to go on with, or a result to keep."""
        return self.checkpoint("last").exists() or self.status.get("state") == "done"

    def check_split(self, text: str, advice: str) -> None:
        """Check that the data give the split that the run was trained on, and hold the same images and masks.

        Args:
            text: content of `split.json` as the data give it now.
            advice: what to do otherwise, the end of the error's message.

        Raises:
            UserError: they do not, or `split.json` is missing or damaged.
        """
        before, now = self.read_split(), json.loads(text)
        if before["hash"] != now["hash"]:
            raise UserError(
                f"{self.split}: the split was {before['hash']} and is {now['hash']} now: cases were added or removed "
                f"since the run began, or an option changes the split; {advice}"
            )
        for kind in ("images", "masks"):
            old, new = (content.get("content", {}).get(kind, {}) for content in (before, now))
            if differ := sorted(case for case in old.keys() & new.keys() if old[case] != new[case]):
                raise UserError(
                    f"{self.split}: case {differ[0]} has another {kind[:-1]} than when the run began "
                    f"({len(differ)} of {len(old)} {kind} differ); {advice}"
                )

    def read_split(self) -> dict[str, Any]:
        """Content of `split.json`, its hash checked.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            content = read_json(self.split)
            parts = {part.name: tuple(content[part.name]) for part in fields(Split)}
            damaged = content["hash"] != Split(**parts).hash
            damaged |= not all(isinstance(v, dict) for v in content.get("content", {}).values())
        except FileNotFoundError:
            raise UserError(f"{self.split}: {_MISSING}") from None
        except UserError as error:
            raise UserError(f"{error}; {_RESTORE}") from error
        except (TypeError, KeyError, AttributeError):
            damaged = True
        if damaged:
            raise UserError(f"{self.split}: is damaged, its hash is not that of its lists; {_RESTORE}")
        return dict(content)

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
    flat.update({f"trainer.{key}": trainer.get(key) for key in BOUND_TRAINER})
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
