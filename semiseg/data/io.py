"""Reading images and masks of every format, and writing masks back with the geometry of their image.

Arrays are (channels, *spatial) for images and (*spatial) or (*spatial, 3) for masks. 2D is (height, width) as on the
screen. 3D is (x, y, z): NIfTI, NRRD, MHA and DICOM are turned to the closest right-anterior-superior order, so that
"axial" means the first two axes whatever the scanner stored, and turned back on writing.
"""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from PIL import Image as Pillow

from semiseg.data.headers import (
    check_axes,
    check_claim,
    check_png,
    check_slices,
    check_spacing,
    check_tiff,
)
from semiseg.data.reading import reading
from semiseg.data.text_headers import check_metaimage, check_nrrd
from semiseg.errors import UserError
from semiseg.files import atomic_path

sitk.ProcessObject_SetGlobalWarningDisplay(False)  # what is wrong is said once, by us
nib.imageglobals.logger.setLevel("CRITICAL")
warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
H5 = (".h5", ".hdf5")
Axes = Literal["xyz", "zyx"]
_RAS = nib.orientations.axcodes2ornt("RAS")
_LABEL_KEYS = ("label", "mask", "labels")


@dataclass(frozen=True)
class Image:
    """An image as read: array (C, *S), spacing per spatial axis (mm, or pixels where unknown), and its way back.

    `write(classes, path)` stores a class map (*S) of this image's size with its spacing, origin and direction, in the
    file format that `suffix` names.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    suffix: str
    write: Callable[[np.ndarray, Path], None]


def suffix_of(path: Path) -> str:
    """Suffix in lower case, `.nii.gz` as one; empty for a folder."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else ("" if path.is_dir() else path.suffix.lower())


def stem_of(path: Path) -> str:
    """Name without suffix, `.nii.gz` taken as one."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def is_image(path: Path) -> bool:
    """Whether the name is one this module reads: a known suffix, or a folder with DICOM files."""
    if path.is_dir():
        return any(_dicom_files(path))
    return not path.name.startswith(".") and suffix_of(path) in (*PICTURES, *NIFTI, *ITK, *H5)


def find_images(folder: Path) -> list[Path]:
    """Image files (and DICOM series folders) directly inside a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def read_image(path: Path, h5_axes: Axes = "xyz", h5_spacing: Sequence[float] | None = None) -> Image:
    """Read one image of any supported format.

    Args:
        path: PNG, JPEG, TIFF, BMP; NIfTI, NRRD, MHA, HDF5 (key `image`), or a folder with one DICOM series.
        h5_axes: order in which an HDF5 file stores its axes; it has no header to say so.
        h5_spacing: spacing in (x, y, z) order of an HDF5 file without a `spacing` attribute; 1 if not given.

    Raises:
        UserError: the file is missing, truncated, unreadable, of an unknown kind, or holds NaN.
    """
    with reading(path):
        suffix = suffix_of(path)
        if suffix in PICTURES:
            image = _read_picture(path)
        elif suffix in NIFTI:
            image = _read_nifti(path)
        elif suffix in H5:
            image = _read_h5(path, h5_axes, h5_spacing)
        elif suffix in ITK or path.is_dir():
            image = _read_itk(path)
        else:
            raise UserError(f"{path}: unknown image format; use PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MHA, h5 or DICOM")
        _check_values(path, image.array)
        check_spacing(path, image.spacing)
        return image


def read_mask(path: Path, h5_axes: Axes = "xyz", h5_key: str | None = None) -> np.ndarray:
    """Read the raw values of a mask: (*S), or (*S, 3) for a colour mask.

    Args:
        path: as for `read_image`; an HDF5 file's key is `label`, `mask` or `labels`.
        h5_axes: as for `read_image`.
        h5_key: another key of an HDF5 file.

    Raises:
        UserError: as for `read_image`.
    """
    with reading(path):
        suffix = suffix_of(path)
        if suffix in PICTURES:
            with _picture(path) as picture:
                plain = {"LA": "L", "RGBA": "RGB", "CMYK": "RGB"}.get(picture.mode, picture.mode)
                array = np.asarray(picture.convert(plain) if plain != picture.mode else picture)
            if array.dtype == bool:
                array = array.astype(np.uint8)
            _check_values(path, array)
            grey = array.ndim == 3 and (array[..., :1] == array).all()
            return array[..., 0] if grey else array
        if suffix in H5:
            with h5py.File(path, "r") as file:
                key = h5_key or next((k for k in _LABEL_KEYS if k in file.keys()), "label")  # noqa: SIM118  (opens no link)
                array = h5_dataset(path, file, key)[()]
            _check_values(path, array)
            return _from_h5(array, h5_axes)
        array = read_image(path).array
        if array.shape[0] != 1:
            raise UserError(f"{path}: a mask has one channel, this file has {array.shape[0]}")
        return array[0]


def _check_values(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds values of type {array.dtype}; save it with one number per channel")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not numbers (NaN or infinite); repair or remove it")


@contextmanager
def _picture(path: Path) -> Iterator[Pillow.Image]:
    """A picture whose file is whole, as far as its format can tell."""
    check_png(path)
    try:
        picture = Pillow.open(path)
    except Pillow.DecompressionBombError as error:
        raise UserError(f"{path}: has more pixels than are read ({error}); cut it into tiles") from error
    with picture:
        if (pages := getattr(picture, "n_frames", 1)) > 1:
            raise UserError(f"{path}: holds {pages} pictures; save each as an image, or all as a NIfTI volume")
        check_tiff(path, getattr(picture, "tag_v2", {}))
        yield picture


def _read_picture(path: Path) -> Image:
    with _picture(path) as picture:
        if picture.mode in ("1", "LA"):
            array = np.asarray(picture.convert("L"))
        elif picture.mode in ("L", "I", "F", "RGB") or picture.mode.startswith("I;16"):
            array = np.asarray(picture)
        else:
            array = np.asarray(picture.convert("RGB"))
    array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    suffix = ".tif" if suffix_of(path) in (".tif", ".tiff") else ".png"  # JPEG would change the classes

    def write(classes: np.ndarray, target: Path) -> None:
        with atomic_path(target) as temporary:
            Pillow.fromarray(classes).save(temporary)

    return Image(array, (1.0, 1.0), suffix, write)


def _load_nifti(path: Path) -> Any:
    """A NIfTI file that holds what its header says, to the byte; a compressed one is read to its checksum."""
    with gzip.open(path) if suffix_of(path) == ".nii.gz" else path.open("rb") as file:
        head = file.read(540)
        kinds = (nib.Nifti1Image, nib.Nifti2Image)
        kind: Any = next((k for k in kinds if k.header_class.may_contain_header(head)), None)
        if kind is None:
            raise UserError(f"{path}: cannot be read, truncated or not a NIfTI image; replace or remove it")
        header = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)  # which would mend it in silence
        shape, size = header.get_data_shape(), header.get_data_dtype().itemsize
        if len(shape) not in (3, 4):
            raise UserError(f"{path}: has {len(shape)} axes; a volume has 3, or 4 with channels last")
        check_claim(path, shape, size)
        check_axes(path, header.get_best_affine()[:3, :3])
        expected = header.get_data_offset() + int(np.prod(shape, dtype=object)) * size
        content = BytesIO(head)
        content.seek(0, os.SEEK_END)
        while content.tell() <= expected and (piece := file.read(min(2**24, expected + 1 - content.tell()))):
            content.write(piece)
    if content.tell() != expected:
        more = "more" if content.tell() > expected else "less"
        raise UserError(f"{path}: truncated, or damaged: holds {more} than its header says; replace it")
    return kind.from_stream(content)


def _read_nifti(path: Path) -> Image:
    file = _load_nifti(path)
    kind, affine, own = type(file), file.affine, file.header
    turn = ornt_transform(io_orientation(affine), _RAS)
    data = apply_orientation(np.asanyarray(file.dataobj), turn)
    array = np.moveaxis(data, -1, 0) if data.ndim == 4 else data[None]
    zooms = nib.affines.voxel_sizes(affine)
    spacing = tuple(float(zooms[int(axis)]) for axis in np.argsort(turn[:3, 0]))

    def write(classes: np.ndarray, target: Path) -> None:
        back = apply_orientation(classes, ornt_transform(_RAS, io_orientation(affine)))
        header = own.copy()  # keeps both affines and their codes to the bit
        header.set_data_dtype(back.dtype)
        header.set_intent("none")
        header["cal_min"] = header["cal_max"] = 0
        mask = kind(back, affine, header)
        with atomic_path(target) as temporary:
            nib.save(mask, temporary)

    return Image(array, spacing, suffix_of(path), write)


def _dicom_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def _read_series(path: Path) -> Any:
    """The slices of a folder: all of them, of one size and direction, at equal distances."""
    if odd := [file for file in path.iterdir() if not (file.is_file() or file.is_dir())]:
        raise UserError(f"{odd[0]}: is a pipe, a socket, a device or a broken link, not a file; remove it")
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if len(series) != 1:
        raise UserError(f"{path}: holds {len(series)} DICOM series; a case is a folder with exactly one")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
    left = {*_dicom_files(path), *path.glob("*.[dD][cC][mM]")} - {Path(name) for name in names}
    if left:
        raise UserError(f"{min(left)}: damaged, or no slice of the series of its folder; replace or remove it")
    check_slices(path, names)
    return sitk.ReadImage(names, imageIO="GDCMImageIO")


def _read_itk(path: Path) -> Image:
    if path.is_dir():
        stored = _read_series(path)
    elif suffix_of(path) == ".nrrd":
        check_nrrd(path)
        stored = sitk.ReadImage(str(path), imageIO="NrrdImageIO")
    else:
        check_metaimage(path)
        stored = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    if stored.GetDimension() != 3:
        raise UserError(f"{path}: has {stored.GetDimension()} axes; a volume has 3")
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.GetDirection())
    turned = sitk.DICOMOrient(stored, "RAS")
    data = sitk.GetArrayFromImage(turned)  # (z, y, x) or (z, y, x, channels)
    array = np.moveaxis(data, -1, 0).transpose(0, 3, 2, 1) if data.ndim == 4 else data.transpose(2, 1, 0)[None]

    def write(classes: np.ndarray, target: Path) -> None:
        mask = sitk.GetImageFromArray(np.ascontiguousarray(classes.transpose(2, 1, 0)))
        mask.CopyInformation(turned)
        mask = sitk.DICOMOrient(mask, code)
        mask.CopyInformation(stored)  # the same numbers again, free of rounding
        with atomic_path(target) as temporary:
            sitk.WriteImage(mask, str(temporary), True)

    suffix = {"": ".nii.gz", ".mhd": ".mha"}.get(suffix_of(path), suffix_of(path))  # one file, not two
    return Image(array, tuple(turned.GetSpacing()), suffix, write)


def _from_h5(stored: np.ndarray, axes: Axes) -> np.ndarray:
    return stored.transpose(2, 1, 0) if axes == "zyx" else stored


def h5_dataset(path: Path, file: h5py.File, key: str) -> Any:
    """An array of numbers inside an HDF5 file itself that fits into memory; nothing of it is read.

    Raises:
        UserError: it is not; a link to another file is not followed.
    """
    link = file.get(key, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise UserError(f"{path}: its key {key!r} is a link to somewhere else; store the array itself")
    stored = file[key]
    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind not in "biuf":
        raise UserError(f"{path}: its key {key!r} is no array of numbers; store one")
    if stored.is_virtual or stored.external:
        raise UserError(f"{path}: its key {key!r} keeps its values in other files; store the array itself")
    if stored.ndim != 3:
        raise UserError(f"{path}: key {key!r} has {stored.ndim} axes; a volume has 3")
    check_claim(path, stored.shape, stored.dtype.itemsize)
    check_claim(path, stored.chunks or (1,), stored.dtype.itemsize)
    return stored


def _read_h5(path: Path, axes: Axes, spacing: Sequence[float] | None) -> Image:
    with h5py.File(path, "r") as file:
        dataset = h5_dataset(path, file, "image")
        stored, own = dataset[()], dataset.attrs.get("spacing")
    if own is not None and np.shape(own) != (3,):
        raise UserError(f"{path}: its attribute spacing is not three numbers; repair it")
    own = tuple(float(s) for s in own)[:: -1 if axes == "zyx" else 1] if own is not None else None

    def write(classes: np.ndarray, target: Path) -> None:
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as out:
            out.create_dataset("label", data=_from_h5(classes, axes), compression="gzip")

    return Image(_from_h5(stored, axes)[None], own or tuple(spacing or (1.0, 1.0, 1.0)), ".h5", write)
