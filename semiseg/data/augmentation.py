"""Random crops, flips and rotations, each a function of an image, its mask and one random generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.errors import check_number


@dataclass(frozen=True)
class Augmentation:
    """Flips, rotations, zoom and intensity changes; 2D and 3D alike.

    Flips and rotations are the papers'. Zoom and intensity are ours: with four labeled images of GlaS they moved
    validation Dice more than loss, learning rate, head or budget did. `configs/protocol/published.yaml` turns them off.

    Args:
        flip: flip every spatial axis with probability 0.5.
        rot90: rotate by a random multiple of 90 degrees in the first two axes (3D: the axial plane).
        rotate: largest free rotation in degrees, 2D only, used on half of the images; 0 for none.
        zoom: images are enlarged or shrunk by a factor of up to 1 + zoom, 2D only; 0 for none.
        intensity: largest relative change of contrast, and of brightness in standard deviations, each channel on its
            own, so that colours change too; 0 for none.

    Raises:
        UserError: a number is out of its range.
    """

    flip: bool = True
    rot90: bool = True
    rotate: float = 15.0
    zoom: float = 0.3
    intensity: float = 0.3

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("--data.augmentation.rotate", self.rotate, 0, 180)
        check_number("--data.augmentation.zoom", self.zoom, 0, 10)
        check_number("--data.augmentation.intensity", self.intensity, 0, 10)

    def __call__(self, image: Tensor, mask: Tensor | None, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Augment an image (C, *S) and its mask (*S) alike; the same generator state gives the same result."""
        spatial = image.ndim - 1
        if self.flip:
            axes = [axis - spatial for axis in range(spatial) if random.random() < 0.5]
            if axes:
                image, mask = image.flip(axes), mask.flip(axes) if mask is not None else None
        if self.rot90:
            turns = int(random.integers(4))
            if image.shape[1] != image.shape[2]:
                turns -= turns % 2  # a quarter turn would exchange the sides
            plane = [-spatial, 1 - spatial]
            image = image.rot90(turns, plane)
            mask = mask.rot90(turns, plane) if mask is not None else None
        turn, factor = 0.0, 1.0
        if self.rotate and spatial == 2 and random.random() < 0.5:
            turn = math.radians(random.uniform(-self.rotate, self.rotate))
        if self.zoom and spatial == 2:
            factor = (1 + self.zoom) ** random.uniform(-1, 1)
        if turn or factor != 1:
            image, mask = _rotate_and_zoom(image, mask, turn, factor)
        if self.intensity:
            change = random.uniform(-self.intensity, self.intensity, size=(2, len(image), *[1] * spatial))
            contrast, brightness = torch.from_numpy(change).to(image.dtype)
            image = image * (1 + contrast) + brightness
        return image.contiguous(), mask.contiguous() if mask is not None else None


def _rotate_and_zoom(
    image: Tensor, mask: Tensor | None, angle: float, factor: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Rotate about the centre, in pixels (not stretched on oblong images), and enlarge; the border is mirrored."""
    height, width = image.shape[1:]
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    image = F.grid_sample(image[None], grid, "bilinear", "reflection", align_corners=False)[0]
    if mask is not None:
        mask = F.grid_sample(mask[None, None].float(), grid, "nearest", "reflection", align_corners=False)[0, 0].long()
    return image, mask


def crop_origin(
    shape: Sequence[int], patch: Sequence[int], foreground: np.ndarray | None, random: np.random.Generator
) -> tuple[int, ...]:
    """First voxel of a random patch inside a volume.

    Args:
        shape: size (*S) of the volume, at least the patch's.
        patch: size (*S) of the patch.
        foreground: flat indices of foreground voxels, one of which the patch shall contain, or None for any patch.
        random: generator to draw from.
    """
    room = np.array(shape) - np.array(patch)
    if foreground is None or not len(foreground):
        return tuple(int(n) for n in random.integers(room + 1))
    voxel = np.array(np.unravel_index(int(foreground[random.integers(len(foreground))]), tuple(shape)))
    low, high = np.maximum(voxel - np.array(patch) + 1, 0), np.minimum(voxel, room)
    return tuple(int(n) for n in random.integers(low, high + 1))
