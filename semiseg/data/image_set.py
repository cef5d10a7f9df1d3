"""What a data set is: where its cases are, what their masks mean, and their decoded arrays from the cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from semiseg.data.cache import ArrayCache, Entry
from semiseg.data.cases import Case
from semiseg.data.io import Axes, Image, read_mask
from semiseg.data.preprocessing import Preprocessing, resize_classes
from semiseg.errors import UserError

T = TypeVar("T")


def _kept(method: Callable[[ImageSet, Case], T]) -> Callable[[ImageSet, Case], T]:
    """Ask for a case once in a run, so that a step neither looks at files nor verifies arrays."""

    @wraps(method)
    def kept(self: ImageSet, case: Case) -> T:
        found = self._found.setdefault(method.__name__, {})
        if case.case not in found:
            found[case.case] = method(self, case)
        return found[case.case]

    return kept


class ImageSet:
    """Cases, classes and decoded arrays of one data set; `SegmentationDataModule` adds the split and the loaders.

    A data set sets the class attributes and writes `find_cases` (where) and, where masks are not simply "above 0 is
    foreground", `to_classes` (what).

    Args:
        root: folder of the data set, as it was released.
        image_size: size that whole images are resized to.
        patch_size: size of training patches, instead of whole images.
        spacing: spacing in mm that volumes are resampled to; default: as they are.
        cache: decoded arrays on disk.
    """

    spatial_dims: int = 2
    class_names: tuple[str, ...] = ("background", "foreground")
    class_values: tuple[int | tuple[int, ...], ...] = (0, 255)
    default_spacing: tuple[float, ...] | None = None
    h5_axes: Axes = "xyz"
    layout: ClassVar[str] = ""

    def __init__(
        self,
        root: Path,
        image_size: Sequence[int] | None,
        patch_size: Sequence[int] | None,
        spacing: Sequence[float] | None,
        cache: ArrayCache,
    ) -> None:
        self.root = root
        self.image_size = tuple(image_size) if image_size is not None else None
        self.patch_size = tuple(patch_size) if patch_size is not None else None
        self.spacing = tuple(spacing) if spacing is not None else None
        self.cache = cache
        self._found: dict[str, dict[str, Any]] = {}  # what `_kept` methods returned, by method and case

    def find_cases(self) -> list[Case]:
        """List the cases below `root` without opening any; the base checks that there are some."""
        raise UserError(
            f"--data {type(self).__name__}: does not say where its cases are (find_cases); use GlaS or Folder"
        )

    def to_classes(self, mask: np.ndarray) -> np.ndarray:
        """Raw mask values, (*S) or (*S, 3), to class indices (*S). Default: above 0 in the first channel is class 1.

        Raises:
            ValueError: the mask holds values that stand for no class; the message says which.
        """
        return (mask if mask.ndim == self.spatial_dims else mask[..., 0]) > 0

    def read_image(self, case: Case) -> Image:
        """The image of a case, from its file."""
        return self._reader.read(case.image)

    def read_raw_mask(self, case: Case) -> np.ndarray:
        """The mask as it is in its file, in the image's axis order."""
        if case.mask is None:
            raise UserError(f"case {case.case} has no mask")
        return read_mask(case.mask, self.h5_axes)

    @property
    def dataset_name(self) -> str:
        """Name of the data set in run folders and reports."""
        return type(self).__name__.lower()

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """All cases, sorted by name."""
        if not self.root.is_dir():
            raise UserError(f"--data.root {self.root}: no such folder; give the folder that holds the data set")
        cases = tuple(sorted(self.find_cases()))
        if not cases:
            raise UserError(f"--data.root {self.root}: no cases found; expected {self.layout}")
        for one, other in pairwise(cases):
            if one.case == other.case:
                raise UserError(f"{other.image}: case {other.case} is there twice, also as {one.image}; remove one")
        return cases

    @cached_property
    def by_name(self) -> dict[str, Case]:
        """Case name to case."""
        return {case.case: case for case in self.cases}

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    @cached_property
    def in_channels(self) -> int:
        """Channels of the first image; images of another kind are converted to it."""
        return int(self.read_image(self.cases[0]).array.shape[0])

    @cached_property
    def _reader(self) -> Preprocessing:
        """Preprocessing before anything is known of the images' content."""
        return self._preprocessing(1)

    def _preprocessing(self, in_channels: int, **normalisation: Any) -> Preprocessing:
        for option in ("image_size", "patch_size", "spacing"):
            value = getattr(self, option)
            if value is not None and (len(value) != self.spatial_dims or min(value) <= 0):
                raise UserError(
                    f"--data.{option} {list(value)}: give {self.spatial_dims} positive numbers, one per axis"
                )
        return Preprocessing(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            class_names=tuple(self.class_names),
            class_values=tuple(self.class_values),
            image_size=self.image_size,
            patch_size=self.patch_size,
            spacing=self.spacing,
            h5_axes=self.h5_axes,
            h5_spacing=self.default_spacing,
            **normalisation,
        )

    def prepared_image(self, case: Case) -> np.ndarray:
        """The image (C, *S) on the network's grid, memory-mapped."""
        return self._map(self.image_entry, case)

    def prepared_mask(self, case: Case) -> np.ndarray:
        """The class map (*S) on the network's grid, memory-mapped."""
        return self._map(self.mask_entry, case)

    def native_mask(self, case: Case) -> np.ndarray:
        """The class map (*S) at the image's own resolution, memory-mapped."""
        return self._map(self.native_mask_entry, case)

    @_kept
    def spacing_of(self, case: Case) -> tuple[float, ...]:
        """Spacing per axis at the image's own resolution: mm where the file or the data set knows it, else pixels."""
        if self.spatial_dims == 2:
            return self.default_spacing or (1.0, 1.0)
        return tuple(float(s) for s in self._map(self._spacing_entry, case))

    @_kept
    def image_entry(self, case: Case) -> Entry:
        """Where the prepared image lies in the cache, built if need be."""
        reader = self._preprocessing(self.in_channels)
        keys = ("spatial_dims", "in_channels", "image_size", "spacing", "h5_axes", "h5_spacing")
        preparation = {key: getattr(reader, key) for key in keys}

        def prepare() -> np.ndarray:
            image = self.read_image(case)
            try:
                return reader.prepare(image)
            except UserError as error:
                raise UserError(f"{case.image}: {error}") from error

        return self.cache.find(case.image, {"kind": "image", "case": case.case, **preparation}, prepare)

    @_kept
    def mask_entry(self, case: Case) -> Entry:
        """Where the class map on the network's grid lies in the cache, built if need be."""
        native, grid = self.native_mask_entry(case), self.image_entry(case).shape[1:]
        if native.shape == grid:
            return native
        preparation = {"kind": "grid-mask", "case": case.case, "grid": grid, **self._mask_rule}
        return self.cache.find(mask_file(case), preparation, lambda: resize_classes(self.native_mask(case), grid))

    @_kept
    def native_mask_entry(self, case: Case) -> Entry:
        """Where the class map at the image's own resolution lies in the cache, built if need be."""
        mask, image = mask_file(case), self.cache.fingerprint(case.image)  # the mask is checked against its size
        preparation = {"kind": "mask", "case": case.case, "image": image, **self._mask_rule}
        return self.cache.find(mask, preparation, lambda: self.read_classes(case))

    @_kept
    def _spacing_entry(self, case: Case) -> Entry:
        preparation = {"kind": "spacing", "spacing": self.default_spacing, "axes": self.h5_axes}
        return self.cache.find(case.image, preparation, lambda: np.array(self.read_image(case).spacing))

    def _map(self, find: Callable[[Case], Entry], case: Case) -> np.ndarray:
        """Map an array anew at each access: open files are bounded by the arrays in use, not by the cases."""
        for _ in range(10):
            try:
                return find(case).map()
            except (OSError, ValueError):  # it was there: another process trims the folder
                self._find_again(case)
        raise UserError(
            f"cache folder {self.cache.directory}: arrays vanish while they are used; raise --data.cache_gb, or choose "
            "another folder with --data.cache_dir DIR"
        )

    def _find_again(self, case: Case) -> None:
        """Build the arrays of a case again, from files that hold what they held.

        Raises:
            UserError: they do not.
        """
        former = {name: found.pop(case.case) for name, found in self._found.items() if case.case in found}
        for name, value in former.items():
            if getattr(self, name)(case) != value:
                raise UserError(f"{case.image}: it or its mask has changed during the run; restore it and start again")

    def read_classes(self, case: Case) -> np.ndarray:
        """Open a case's mask and map its values to classes (uint8), checked against the image's size.

        Raises:
            UserError: the mask is missing, unreadable, of another size or with values that stand for no class.
        """
        raw = self.read_raw_mask(case)
        try:
            classes = np.ascontiguousarray(self.to_classes(raw)).astype(np.uint8)
        except ValueError as error:
            raise UserError(f"{case.mask}: {error}") from error
        shape = self.read_image(case).array.shape[1:]
        if classes.shape != shape:
            raise UserError(
                f"{case.mask}: mask is {size_text(classes.shape)} but its image {case.image.name} is "
                f"{size_text(shape)}; replace one of them"
            )
        return classes

    @cached_property
    def _mask_rule(self) -> dict[str, Any]:
        """What class maps depend on beside their files; the source, so that an edited data set is read anew."""
        source = [inspect.getsource(kind) for kind in type(self).__mro__ if "to_classes" in vars(kind)]
        return {"rule": source, "values": self.class_values, "axes": self.h5_axes}


def mask_file(case: Case) -> Path:
    """The mask of a case that needs one.

    Raises:
        UserError: it has none.
    """
    if case.mask is None or not case.mask.exists():
        raise UserError(f"{case.mask or case.image}: mask not found; this case is labeled or scored, so it needs one")
    return case.mask


def size_text(shape: Sequence[int]) -> str:
    """A size as people write it."""
    return " x ".join(str(n) for n in shape)
