"""What the files of a case hold, as a hash of their content, and the state by which a known hash is found again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from semiseg.errors import UserError

COARSE_NS = 2_000_000_000  # the coarsest step of a file system's clock (FAT)
_LACKS = {
    errno.EMFILE: "too many open files; raise the limit with ulimit -n 4096 or lower --data.num_workers",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.ENOMEM: "out of memory; close other programs or lower --data.num_workers",
}
# Where the header of a volume names the file that holds its data; the one of NRRD ends at an empty line.
_DATA_FILE = {
    ".nrrd": re.compile(rb"\A(?:[^\r\n]+\r?\n)*?data ?file: *([^\r\n]+)", re.IGNORECASE),
    ".mha": re.compile(rb"^ElementDataFile *= *([^\r\n]+)", re.IGNORECASE | re.MULTILINE),
}
_DATA_FILE[".mhd"] = _DATA_FILE[".mha"]


def lack_of(error: OSError, path: Path | str) -> UserError | None:
    """The complaint about a full descriptor table or memory, which is no fault of the file; None for other errors."""
    return UserError(f"{path} was not opened: {_LACKS[error.errno]}") if error.errno in _LACKS else None


@contextmanager
def open_regular(path: Path | str) -> Iterator[FileIO]:
    """Open a regular file without a buffer; a FIFO or a device, which may never end, is refused.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def files_of(source: Path) -> list[Path]:
    """Files that a source is read from: itself, a header's data file too, or the files of a DICOM folder.

    Raises:
        UserError: a file is missing, or the data are spread over several files.
    """
    try:
        if source.is_dir():
            return sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        if (pattern := _DATA_FILE.get(source.suffix.lower())) is None:
            return [source]
        with open_regular(source) as file:
            named = pattern.search(file.read(1 << 16))
    except OSError as error:
        raise _unreadable(source, error) from error
    if named is None or named[1].strip() == b"LOCAL":
        return [source]
    data = source.parent / os.fsdecode(named[1].strip())
    if not data.is_file():
        raise UserError(f"{source}: its data file {data.name} is not there; restore it or save the volume as one file")
    return [source, data]


def state_of(files: list[Path]) -> tuple[str, bool]:
    """State of files as 32 hexadecimal digits, and whether every later change will show in it.

    The state is each file's real path, device, inode, size and times of modification and of change. Programs can set
    all of them but the time of change, so files that were replaced under equal size and modification time have
    another state. A change within one step of the file system's clock has not; so a file whose newest time is less
    than two seconds ago, or ahead of the clock, is not settled.

    Raises:
        UserError: a file is missing.
    """
    state, newest = [], 0
    try:
        for path in files:
            s = os.stat(path)
            state.append([os.path.realpath(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns])
            newest = max(newest, s.st_mtime_ns, s.st_ctime_ns)
    except OSError as error:
        raise _unreadable(path, error) from error
    return short_hash(state), newest <= time.time_ns() - COARSE_NS


def hash_of(files: list[Path]) -> str:
    """Hash of the content of a file, or of the names and contents of several, as 32 hexadecimal digits.

    Raises:
        UserError: a file cannot be read.
    """
    found = []
    for path in files:
        try:
            with open_regular(path) as file:
                found.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
        except OSError as error:
            raise _unreadable(path, error) from error
    return found[0][1][:32] if len(found) == 1 else short_hash(found)


def short_hash(value: object) -> str:
    """Hash of plain values as 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _unreadable(path: Path, error: OSError) -> UserError:
    lack = lack_of(error, path)
    return lack or UserError(f"{path}: cannot be read ({error.strerror}); restore it or remove the case")
