"""Decoded arrays on disk, memory-mapped: a training step never waits for PNG or NIfTI decoding."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import UserError


def default_directory() -> Path:
    """`$SEMISEG_CACHE`, or `~/.cache/semiseg`."""
    return Path(os.environ.get("SEMISEG_CACHE") or Path.home() / ".cache" / "semiseg")


def file_state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of a file, or of every file in a folder: another state is another content."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise UserError(f"{path}: cannot be found ({error.strerror}); restore it or remove the case") from error


class ArrayCache:
    """A folder of `.npy` files, each named by a hash of its source file's state and of how it was prepared.

    A file that changed (size or modification time) or another preparation has another name, so an entry is never
    stale. Entries appear by renaming a finished file: two processes that build the same one at once both end with a
    whole file. Entries can vanish under a running process (another one trims): maps that are open stay valid.

    Args:
        directory: where to keep the entries; default `default_directory()`.
        limit_gb: size that `trim` keeps the folder under, in gigabytes, by removing what was used least recently.
    """

    def __init__(self, directory: str | Path | None = None, limit_gb: float = 50.0) -> None:
        self.directory = Path(directory) if directory else default_directory()
        self.limit_gb = limit_gb

    def key(self, source: Path, preparation: dict[str, Any]) -> str:
        """The entry's name for a source file (or folder) as it is on disk now, prepared as described."""
        entry = [file_state(source), preparation]
        return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def get(self, source: Path, preparation: dict[str, Any], build: Callable[[], np.ndarray]) -> np.ndarray:
        """The memory-mapped entry; `build` makes the array if there is none.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        path = self.directory / f"{self.key(source, preparation)}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or cut short by a full disk
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            with contextlib.suppress(OSError):  # another user's
                os.utime(path)
            return array
        array = build()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, suffix=".tmp", delete=False) as file:
                try:
                    np.save(file, array, allow_pickle=False)
                except BaseException:
                    os.unlink(file.name)
                    raise
            os.chmod(file.name, 0o644)  # temporary files are private; the cache may be shared
            os.replace(file.name, path)
        except OSError as error:
            raise UserError(
                f"cache folder {self.directory}: {error.strerror}; free space, or choose another with "
                "--data.cache_dir DIR or the variable SEMISEG_CACHE"
            ) from error
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def trim(self) -> int:
        """Remove least recently used entries until the folder is under its limit; returns the bytes left."""
        entries = []
        for path in self.directory.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_gb * 1e9:
                break
            path.unlink(missing_ok=True)
            total -= size
        for path in self.directory.glob("*.tmp"):  # left by a killed process
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        return total

    def clear(self) -> tuple[int, int]:
        """Remove every entry; returns (entries, bytes) removed."""
        count = size = 0
        for path in [*self.directory.glob("*.npy"), *self.directory.glob("*.tmp")]:
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
                path.unlink()
                count += 1
        return count, size
