"""One's own images: a folder of images and masks, or a table that lists them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import NAME, Case
from semiseg.data.headers import SPACING
from semiseg.data.io import PICTURES, Axes, find_images, is_image, stem_of, suffix_of
from semiseg.data.limits import check_numbers
from semiseg.errors import UserError, check_number
from semiseg.files import read_table

_COLUMNS = ("case", "patient", "image", "mask")
MAX_CLASSES = 254  # class maps are uint8, and 255 is what stands for no class


class Folder(SegmentationDataModule):
    """A user's own 2D or 3D images: `images/` and `masks/` with equal stems, or a CSV manifest.

    An image without a mask is an unlabeled one. Without a manifest each image counts as one patient; where a patient
    has several images, a manifest must say so, else they leak between training and test. Number of axes, channels and
    classes come from the files. Mask values become classes by `mask_values`; without it: `0` with one other value, or
    the class indices 0..K-1. To find K, the masks that the run may open (labeled, validation, test) are read.

    Args:
        root: folder that holds `images/` and `masks/`, or that a manifest's paths start from.
        manifest: CSV file with the columns case, patient, image, mask (empty for an unlabeled case).
        mask_values: value of each class in the masks, background first: `[0, 255]`, `[0, 1, 2]`, colours
            `[[0, 0, 0], [255, 0, 0]]`; or `foreground`: every value above 0 is class 1 (instance ids).
        class_names: names of the classes, background first.
        h5_axes: order of the axes in h5 volumes: `xyz` (slices last) or `zyx` (slices first).
        default_spacing: spacing (x, y, z) in mm of h5 volumes without one, or (row, column) of 2D images.
        image_size: size that 2D images are resized to; default 256 x 256 in 2D unless there is a patch size.
        patch_size: size of training patches and of the sliding window; default 96 x 96 x 64 in 3D.
        **kwargs: options of every data set.
    """

    layout = "images/<name>.<png|jpg|tif|bmp|nii.gz|nrrd|mha|h5> with masks/<name>.<...>, or --data.manifest FILE.csv"

    def __init__(
        self,
        root: str,
        manifest: str | None = None,
        mask_values: Literal["foreground"] | Sequence[int] | Sequence[Sequence[int]] | None = None,
        class_names: Sequence[str] | None = None,
        h5_axes: Axes = "xyz",
        default_spacing: Sequence[float] | None = None,
        image_size: Sequence[int] | None = None,
        patch_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, image_size=image_size, patch_size=patch_size, **kwargs)
        if mask_values is not None and mask_values != "foreground":
            _check_values(mask_values)
        if class_names is not None:
            _check_names(class_names)
        if default_spacing is not None:
            check_numbers("--data.default_spacing", default_spacing, *SPACING, counts=(2, 3))
        self.manifest = Path(manifest) if manifest else None
        self.mask_values = mask_values
        self.h5_axes = h5_axes
        self.default_spacing = tuple(default_spacing) if default_spacing is not None else None
        self._names = tuple(class_names) if class_names is not None else None
        if self.image_size is None and self.patch_size is None and self.root.is_dir():
            if self.spatial_dims == 2:
                self.image_size = (256, 256)
            else:
                self.patch_size = (96, 96, 64)

    @property
    def dataset_name(self) -> str:
        """Name of the user's folder."""
        return "".join(c if c.isalnum() or c in "-_" else "-" for c in self.root.resolve().name.lower())

    @cached_property
    def spatial_dims(self) -> int:  # type: ignore[override]
        """2 for pictures, 3 for volumes, by the first image."""
        return 2 if suffix_of(self.cases[0].image) in PICTURES else 3

    def find_cases(self) -> list[Case]:
        """Cases of the manifest, or of `images/` and `masks/`."""
        return self._from_manifest(self.manifest) if self.manifest else self._from_folders()

    def _from_folders(self) -> list[Case]:
        images, masks = self.root / "images", self.root / "masks"
        if not images.is_dir():
            raise UserError(f"--data.root {self.root}: has no folder images/; expected {self.layout}")
        image_of = _by_stem(find_images(images))
        mask_of = _by_stem(find_images(masks)) if masks.is_dir() else {}
        orphans = sorted(set(mask_of) - set(image_of))
        if orphans:
            others = f" (and {len(orphans) - 1} more: {', '.join(orphans[1:6])})" if orphans[1:] else ""
            first = orphans[0]
            raise UserError(f"{mask_of[first]}: mask without image{others}; add {images / first}.* or remove the mask")
        return [Case(stem, stem, image, mask_of.get(stem)) for stem, image in image_of.items()]

    def _from_manifest(self, path: Path) -> list[Case]:
        path = path if path.exists() else self.root / path
        if not path.exists():
            raise UserError(f"--data.manifest {self.manifest}: no such file, here or in {self.root}")
        cases: list[Case] = []
        lines: dict[str | Path, int] = {}  # of what belongs to one case only: its name, its files
        for number, row in enumerate(read_table(path, _COLUMNS), start=2):
            case = self._from_row(f"{path}, line {number}", row)
            if case.case in lines:
                raise UserError(f"{path}: case {case.case} is listed more than once; each case needs a name of its own")
            for file in {case.image, case.mask} - {None}:
                assert file is not None
                if file in lines:
                    raise UserError(
                        f"{path}: {file} is in lines {lines[file]} and {number}; each case needs files of its own"
                    )
                lines[file] = number
            lines[case.case] = number
            cases.append(case)
        return cases

    def _from_row(self, where: str, row: dict[str, str]) -> Case:
        if not row["case"] or not row["image"]:
            raise UserError(f"{where}: case and image must not be empty")
        image, mask = self.root / row["image"], self.root / row["mask"] if row["mask"] else None
        for file in (image, mask):
            if file is not None and file.exists() and not is_image(file):
                raise UserError(f"{where}: {file} is of an unknown format")
        if not image.exists():  # a missing mask matters, and is reported, only where the run needs it
            raise UserError(f"{where}: {image} does not exist")
        return Case(row["case"], row["patient"] or row["case"], image, mask)

    # Classes

    @cached_property
    def class_values(self) -> tuple[int | tuple[int, ...], ...]:  # type: ignore[override]
        """Value of each class in the mask files, given or found."""
        if self.mask_values == "foreground":
            return (0, 255)
        if self.mask_values is not None:
            return tuple(tuple(v) if isinstance(v, Sequence) else int(v) for v in self.mask_values)  # type: ignore[arg-type]
        pixels: Counter[int] = Counter()
        files: dict[int, list[Path]] = defaultdict(list)
        for case in [*self.part("labeled"), *self.part("validation"), *self.part("test")]:
            mask = self.read_raw_mask(case)
            if mask.ndim > self.spatial_dims:
                raise UserError(
                    f"{case.mask}: a colour mask; give the colours as --data.mask_values [[0,0,0],[255,0,0]]"
                )
            for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
                pixels[int(value)] += int(count)
                files[int(value)].append(case.mask or self.root)
            if len(files) > 64:
                break
        rare = min(files, key=lambda value: (len(files[value]), pixels[value]))
        return _infer_values(sorted(files), f"{files[rare][0]} has {rare}", self.root)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names given, or background with foreground or class_1, class_2, ..."""
        count = len(self.class_values)
        if self._names is None:
            return ("background", *(["foreground"] if count == 2 else [f"class_{k}" for k in range(1, count)]))
        if len(self._names) != count:
            raise UserError(f"--data.class_names: {len(self._names)} names for {count} classes (background included)")
        return self._names

    def to_classes(self, mask: np.ndarray) -> np.ndarray:
        """By `mask_values`."""
        if self.mask_values == "foreground":
            return (mask if mask.ndim == self.spatial_dims else mask.max(-1)) > 0
        colours = isinstance(self.class_values[0], tuple)
        if colours and mask.ndim == self.spatial_dims:
            mask = np.repeat(mask[..., None], 3, axis=-1)
        if not colours and mask.ndim > self.spatial_dims:
            raise ValueError("a colour mask; give the colours as --data.mask_values [[0,0,0],[255,0,0]]")
        classes = np.full(mask.shape[: self.spatial_dims], 255, np.uint8)
        for index, value in enumerate(self.class_values):
            classes[(mask == value).all(-1) if colours else mask == value] = index
        if (unknown := classes == 255).any():
            odd = np.unique(mask[unknown], axis=0)[:5].tolist()
            raise ValueError(
                f"unexpected values {odd} in {int(unknown.sum())} pixels; classes are {list(self.class_values)}: "
                "repair the mask or set --data.mask_values"
            )
        return classes

    @property
    def _mask_rule(self) -> dict[str, Any]:
        return {**super()._mask_rule, "foreground": self.mask_values == "foreground"}


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if (stem := stem_of(path)) in stems:
            raise UserError(f"{path}: has the same stem as {stems[stem].name}; rename one of them")
        stems[stem] = path
    return stems


def _check_values(values: str | Sequence[int] | Sequence[Sequence[int]]) -> None:
    """Values of classes: 2 to 254 of them, all numbers or all colours, each once."""
    if not 2 <= len(values) <= MAX_CLASSES:
        raise UserError(
            f"--data.mask_values: {len(values)} values; give 2 to {MAX_CLASSES}, one per class, background first"
        )
    found: list[Any] = [tuple(value) if isinstance(value, Sequence) else value for value in values]
    for value in found:
        if isinstance(value, tuple):
            check_numbers("--data.mask_values", value, 0, 255, counts=(3,))
        else:
            check_number("--data.mask_values", value, -(2**31), 2**32)
    if twice := [value for value, count in Counter(found).items() if count > 1]:
        raise UserError(f"--data.mask_values: {twice[0]} is there twice; each class needs a value of its own")
    if len({type(value) for value in found}) > 1:
        raise UserError("--data.mask_values: holds numbers and colours; give only numbers, or only colours [r,g,b]")


def _check_names(names: Sequence[str]) -> None:
    """Names of classes: they become columns of tables and parts of file names."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"--data.class_names: {len(names)} names; give 2 to {MAX_CLASSES}, one per class, background first"
        )
    for name in names:
        if not NAME.fullmatch(name) or re.search(r'[/\\,;"]', name) or name.strip() != name or not 1 <= len(name) <= 64:
            raise UserError(
                f"--data.class_names {name!a:.80}: use 1 to 64 characters, without slash, comma, semicolon, quotation "
                "mark, line break, or spaces around it"
            )
        if name.startswith("."):
            raise UserError(f"--data.class_names {name}: begin it with a letter or digit, not with a dot")
    if twice := [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]:
        raise UserError(f"--data.class_names: {twice[0]} is there twice; each class needs a name of its own")


def _infer_values(found: list[int], rarest: str, root: Path) -> tuple[int, ...]:
    """Two values with 0 are background and foreground; small integers are class indices."""
    if found and found[0] == 0 and len(found) == 2:
        return tuple(found)
    if len(found) > 2 and found[0] >= 0 and found[-1] < min(64, 2 * len(found)):
        return tuple(range(found[-1] + 1))
    shown = f"{found[:8]}{' ...' if len(found) > 8 else ''}"
    raise UserError(
        f"{root}: masks hold the values {shown}, which do not tell the classes ({rarest}); repair the masks or "
        "set --data.mask_values, such as [0,255], [0,128,255], [[0,0,0],[255,0,0]] for colours, or foreground for "
        "instance ids"
    )
