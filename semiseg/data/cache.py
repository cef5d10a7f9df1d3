"""Decoded arrays on disk, memory-mapped: a training step never waits for PNG or NIfTI decoding."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from semiseg.data.fingerprint import files_of, hash_of, lack_of, open_regular, short_hash, state_of
from semiseg.errors import UserError
from semiseg.files import TEMPORARY, read_bytes

MAGIC = b"semiseg\x01"  # the last byte is the version of the format
HEADER = 256  # bytes before the data: a multiple of 64, to which data are aligned
_CHUNK = 1 << 18
_DTYPES = {t.str: t for code in "?bhilqBHILQefd" for t in (np.dtype(code), np.dtype(code).newbyteorder())}
_KINDS = {
    "arrays": re.compile(r"[0-9a-f]{32}\.(array|npy)"),  # .npy: of former versions
    "fingerprints": re.compile(r"[0-9a-f]{32}\.hash"),
    "temporary files": re.compile(rf"{re.escape(TEMPORARY)}.*|tmp\w{{8}}\.tmp"),
}
_ABANDONED = {False: 3600.0, True: 86400.0}  # seconds after which a temporary file, or folder, is a killed process's


def default_directory() -> Path:
    """`$SEMISEG_CACHE`, or `~/.cache/semiseg`."""
    return Path(os.environ.get("SEMISEG_CACHE") or Path.home() / ".cache" / "semiseg")


class Entry(NamedTuple):
    """Where a verified array lies: all that is kept of it in memory."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The array, read-only; its descriptor is closed when the array is dropped.

        Raises:
            OSError, ValueError: the file has been removed, or cut short.
            UserError: there is no descriptor or memory left.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = mmap.mmap(handle, HEADER + self.size, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
        except OSError as error:
            raise lack_of(error, self.path) or error from None
        return np.ndarray(self.shape, self.dtype, content, HEADER, order=self.order)


class ArrayCache:
    """A folder of arrays, each named by a hash of its source's content and of how it was prepared.

    Another content or preparation has another name, so an entry is never stale; a data set that was moved finds its
    entries. A file holds `MAGIC`, a JSON header (key, shape, type, order, CRC-32 of the data), the header's own CRC-32
    at its end, and the data. All of it is verified when a process first uses it; an entry that is damaged is built
    again. Entries appear by renaming a finished file: two processes that build the same one at once both end with a
    whole file. Entries can vanish under a running process (another one trims): maps that are open stay valid.

    Args:
        directory: where to keep the entries; default `default_directory()`.
        limit_gb: size that `trim` keeps the folder under, in gigabytes, by removing what was used least recently.
    """

    def __init__(self, directory: str | Path | None = None, limit_gb: float = 50.0) -> None:
        self.directory = Path(directory) if directory else default_directory()
        self.limit_gb = limit_gb
        self._fingerprints: dict[str, str] = {}  # by state

    def fingerprint(self, source: Path) -> str:
        """Hash of what a file, or a DICOM folder, holds: 32 hexadecimal digits that a copy of it shares.

        The content is read once, at 1.4 GB/s (SHA-256; for GlaS less than a tenth of the time that decoding into the
        cache takes), and the hash kept under the files' state (see `state_of`) in this process and in the folder, where
        it is found in 0.1 ms.
        While the state is not settled (a file changed in the last two seconds or has a time ahead of the clock), the
        content is read at each call. What replaces a file is so always noticed, but for file systems that keep no
        time of change, or file servers that make up inodes and times.

        Raises:
            UserError: a file is missing, cannot be read, or changes meanwhile.
        """
        files = files_of(source)
        state, settled = state_of(files)
        if settled and (known := self._fingerprints.get(state) or self._read_fingerprint(state)):
            self._fingerprints[state] = known
            return known
        found = hash_of(files)
        if state_of(files)[0] != state:
            raise UserError(f"{source}: changes while it is read; wait until it is complete")
        if settled:
            self._fingerprints[state] = found
            with contextlib.suppress(OSError):  # read-only, or full: it is read again by the next process
                self._write(self.directory / f"{state}.hash", f"{found} {_check(state, found)}\n".encode())
        return found

    def _read_fingerprint(self, state: str) -> str | None:
        path = self.directory / f"{state}.hash"
        with contextlib.suppress(FileNotFoundError, UserError, ValueError):
            found, check = read_bytes(path, limit=_CHUNK).decode("ascii").split()
            if check == _check(state, found):
                _touch(path)
                return found
        return None

    def key(self, source: Path, preparation: dict[str, Any]) -> str:
        """The entry's name for the present content of a source file (or folder), prepared as described."""
        return short_hash([self.fingerprint(source), source.suffix.lower(), preparation])

    def find(self, source: Path, preparation: dict[str, Any], build: Callable[[], np.ndarray]) -> Entry:
        """The verified entry; `build` makes the array where there is none or it is damaged.

        Raises:
            UserError: the source cannot be read, or changes meanwhile; the folder cannot be written, or the disk is
                full; there is no descriptor or memory left.
            ValueError: the array is not of plain numbers.
        """
        key = self.key(source, preparation)
        path = self.directory / f"{key}.array"
        if (entry := self._verify(path)) is not None:
            _touch(path)
            return entry
        array = build()
        if self.key(source, preparation) != key:
            raise UserError(f"{source}: changes while it is read; wait until it is complete")
        order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        data = np.ascontiguousarray(array.T if order == "F" else array).data
        facts = {"key": key, "shape": array.shape, "dtype": array.dtype.str, "order": order, "crc": zlib.crc32(data)}
        head = (MAGIC + json.dumps(facts).encode()).ljust(HEADER - 4)
        if facts["dtype"] not in _DTYPES or len(head) != HEADER - 4:
            raise ValueError(f"an array of {array.dtype} with shape {array.shape} cannot be cached")
        try:
            self._write(path, head, zlib.crc32(head).to_bytes(4, "little"), data)
        except OSError as error:
            raise lack_of(error, path) or UserError(
                f"cache folder {self.directory}: {error.strerror}; free space, or choose another with "
                "--data.cache_dir DIR or the variable SEMISEG_CACHE"
            ) from error
        return Entry(str(path), array.shape, _DTYPES[array.dtype.str], order)

    def _verify(self, path: Path) -> Entry | None:
        """The entry at a path, read as a whole and checked; None where there is none or it is damaged."""
        try:
            with open_regular(path) as file:
                head, size = file.read(HEADER), os.fstat(file.fileno()).st_size
                if head[: len(MAGIC)] != MAGIC or zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
                    return None
                facts = json.loads(head[len(MAGIC) : -4])
                entry = Entry(str(path), tuple(facts["shape"]), _DTYPES[facts["dtype"]], facts["order"])
                whole = all(type(n) is int and n >= 0 for n in entry.shape) and entry.order in ("C", "F")
                if not whole or facts["key"] != path.stem or size != HEADER + entry.size:
                    return None
                check = 0
                while chunk := file.read(_CHUNK):
                    check = zlib.crc32(chunk, check)
                return entry if check == facts["crc"] else None
        except OSError as error:
            if lack := lack_of(error, path):
                raise lack from error
        except (ValueError, LookupError, TypeError):  # a header of another program
            pass
        return None

    def _write(self, path: Path, *parts: bytes | memoryview) -> None:
        """Write beside and rename; once more where the beginnings were removed by `clear`."""
        for last in (False, True):
            name = None
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.directory, prefix=TEMPORARY, suffix=path.suffix)
                with os.fdopen(handle, "wb") as file:
                    for part in parts:
                        file.write(part)
                os.chmod(name, 0o644)  # temporary files are private; the cache may be shared
                os.replace(name, path)
                return
            except FileNotFoundError:
                if last:
                    raise
            except BaseException:
                if name is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(name)
                raise

    def files(self) -> Iterator[tuple[str, os.DirEntry[str], os.stat_result]]:
        """What the folder holds of the cache: arrays, fingerprints and temporary files, each with its state.

        Raises:
            UserError: the folder cannot be listed.
        """
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    for kind, pattern in _KINDS.items():
                        if pattern.fullmatch(entry.name):
                            with contextlib.suppress(FileNotFoundError):
                                yield kind, entry, entry.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise lack_of(error, self.directory) or UserError(
                f"cache folder {self.directory}: {error.strerror}; choose another with --data.cache_dir DIR"
            ) from error

    def trim(self) -> int:
        """Remove least recently used entries until the folder is under its limit; returns the bytes left.

        A file whose time is ahead of the clock, which must have been set back, counts as used now.
        """
        now, total = time.time(), 0
        for kind, entry, status in self.files():
            if status.st_mtime > now:
                _touch(entry.path)
            elif kind == "temporary files" and now - status.st_mtime > _ABANDONED[entry.is_dir(follow_symlinks=False)]:
                _remove(entry.path)
            total += status.st_size if kind != "temporary files" else 0
        limit = self.limit_gb * 1e9
        used = self.files() if total > limit else ()
        for _, size, path in sorted(
            (s.st_mtime, s.st_size, e.path) for kind, e, s in used if kind != "temporary files"
        ):
            if total <= limit:
                break
            if _remove(path):
                total -= size
        return total

    def clear(self) -> dict[str, tuple[int, int]]:
        """Remove all of it; returns (number, bytes) of each kind that was removed."""
        return self.count(_remove)

    def count(self, which: Callable[[str], bool] = lambda path: True) -> dict[str, tuple[int, int]]:
        """Number and bytes of each kind of file, of those that are asked for."""
        counts = dict.fromkeys(_KINDS, (0, 0))
        for kind, entry, status in self.files():
            if which(entry.path):
                counts[kind] = (counts[kind][0] + 1, counts[kind][1] + status.st_size)
        return counts


def _check(state: str, found: str) -> str:
    return f"{zlib.crc32(f'{state} {found}'.encode()):08x}"


def _touch(path: str | Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or read-only
        os.utime(path)


def _remove(path: str) -> bool:
    """Remove a file, or a temporary folder; False where that is not allowed."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # removed by another process, or read-only
            os.unlink(path)
    return not os.path.lexists(path)
