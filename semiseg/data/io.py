"""Reading images and masks of every format, and writing masks back with the geometry of their image.

Arrays are (channels, *spatial) for images and (*spatial) or (*spatial, 3) for masks. 2D is (height, width) as on the
screen. 3D is (x, y, z): NIfTI, NRRD, MHA and DICOM are turned to the closest right-anterior-superior order, so that
"axial" means the first two axes whatever the scanner stored, and turned back on writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from PIL import Image as Pillow

from semiseg.errors import UserError
from semiseg.files import atomic_path

sitk.ProcessObject_SetGlobalWarningDisplay(False)  # what is wrong is said once, by us

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
        if not np.isfinite(image.array).all():
            raise UserError(f"{path}: holds values that are not numbers (NaN or infinite); repair or remove it")
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
            with Pillow.open(path) as picture:
                plain = {"LA": "L", "RGBA": "RGB", "CMYK": "RGB"}.get(picture.mode, picture.mode)
                array = np.asarray(picture.convert(plain) if plain != picture.mode else picture)
            if array.dtype == bool:
                array = array.astype(np.uint8)
            grey = array.ndim == 3 and (array[..., :1] == array).all()
            return array[..., 0] if grey else array
        if suffix in H5:
            with h5py.File(path, "r") as file:
                key = h5_key or next((k for k in _LABEL_KEYS if k in file), "label")
                return _from_h5(file[key][()], h5_axes)
        array = read_image(path).array
        if array.shape[0] != 1:
            raise UserError(f"{path}: a mask has one channel, this file has {array.shape[0]}")
        return array[0]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises (each library has errors of its own) into one line that names the file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; restore it or remove the case")
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it") from error
    except KeyError as error:
        raise UserError(f"{path}: the file lacks what is needed: {' '.join(str(error.args[0]).split())}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: cannot be read, truncated or not an image ({reason}); replace or remove it"
        ) from error


def _read_picture(path: Path) -> Image:
    with Pillow.open(path) as picture:
        if (pages := getattr(picture, "n_frames", 1)) > 1:
            raise UserError(f"{path}: holds {pages} pictures; save each as an image, or all as a NIfTI volume")
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


def _read_nifti(path: Path) -> Image:
    file: Any = nib.load(path)
    if len(file.shape) not in (3, 4):
        raise UserError(f"{path}: has {len(file.shape)} axes; a volume has 3, or 4 with channels last")
    turn = ornt_transform(io_orientation(file.affine), _RAS)
    data = apply_orientation(np.asanyarray(file.dataobj), turn)
    array = np.moveaxis(data, -1, 0) if data.ndim == 4 else data[None]
    zooms = nib.affines.voxel_sizes(file.affine)
    spacing = tuple(float(zooms[int(axis)]) for axis in np.argsort(turn[:3, 0]))

    def write(classes: np.ndarray, target: Path) -> None:
        back = apply_orientation(classes, ornt_transform(_RAS, io_orientation(file.affine)))
        header = file.header.copy()  # keeps both affines and their codes to the bit
        header.set_data_dtype(back.dtype)
        header.set_intent("none")
        header["cal_min"] = header["cal_max"] = 0
        mask = type(file)(back, file.affine, header)
        with atomic_path(target) as temporary:
            nib.save(mask, temporary)

    return Image(array, spacing, suffix_of(path), write)


def _dicom_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def _read_itk(path: Path) -> Image:
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise UserError(f"{path}: holds {len(series)} DICOM series; a case is a folder with exactly one")
        stored = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0]))
    else:
        stored = sitk.ReadImage(str(path))
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


def _read_h5(path: Path, axes: Axes, spacing: Sequence[float] | None) -> Image:
    with h5py.File(path, "r") as file:
        stored = file["image"][()]
        own = file["image"].attrs.get("spacing")
    if stored.ndim != 3:
        raise UserError(f"{path}: key 'image' has {stored.ndim} axes; a volume has 3")
    own = tuple(float(s) for s in own)[:: -1 if axes == "zyx" else 1] if own is not None else None

    def write(classes: np.ndarray, target: Path) -> None:
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as out:
            out.create_dataset("label", data=_from_h5(classes, axes), compression="gzip")

    return Image(_from_h5(stored, axes)[None], own or tuple(spacing or (1.0, 1.0, 1.0)), ".h5", write)
