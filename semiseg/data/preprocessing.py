"""What happens to an image between its file and the network, and back: kept in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.data.io import Axes, Image, read_image
from semiseg.errors import UserError

MAX_CHANNELS = 64
MAX_CLASSES = 256
MAX_NAME = 100  # characters of a class's name
MAX_PIXELS = 2**26  # of the network's input
MAX_LEVEL = 1e12  # of an image's values


@dataclass(frozen=True)
class Preprocessing:
    """How images of a data set reach the network; plain values only, so that it lives in a checkpoint.

    Images are brought to `in_channels`, resized to `image_size` or resampled to `spacing` where these are given, and
    normalised: with the training images' `mean` and `std` per channel where given (2D), else each image by its own
    (3D: MR intensities have no common unit).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        class_names: names of the classes, background first.
        class_values: value (or colour) that stands for each class in the mask files, used for writing masks.
        image_size: size (*S) that whole images are resized to, or None.
        patch_size: size (*S) of training patches and of the inference window, or None for whole images.
        spacing: spacing (*S) in mm that volumes are resampled to, or None.
        mean: mean per channel, or None to normalise each image by itself.
        std: standard deviation per channel, or None.
        h5_axes: axis order of HDF5 files.
        h5_spacing: spacing of HDF5 files that do not state it.
    """

    spatial_dims: int
    in_channels: int
    class_names: tuple[str, ...]
    class_values: tuple[int | tuple[int, ...], ...]
    image_size: tuple[int, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    h5_axes: Axes = "xyz"
    h5_spacing: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """The inverse of `to_dict`, for values from a file.

        Raises:
            UserError: a value is not of its type or out of its range, or one is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, dict) or not needed <= values.keys() <= known:
            raise UserError("preprocessing: its values are not those of this version of semiseg")
        made = cls(**{name: _as_tuples(value) for name, value in values.items()})
        made._check()
        return made

    def _check(self) -> None:
        dims, channels, classes = self.spatial_dims, self.in_channels, self.class_names
        _require("spatial_dims", "2 or 3", _is_whole(dims, 2, 3))
        _require("in_channels", f"1 to {MAX_CHANNELS}", _is_whole(channels, 1, MAX_CHANNELS))
        named = _are(classes, _is_name) and 2 <= len(classes) <= MAX_CLASSES and len({*classes}) == len(classes)
        _require("class_names", f"2 to {MAX_CLASSES} different names of up to {MAX_NAME} characters", named)
        valued = _are(self.class_values, lambda value: _is_whole(value, 0, 65535)) or _are(self.class_values, _is_color)
        valued = valued and len(self.class_values) == len(classes)
        _require("class_values", "a whole number up to 65535, or a color, for each class", valued)
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            sized = size is None or (_are(size, lambda n: _is_whole(n, 1, MAX_PIXELS)) and len(size) == dims)
            sized = sized and (size is None or math.prod(size) <= MAX_PIXELS)
            _require(name, f"a size for each of {dims} axes, {MAX_PIXELS} pixels together at most", sized)
        for name, count, least, most in (
            ("spacing", dims, 1e-6, 1e4), ("h5_spacing", dims, 1e-6, 1e4),
            ("mean", channels, -MAX_LEVEL, MAX_LEVEL), ("std", channels, 1 / MAX_LEVEL, MAX_LEVEL),
        ):  # fmt: skip
            numbers = getattr(self, name)
            right = _are(numbers, partial(_is_number, least=least, most=most)) and len(numbers) == count
            _require(name, f"{count} number(s) from {least:g} to {most:g}", numbers is None or right)
        _require("mean", "given where std is", (self.mean is None) == (self.std is None))
        _require("h5_axes", " or ".join(get_args(Axes)), self.h5_axes in get_args(Axes))

    def read(self, path: Path) -> Image:
        """Read an image file and check that it has this data's number of axes."""
        image = read_image(path, self.h5_axes, self.h5_spacing)
        if image.array.ndim - 1 != self.spatial_dims:
            raise UserError(
                f"{path}: is a {image.array.ndim - 1}D image; {self.spatial_dims}D images are expected here"
            )
        return image

    def grid(self, image: Image) -> tuple[int, ...]:
        """Size (*S) of the network's grid for an image."""
        shape = image.array.shape[1:]
        if self.image_size is not None:
            return self.image_size
        if self.spacing is not None:
            ratio = (n * old / new for n, old, new in zip(shape, image.spacing, self.spacing, strict=True))
            return tuple(max(1, round(r)) for r in ratio)
        return tuple(shape)

    def prepare(self, image: Image, size: Sequence[int] | None = None) -> np.ndarray:
        """The image (C, *S) on the network's grid, small enough to be cached: uint8, or float16 once normalised."""
        array = _to_channels(image.array, self.in_channels)
        grid = tuple(size or self.grid(image))
        if self.mean is None and self.spatial_dims == 3:
            return _standardise(resize(array.astype(np.float32), grid)).astype(np.float16)
        if grid == array.shape[1:]:
            return np.ascontiguousarray(array)
        resized = resize(array.astype(np.float32), grid)
        return resized.round().clip(0, 255).astype(np.uint8) if array.dtype == np.uint8 else resized

    def normalise(self, prepared: np.ndarray) -> Tensor:
        """Prepared array to the float tensor (C, *S) that the network takes."""
        image = torch.from_numpy(prepared.astype(np.float32))
        if self.mean is None or self.std is None:
            return image
        shape = (-1,) + (1,) * self.spatial_dims
        return (image - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)

    def picture(self, image: Tensor) -> np.ndarray:
        """The array that `normalise` made an image (C, *S) from, so that its channels can be shown in their colours."""
        array = image.float().cpu()
        if self.mean is None or self.std is None:
            return array.numpy()
        shape = (-1,) + (1,) * self.spatial_dims
        return (array * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)).numpy()


def resize(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Linear resizing of a float array (C, *S), with anti-aliasing in 2D."""
    if tuple(size) == array.shape[1:]:
        return array
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    return resize_logits(tensor, size, antialias=array.ndim == 3)[0].numpy()


def resize_logits(logits: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """Linear resizing of a batch (B, K, *S)."""
    if tuple(size) == tuple(logits.shape[2:]):
        return logits
    mode = "bilinear" if logits.ndim == 4 else "trilinear"
    return F.interpolate(logits, size=tuple(size), mode=mode, align_corners=False, antialias=antialias)


def resize_classes(classes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Nearest-neighbour resizing of a class map (*S)."""
    if tuple(size) == classes.shape:
        return np.ascontiguousarray(classes)
    tensor = torch.from_numpy(np.array(classes))[None, None]
    return F.interpolate(tensor, size=tuple(size), mode="nearest-exact")[0, 0].numpy()


def _to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Grey to RGB by repetition, RGB to grey by luminance (ITU-R 601), or as it is."""
    if array.shape[0] == channels:
        return array
    if array.shape[0] == 1:
        return np.repeat(array, channels, axis=0)
    if array.shape[0] == 3 and channels == 1:
        grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), array.astype(np.float32), axes=1)[None]
        return grey.round().astype(array.dtype) if np.issubdtype(array.dtype, np.integer) else grey
    raise UserError(f"image with {array.shape[0]} channels where {channels} are expected: convert it")


def _standardise(array: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, array.ndim))
    mean, std = array.mean(axes, keepdims=True), array.std(axes, keepdims=True)
    return (array - mean) / np.maximum(std, 1e-6)


def _require(name: str, rule: str, right: bool) -> None:
    if not right:
        raise UserError(f"preprocessing: {name}: must be {rule}")


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, two levels deep, which is all that there are."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(part) if isinstance(part, list) else part for part in value)


def _are(values: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple) and all(kind(value) for value in values)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _is_color(value: Any) -> bool:
    return _are(value, lambda level: _is_whole(level, 0, 255)) and len(value) == 3


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_NAME and value.isprintable()
