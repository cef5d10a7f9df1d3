"""Atomic file writes, lock files, and readers that bound what a file may ask for."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import re
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import yaml

from semiseg.errors import UserError

MAX_BYTES = 64 * 2**20  # of a text file
MAX_DEPTH = 50  # of lists and mappings inside each other
TEMPORARY = ".semiseg-"  # start of the names of temporary files
_UMASK = os.umask(0o077)  # it can be read only by setting it, which is safe as long as there is one thread
os.umask(_UMASK)


@dataclass(frozen=True)
class Bounds:
    """What a YAML text may hold.

    Args:
        values: texts, numbers, lists and mappings in all, aliases expanded.
        items: entries of one list.
    """

    values: int = 200_000
    items: int = 200_000


OPTIONS = Bounds(
    values=5000, items=300
)  # of a configuration: the parser's time grows with the square of a list's length


def import_from_here() -> None:
    """Let class paths name the user's own files in the current directory, as `python -m` does; ours come first."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def take_lock(path: Path, patience: float = 0.0) -> IO[str] | None:
    """Lock a file until it is closed or this process ends, however it ends.

    Args:
        path: the lock file; created if it is missing, never emptied. A symbolic link is refused.
        patience: seconds to wait for another process that holds the lock.

    Returns:
        The open file, or None where another process holds the lock all the time.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: is not a regular file; remove it")
    file = os.fdopen(handle, "r+")
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(0.02)
    except BaseException:
        file.close()
        raise
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by worker processes
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a file system without locks
            raise
        return False
    return True


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it when the block succeeds, and is removed otherwise.

    Raises:
        UserError: the folder cannot be written, the disk is full, or the target is a device, a pipe or a folder.
    """
    temporary = None
    try:
        if os.path.lexists(target) and not (target.is_symlink() or target.is_file()):
            raise UserError(f"{target}: is not a regular file, and is not replaced; choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=TEMPORARY, suffix=target.name)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes it private
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); make room or choose another folder; nothing was "
            "left half-written"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file; a FIFO or a device, which may never end, is refused.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file, is larger than `limit` bytes, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: is not a regular file; replace or remove it")
            content = file.read(limit + 1) if status.st_size <= limit else b""
            if len(content) > limit or status.st_size > limit:
                raise UserError(f"{path}: is larger than {limit >> 20} MiB, the limit for such a file")
            return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Text of a UTF-8 file, without its byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: as `read_bytes`, or it is not UTF-8 text.
    """
    content = read_bytes(path, limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: holds a NUL byte, so it is not a text file; save it as UTF-8 text")
    return text


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: as `read_text`, or it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error


def read_yaml(path: Path, bounds: Bounds = Bounds()) -> Any:
    """Content of a YAML file, plain types only.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, limit=4 * 2**20), str(path), bounds)


def parse_yaml(text: str, where: str, bounds: Bounds = Bounds()) -> Any:
    """YAML text as plain types.

    Args:
        text: the text.
        where: file or option that holds it, for messages.
        bounds: what it may hold.

    Raises:
        UserError: it is not valid YAML, is nested too deeply, expands to too many values, refers to itself, has a key
            twice, or holds a number that YAML reads in another base than people do (`0777` is 511).
    """
    try:
        check_yaml(text, where, bounds)
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{where}{line}: not valid YAML ({problem}); correct it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML ({error}); correct it") from error


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is installed
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _UniqueKeys(_Loader):  # type: ignore[misc]
    """The safe loader, which refuses a mapping that has a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} is there twice", node.start_mark)
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def check_yaml(text: str, where: str, bounds: Bounds) -> None:
    """Count depth and values of YAML text from the parser's events; nothing is built from them.

    Raises:
        UserError: as `parse_yaml`, but for invalid YAML.
        yaml.YAMLError: it is not valid YAML.
    """
    sizes: dict[str, tuple[int, int]] = {}  # values and depth behind each anchor
    stack: list[list[Any]] = [[None, 0, 0, 0]]  # anchor, values, depth, entries of each open list or mapping
    for event in yaml.parse(text, _Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            stack[-1][3] += 1
            stack.append([event.anchor, 1, 1, 0])
            values, depth = 0, len(stack)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values, depth, entries = stack.pop()
            if isinstance(event, yaml.SequenceEndEvent) and entries > bounds.items:
                raise UserError(f"{where}, line {line}: a list of {entries} values, more than {bounds.items}")
            sizes[anchor] = values, depth
            depth += 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UserError(f"{where}, line {line}: *{event.anchor} refers to itself or to nothing; write it out")
            values, depth = sizes[event.anchor]
            depth += 1
            stack[-1][3] += 1
        elif isinstance(event, yaml.ScalarEvent):
            values, depth = 1, 1
            stack[-1][3] += 1
            sizes[event.anchor] = values, depth
            if event.implicit[0] and _OTHER_BASE.fullmatch(event.value):
                raise UserError(
                    f"{where}, line {line}: YAML reads {event.value} as a number of another base; write it without "
                    "leading 0 or colon, or in quotes"
                )
        else:
            continue
        stack[-1][1] += values
        stack[-1][2] = max(stack[-1][2], depth)
        if max(depth, len(stack)) > MAX_DEPTH:
            raise UserError(f"{where}, line {line}: lists and mappings are nested more than {MAX_DEPTH} deep")
        if sum(entry[1] for entry in stack) > bounds.values:
            raise UserError(f"{where}, line {line}: holds more than {bounds.values} values")


def read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file whose first line names the columns; every row has one field per column.

    Names and values are stripped; blank lines are skipped.

    Args:
        path: the file.
        required: columns that must be there.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: as `read_text`, or the file is not CSV, lacks a column, names one twice, or has a row with more or
            fewer fields than columns.
    """
    reader = csv.reader(io.StringIO(read_text(path, limit=256 * 2**20), newline=""), skipinitialspace=True, strict=True)
    rows: list[dict[str, str]] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        if missing := [name for name in required if name not in columns]:
            raise UserError(
                f"{path}: lacks the column(s) {', '.join(missing)}; its first line must name {', '.join(required)}"
            )
        if len(set(columns)) < len(columns):
            raise UserError(f"{path}: its first line names a column twice")
        for fields in reader:
            if len(fields) not in (0, len(columns)):
                raise UserError(
                    f"{path}, line {reader.line_num}: has {len(fields)} fields for {len(columns)} columns; put a value "
                    "that holds a comma in quotes"
                )
            if fields:
                rows.append(dict(zip(columns, (field.strip() for field in fields), strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct it") from error
    return rows
