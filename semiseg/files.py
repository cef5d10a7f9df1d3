"""Files that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from semiseg.errors import UserError


def import_from_here() -> None:
    """Let class paths name the user's own files in the current directory, as `python -m` does; ours come first."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def take_lock(path: Path) -> IO[str] | None:
    """Lock a file until it is closed or this process ends, however it ends; None where another process holds it."""
    file = open(path, "w")  # noqa: SIM115  (held)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by loader processes
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a file system without locks
            raise
        return None
    return file


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place once the block has succeeded, and vanishes otherwise.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=target.name)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); make room or choose another folder; nothing was "
            "left half-written"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
