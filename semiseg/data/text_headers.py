"""The text headers of MetaImage and NRRD files, checked before SimpleITK sees the file."""

from __future__ import annotations

import difflib
import math
import re
import stat
import zlib
from pathlib import Path

import numpy as np

from semiseg.data.headers import (
    check_axes,
    check_claim,
    check_directions,
    check_spacing,
    decompressed_size,
    read_content,
)
from semiseg.errors import UserError

_HEADER = 2**20  # bytes within which a text header must end
_META_TYPES = {
    f"MET_{sign}{name}": size
    for name, size in {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8}.items()
    for sign in ("", "U")
} | {"MET_FLOAT": 4, "MET_DOUBLE": 8}
_META_KEYS = (  # those that change the image
    *("NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "ElementSpacing", "ElementSize", "HeaderSize"),
    *("TransformMatrix", "Rotation", "Orientation", "Offset", "Origin", "Position", "BinaryData", "CompressedData"),
    *("BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedDataSize", "ElementDataFile"),
    *("ObjectType", "CenterOfRotation", "AnatomicalOrientation"),
)
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?"
_CHANNELS = "ElementNumberOfChannels"
_NRRD_TYPES = {"float": 4, "double": 8}
for _size, _names in (
    (1, ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t")),
    (2, ("short", "short int", "signed short", "signed short int", "int16", "int16_t")),
    (2, ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t")),
    (4, ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t")),
    (8, ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t")),
    (8, ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t")),
):
    _NRRD_TYPES |= dict.fromkeys(_names, _size)


def check_metaimage(path: Path) -> None:
    """Check the header of an MHA or MHD file and the size of its voxels.

    Raises:
        UserError: a field is missing, repeated, misspelt, no number or out of range; the voxels are in another folder,
            damaged, or not as many as the header says.
    """
    head = _read_start(path)
    lines = re.match(rb"(?:[^\n]*\n)*?[ \t]*ElementDataFile[ \t]*=[^\n]*(?:\n|$)", head)
    if lines is None:
        raise UserError(f"{path}: has no header of a MetaImage, which ends with ElementDataFile; replace it")
    fields = _fields(path, lines[0], r"([\w|.-]{1,80})\s*=\s*(.*)")
    for key in fields:
        near = [] if key in _META_KEYS else difflib.get_close_matches(key, _META_KEYS, n=1, cutoff=0.8)
        if near:
            raise UserError(f"{path}: its header says {key}; did you mean {near[0]}?")
    dims = _integers(path, fields, "NDims", 1)[0]
    if dims not in (2, 3, 4):
        raise UserError(f"{path}: has {dims} axes; a volume has 3")
    shape = _integers(path, fields, "DimSize", dims)
    if _CHANNELS in fields:
        shape += _integers(path, fields, _CHANNELS, 1)
    spacing = _numbers(path, fields, "ElementSpacing" if "ElementSpacing" in fields else "ElementSize", dims)
    check_spacing(path, spacing)
    for key in ("Offset", "Origin", "Position", "CenterOfRotation"):
        if key in fields:
            _numbers(path, fields, key, dims)
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        if key in fields:
            matrix = np.array(_numbers(path, fields, key, dims * dims)).reshape(dims, dims)
            check_directions(path, matrix)
    kind = fields.get("ElementType", "").removesuffix("_ARRAY")
    if kind not in _META_TYPES:
        raise UserError(f"{path}: its header says ElementType {fields.get('ElementType')}, which is not known")
    if not _truth(path, fields, "BinaryData", "True"):
        raise UserError(f"{path}: holds its voxels as text; save it in binary")
    check_claim(path, shape, _META_TYPES[kind])
    skip = _integers(path, fields, "HeaderSize", 1)[0] if "HeaderSize" in fields else 0
    source, start = path, len(lines[0])
    if fields["ElementDataFile"].upper() != "LOCAL":
        source, start = _beside(path, fields["ElementDataFile"]), 0
    elif path.suffix.lower() == ".mhd":
        raise UserError(f"{path}: an MHD file names the file of its voxels in ElementDataFile; LOCAL is for MHA")
    size = math.prod(shape) * _META_TYPES[kind]
    if not _truth(path, fields, "CompressedData", "False"):
        _check_size(source, source.stat().st_size - start, max(skip, 0) + size, at_least=skip == -1)
    else:
        _check_size(source, decompressed_size(source, read_content(source)[start:], zlib.MAX_WBITS, size), size)


def check_nrrd(path: Path) -> None:
    """Check the header of an NRRD file and the size of its voxels.

    Raises:
        UserError: as for `check_metaimage`.
    """
    head = _read_start(path)
    lines = re.match(rb"NRRD000\d\r?\n(?:[^\n]+\n)*?(?:\r?\n|$)", head)
    if lines is None:
        raise UserError(f"{path}: has no header of an NRRD file, which ends with an empty line; replace it")
    kept = [line for line in lines[0].splitlines()[1:] if not line.startswith(b"#") and b":=" not in line]
    pairs = _fields(path, b"\n".join(kept), r"([\w -]{1,80}?)\s*: *(.*)")
    fields = {key.lower(): value for key, value in pairs.items()}
    dims = _integers(path, fields, "dimension", 1)[0]
    if dims not in (2, 3, 4):
        raise UserError(f"{path}: has {dims} axes; a volume has 3")
    shape = _integers(path, fields, "sizes", dims)
    if "spacings" in fields:
        check_spacing(
            path, [s for s in _numbers(path, fields, "spacings", dims, _NUMBER + "|nan") if not math.isnan(s)]
        )
    if "space directions" in fields:
        vectors = re.findall(r"\([^()]*\)|none", fields["space directions"])
        given = [_vector(path, fields, "space directions", vector) for vector in vectors if vector != "none"]
        if len(vectors) != dims or len({len(vector) for vector in given} | {len(given)}) != 1:
            raise UserError(f"{path}: its header says space directions {fields['space directions']}; repair it")
        if len(given) == 3:
            check_axes(path, np.array(given).T)
        else:
            check_spacing(path, [math.hypot(*vector) for vector in given])
    if "space origin" in fields:
        _vector(path, fields, "space origin", fields["space origin"])
    for frame in re.findall(r"\([^()]*\)", fields.get("measurement frame", "")):
        _vector(path, fields, "measurement frame", frame)
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_TYPES:
        raise UserError(f"{path}: its header says type {fields.get('type')}, which is not known")
    check_claim(path, shape, _NRRD_TYPES[kind])
    source, start = path, len(lines[0])
    if name := fields.get("data file", fields.get("datafile")):
        source, start = _beside(path, name), 0
    size = math.prod(shape) * _NRRD_TYPES[kind]
    skips = [fields.get(key, "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")]
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise UserError(f"{path}: its header says encoding {encoding or 'nothing'}; save it as raw or gzip")
    if set(skips) != {"0"}:
        raise UserError(f"{path}: its voxels begin after a skip; save it without")
    if encoding == "raw":
        _check_size(source, source.stat().st_size - start, size)
    else:
        _check_size(source, decompressed_size(source, read_content(source)[start:], zlib.MAX_WBITS | 16, size), size)


def _beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names: a plain name, in the header's folder.

    Raises:
        UserError: it is a list, a pattern, in another folder, missing, or not a regular file.
    """
    if name.upper().startswith("LIST") or re.search(r"[/\\%\s]", name) or name in ("", ".", ".."):
        raise UserError(f"{path}: names {name!r} as the file of its voxels; only a file beside it is read")
    source = path.with_name(name)
    if not source.exists() or not stat.S_ISREG(source.stat().st_mode):
        raise UserError(f"{path}: the file of its voxels, {name!r}, is missing, or not a regular file")
    return source


def _read_start(path: Path) -> bytes:
    """The first bytes of a file, which hold its header."""
    with path.open("rb") as file:
        return file.read(_HEADER)


def _fields(path: Path, lines: bytes, pattern: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines.decode("utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        if (found := re.fullmatch(pattern, line.strip())) is None or len(line) > 4000:
            raise UserError(f"{path}: has a line in its header that cannot be read: {line[:60]!r}; repair it")
        if found[1] in fields:
            raise UserError(f"{path}: its header says {found[1]} twice; repair it")
        fields[found[1]] = found[2]
    return fields


def _integers(path: Path, fields: dict[str, str], key: str, count: int) -> list[int]:
    return [int(n) for n in _numbers(path, fields, key, count, r"-?\d{1,9}")]


def _numbers(path: Path, fields: dict[str, str], key: str, count: int, pattern: str = _NUMBER) -> list[float]:
    """As many numbers as there have to be, up to 1e9."""
    if key not in fields:
        raise UserError(f"{path}: its header lacks {key}; repair it")
    words = fields[key].split()
    if len(words) != count or not all(re.fullmatch(pattern, word, re.IGNORECASE) for word in words):
        raise UserError(f"{path}: its header says {key} {fields[key][:60]}, not {count} number(s); repair it")
    values = [float(word) for word in words]
    if any(abs(value) > 1e9 for value in values):
        raise UserError(f"{path}: its header says {key} {fields[key][:60]}, out of range; repair it")
    return values


def _vector(path: Path, fields: dict[str, str], key: str, text: str) -> list[float]:
    words = text.strip("()").split(",")
    return _numbers(path, {key: " ".join(words)}, key, len(words))


def _truth(path: Path, fields: dict[str, str], key: str, default: str) -> bool:
    if (value := fields.get(key, default).lower()) not in ("true", "false"):
        raise UserError(f"{path}: its header says {key} {value[:60]}; repair it to True or False")
    return value == "true"


def _check_size(path: Path, found: int, expected: int, at_least: bool = False) -> None:
    if found < expected or (found > expected and not at_least):
        raise UserError(
            f"{path}: truncated, or damaged: holds {found} bytes of voxels, its header says {expected}; replace it"
        )
