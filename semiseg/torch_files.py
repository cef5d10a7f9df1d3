"""Files of torch.save as data: what they hold is checked before anything of it is built, called or allocated."""

from __future__ import annotations

import io
import os
import pickletools
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_FILE = 16 * 2**30  # bytes; a checksum over so much takes half a minute
MAX_WEIGHTS = 8 * 2**30  # bytes of the tensors of one state_dict
MAX_PICKLE = 32 * 2**20  # bytes of the description of the tensors and of all plain values
MAX_VALUES = 1_000_000  # in that description, shared ones counted wherever they stand
MAX_STEPS = 2_000_000  # to build them
MAX_RECORDS = 100_000
MAX_DEPTH = 50  # of lists and mappings inside each other

_RECORDS = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_GLOBALS = {
    "collections OrderedDict", "torch Size", "torch device",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in
      ("Half", "BFloat16", "Float", "Double", "Bool", "Byte", "Char", "Short", "Int", "Long")),
}  # fmt: skip
_SCALARS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL",
}  # fmt: skip
_CONTAINERS = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"}
_JOINS = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "BINPERSID": 1}  # parts; None: since MARK
_FILLS = {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1}


class UnreadableError(Exception):
    """A file that is damaged, is none of torch.save, or holds or asks for more than data."""


class PythonObjectsError(UnreadableError):
    """A file that names functions or classes which plain values and dense tensors do without."""


def read_torch_file(path: Path) -> Any:
    """Content of a file of torch.save on the CPU: plain values and dense tensors.

    Before torch reads it, the archive must be one of regular, uncompressed records with right checksums, and the
    description of its content must be a tree of bounded size that calls nothing but what rebuilds a dense tensor.
    Tensors stay in the file until they are used, so that a large file costs no memory until then.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is not such a file.
    """
    try:
        _check_pickle(_description(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (FileNotFoundError, UnreadableError):
        raise
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error
    except Exception as error:  # a damaged file can break the readers anywhere
        raise UnreadableError(type(error).__name__) from error
    for value in walk(content):
        if isinstance(value, Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                raise UnreadableError(f"a tensor of size {tuple(value.shape)} has fewer values in the file")
        elif isinstance(value, OrderedDict):
            _check_attributes(value)
        elif not isinstance(value, dict | list | tuple | str | int | float | torch.device | None):
            raise PythonObjectsError(f"holds a {type(value).__name__}")
    return content


def walk(content: Any) -> Iterator[Any]:
    """All values inside nested mappings and sequences, each object once, without recursion."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            waiting += [*value, *dict.values(value)] if isinstance(value, dict) else value
        yield value


def check_state(state: Any) -> None:
    """Raise unless a state_dict maps names to finite tensors of a size that can be held.

    Raises:
        UnreadableError: it does not.
    """
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UnreadableError("its state_dict does not map names to tensors")
    if sum(value.nbytes for value in state.values()) > MAX_WEIGHTS:
        raise UnreadableError(f"its weights are more than {MAX_WEIGHTS >> 30} GiB")
    if broken := next((key for key, value in state.items() if not is_finite(value)), None):
        raise UnreadableError(f"{broken[:200]!r} holds values that are not numbers")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; takes no memory."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return bool(torch.linalg.vector_norm(tensor, ord=float("inf")).isfinite())


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """What keeps tensors from being loaded into those of a network, in words, by name; no value is read."""
    problems = {}
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if key not in found:
            problems[key] = f"{key} is missing"
        elif key not in wanted:
            problems[key] = f"{key[:200]} is unexpected"
        elif found[key].shape != wanted[key].shape:
            problems[key] = f"{key} is {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        elif not (found[key].dtype == wanted[key].dtype or both_floating(found[key], wanted[key])):
            problems[key] = f"{key} is {found[key].dtype} instead of {wanted[key].dtype}"
    return problems


def both_floating(one: Tensor, other: Tensor) -> bool:
    """Whether a value of one tensor may be rounded to the other's precision."""
    return one.is_floating_point() and other.is_floating_point()


def _check_attributes(state: OrderedDict[Any, Any]) -> None:
    """Of a state_dict, which keeps the versions of its modules in an attribute; others could hide its methods."""
    versions = vars(state).get("_metadata", {})
    entries = [None] if not isinstance(versions, dict) or getattr(versions, "__dict__", {}) else versions.values()
    plain = all(type(entry) is dict and all(type(version) is int for version in entry.values()) for entry in entries)
    if not plain or vars(state).keys() - {"_metadata"}:
        raise UnreadableError("its state_dict has attributes of its own")


class _BoundedReads(io.FileIO):
    """A file of which nobody reads much at once, whatever lengths its own content declares."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not -1 <= size <= MAX_PICKLE:
            raise UnreadableError("declares parts that are too large")
        return super().read(size)


def _description(path: Path) -> bytes:
    """The pickle inside an archive of torch.save, all of whose records have been checked."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for ever
    with _BoundedReads(handle) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("not a regular file")
        if status.st_size > MAX_FILE:
            raise UnreadableError(f"larger than {MAX_FILE >> 30} GiB")
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            folder = records[0].filename.partition("/")[0] if records else ""
            names = [record.filename.removeprefix(f"{folder}/") for record in records]
            if len(records) > MAX_RECORDS or sum(record.file_size for record in records) > status.st_size:
                raise UnreadableError("declares more than it holds")
            for record, name in zip(records, names, strict=True):
                stored = record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
                if not (stored and (name in _RECORDS or name.removeprefix("data/").isdecimal())):
                    raise UnreadableError(f"its record {record.filename[:80]!r} is not one of torch.save")
            if len(set(names)) < len(names) or "data.pkl" not in names:
                raise UnreadableError("its records are not those of torch.save")
            if (description := records[names.index("data.pkl")]).file_size > MAX_PICKLE:
                raise UnreadableError("describes too many values")
            if damaged := archive.testzip():
                raise UnreadableError(f"its record {damaged} is damaged")
            return archive.read(description)


@dataclass(slots=True)
class _Value:
    """What is known of a value before it is built."""

    depth: int = 0
    size: int = 1
    complete: bool = True  # nothing may come into it any more


def _check_pickle(description: bytes) -> None:
    """Follow a pickle without building anything: raise unless its values are a tree of bounded depth and size.

    A container is complete once it is referred to again, so none can hold itself. Keys are plain values, for which
    hashing neither recurses nor can be made slow.
    """
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}

    def taken(count: int | None) -> list[_Value]:
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise UnreadableError("its description is damaged")
        parts = stack[start:]
        del stack[start:]
        return parts

    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(description)
    for step, (opcode, argument, _) in enumerate(operations):
        name = opcode.name
        if step > MAX_STEPS:
            raise UnreadableError("describes too many values")
        if name in _SCALARS:
            if name == "GLOBAL" and argument not in _GLOBALS:
                raise PythonObjectsError(f"names {str(argument).replace(' ', '.')[:80]!r}")
            if name == "LONG1" and abs(argument) >= 2**63:
                raise UnreadableError("holds a number of more than 64 bits")
            stack.append(_Value())
        elif name in _CONTAINERS:
            stack.append(_Value(depth=1, complete=False))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _JOINS:
            stack.append(_filled(_Value(), taken(_JOINS[name])))
            stack[-1].complete = name != "REDUCE"
        elif name in _FILLS:
            parts = taken(_FILLS[name])
            if stack[-1].complete or (name.startswith("SETITEM") and any(key.depth for key in parts[::2])):
                raise UnreadableError("its description is none of torch.save")
            _filled(stack[-1], parts)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            memo[argument].complete = True
            stack.append(memo[argument])
        elif name != "STOP" and (name, argument) != ("PROTO", 2):
            raise PythonObjectsError(f"asks for {name}")


def _filled(container: _Value, parts: list[_Value]) -> _Value:
    container.depth = max([container.depth, *(part.depth + 1 for part in parts)])
    container.size += sum(part.size for part in parts)
    if container.depth > MAX_DEPTH or container.size > MAX_VALUES:
        raise UnreadableError("its values are nested too deeply or are too many")
    return container
