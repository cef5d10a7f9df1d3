"""What the header of an image file says, checked before a library decodes the file.

The libraries believe their files: a wrong number there is a crash, an endless loop, a terabyte, or another image.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from semiseg.data.limits import check_fits, memory_limit
from semiseg.errors import UserError
from semiseg.files import read_bytes

SPACING = (1e-6, 1e4)  # smallest and largest distance of voxels, in mm
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_COMPRESSION, _TIFF_DEFLATE = 259, (8, 32946)
_TIFF_PARTS = ((273, 279), (324, 325))  # tags of offsets and sizes of strips, of tiles


def read_content(path: Path) -> bytes:
    """All bytes of a file that fits into memory."""
    size = path.stat().st_size
    check_fits(str(path), (size,), 1, "cut it into parts")
    return read_bytes(path, limit=size)


def check_claim(path: Path, shape: Sequence[int], bytes_per_element: int) -> None:
    """Check the size that a header claims: no axis is empty, and the array fits into memory as float32.

    Raises:
        UserError: it is not so.
    """
    if not shape or any(int(n) < 1 for n in shape):
        raise UserError(f"{path}: its header says {tuple(map(int, shape))} voxels; every axis needs one; replace it")
    check_fits(str(path), shape, max(bytes_per_element, 4), "repair the header, or cut the image into parts")


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Check that voxels have a size.

    Raises:
        UserError: a spacing is not within `SPACING`.
    """
    if not all(SPACING[0] <= s <= SPACING[1] for s in spacing):
        raise UserError(
            f"{path}: its header says a spacing of {' x '.join(f'{s:g}' for s in spacing)}; spacings are from "
            f"{SPACING[0]:g} to {SPACING[1]:g} mm; repair the header"
        )


def check_axes(path: Path, vectors: np.ndarray) -> None:
    """Check that the vectors of three axes, scaled by their spacing, are finite, of a size, and not in one plane.

    Raises:
        UserError: they are not.
    """
    lengths = np.linalg.norm(vectors, axis=0)
    check_spacing(path, lengths.tolist())
    if not abs(np.linalg.det(vectors / lengths)) > 0.1:
        raise UserError(f"{path}: its header gives axes that lie in one plane; repair the header")


def check_png(path: Path) -> None:
    """Check the checksum of every part of a PNG file, which Pillow does not do for the pixels.

    Raises:
        UserError: one is wrong, or the file ends too soon.
    """
    with path.open("rb") as file:
        if file.read(len(_PNG)) != _PNG:  # of another format, which Pillow goes by
            return
    content, place, kind = memoryview(read_content(path)), len(_PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        kind, end = bytes(content[place + 4 : place + 8]), place + 8 + length
        if end + 4 > len(content):
            raise UserError(f"{path}: cannot be read, truncated; replace or remove it")
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise UserError(f"{path}: damaged, a checksum of it is wrong; replace or remove it")
        place = end + 4


def check_tiff(path: Path, tags: Mapping[int, Any]) -> None:
    """Check the checksums of a TIFF file that is compressed by deflate, which the library does not do.

    Raises:
        UserError: one is wrong.
    """
    if tags.get(_TIFF_COMPRESSION) not in _TIFF_DEFLATE:
        return
    content = read_content(path)
    for offsets, sizes in _TIFF_PARTS:
        for start, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True):
            decompressed_size(path, content[start : start + size], zlib.MAX_WBITS, memory_limit())


def check_slices(folder: Path, files: Sequence[str]) -> None:
    """Check the headers of a DICOM series: slices of one size, type and direction, at equal distances.

    Raises:
        UserError: they are not; a slice is then damaged, missing or of another series.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    facts, places = [], []
    for name in files:
        with Path(name).open("rb"):  # where too many files are open, that is why
            reader.SetFileName(name)
            reader.ReadImageInformation()
        size, spacing, direction = reader.GetSize(), reader.GetSpacing(), reader.GetDirection()
        check_claim(Path(name), (*size[:2], len(files), *size[2:], reader.GetNumberOfComponents()), 8)
        check_spacing(Path(name), spacing[:2])
        if len(direction) == 9:
            check_directions(Path(name), np.array(direction).reshape(3, 3))
        facts.append((size, reader.GetPixelID(), tuple(np.round([*spacing[:2], *direction], 3))))
        if facts[-1] != facts[0]:
            raise UserError(
                f"{name}: differs from {Path(files[0]).name} in size, type, spacing or direction; replace it"
            )
        places.append(float(np.dot(reader.GetOrigin(), direction[2::3])) if len(direction) == 9 else 0.0)
    steps = np.diff(places)
    if len(steps) and not np.allclose(steps, np.median(steps), rtol=0.1, atol=1e-3):
        odd = int(np.abs(steps - np.median(steps)).argmax()) + 1
        raise UserError(
            f"{files[odd]}: {abs(steps[odd - 1]):g} mm from the slice before it, where others are "
            f"{abs(np.median(steps)):g} mm apart; a slice is missing or damaged"
        )
    if len(steps):
        check_spacing(folder, [abs(float(np.median(steps)))])


def check_directions(path: Path, matrix: np.ndarray) -> None:
    """Check that the columns, or the rows, of a matrix are unit vectors that do not lie in one plane.

    Raises:
        UserError: they are not.
    """
    lengths = [np.linalg.norm(matrix, axis=axis) for axis in (0, 1)]
    unit = any(np.allclose(length, 1, atol=0.01) for length in lengths)
    if not unit or not abs(np.linalg.det(matrix)) > 0.1:
        raise UserError(f"{path}: its header gives axes that are not directions; repair the header")


def decompressed_size(path: Path, content: bytes, format_bits: int, most: int) -> int:
    """Decompress to the end, where the checksum is, and count."""
    engine, size = zlib.decompressobj(format_bits), 0
    for start in range(0, len(content), 2**20):
        piece = content[start : start + 2**20]
        while piece and size <= most:
            size += len(engine.decompress(piece, 2**24))
            piece = engine.unconsumed_tail
    size += len(engine.flush()) if size <= most else 0
    if not engine.eof or engine.unused_data:
        raise UserError(f"{path}: its compressed values are cut, damaged, or more than its header says; replace it")
    return size
