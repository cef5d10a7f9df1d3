"""Whatever goes wrong while an image is read, as one line that says which file and why."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semiseg.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises (each library has errors of its own) into one line that names the file.

    What is neither a file nor a folder, such as a pipe, is refused before it is opened: reading it may never end.
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; restore it or remove the case") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: is a pipe, a socket or a device, not a file; remove it")
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it") from error
    except Exception as error:
        if lack := _lack(error):
            raise UserError(f"{path}: {lack}") from error
        if isinstance(error, KeyError):
            needed = " ".join(str(error.args[0]).split())
            raise UserError(f"{path}: the file lacks what is needed: {needed}") from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: cannot be read, truncated or not an image ({reason}); replace or remove it"
        ) from error


def _lack(error: BaseException | None) -> str | None:
    """What the machine has too little of, if that is why a reader failed: then the file is not to blame."""
    while error is not None:
        for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                if code != errno.ENOMEM:
                    return "too many files are open; allow more with `ulimit -n 65536`"
                break
        else:
            if not isinstance(error, MemoryError) and "ailed to allocate memory" not in str(error):
                error = error.__cause__ or error.__context__
                continue
        return "not enough memory to read it; close other programs, or cut the image into parts"
    return None
