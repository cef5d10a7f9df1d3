"""Synthetic scenes as a data set: for the demo, for tests and for trying a method before one's data are ready."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.data.cache import default_directory
from semiseg.data.folder import Folder
from semiseg.data.layouts import write_folder
from semiseg.data.limits import check_numbers
from semiseg.errors import UserError, check_number

MAX_VOXELS = 2**24  # of a scene: making one takes a few hundred bytes a voxel
MAX_VOXELS_OF_ALL = 2**28  # some minutes to make, and a GB on disk


class Synthetic(Folder):
    """Generated 2D or 3D scenes with known masks, written once as a `Folder` and read like one.

    Textured scenes with deformed objects of each class and distractors that look alike (see `semiseg.data.scenes`):
    hard enough that few labels score clearly below many, and the same on every machine.

    Args:
        root: folder to write to; default: one in the cache, named by the arguments.
        num_cases: number of images, 100,000 at most.
        size: size of each image, two or three numbers: its length makes the data 2D or 3D.
        num_scene_classes: number of classes, background included, 10 at most.
        unlabeled: number of the images that have no mask.
        scene_seed: seed of the scenes.
        image_size: as in `Folder`; default: `size` in 2D.
        patch_size: as in `Folder`; default: `size` in 3D.
        **kwargs: options of every data set.
    """

    def __init__(
        self,
        root: str | None = None,
        num_cases: int = 100,
        size: Sequence[int] = (64, 64),
        num_scene_classes: int = 2,
        unlabeled: int = 0,
        scene_seed: int = 0,
        image_size: Sequence[int] | None = None,
        patch_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        for option, value, least, most in (
            ("num_cases", num_cases, 1, 100_000),
            ("num_scene_classes", num_scene_classes, 2, 10),
            ("unlabeled", unlabeled, 0, num_cases),
            ("scene_seed", scene_seed, 0, 2**32 - 1),
        ):
            check_number(f"--data.{option}", value, least, most)
        check_numbers("--data.size", size, 8, 4096)
        voxels = math.prod(size)
        if voxels > MAX_VOXELS or voxels * num_cases > MAX_VOXELS_OF_ALL:
            raise UserError(
                f"--data.size {list(size)} x --data.num_cases {num_cases}: a scene has {MAX_VOXELS} voxels at most, "
                f"all scenes {MAX_VOXELS_OF_ALL}; use smaller or fewer ones"
            )
        facts = (len(size), num_cases, *size, num_scene_classes, unlabeled, scene_seed)
        folder = Path(root) if root else default_directory() / f"synthetic-{'-'.join(map(str, facts))}"
        if not (folder / "images").is_dir():
            self._write(folder, num_cases, tuple(size), num_scene_classes, unlabeled, scene_seed)
        if image_size is None and patch_size is None:
            image_size, patch_size = (size, None) if len(size) == 2 else (None, size)
        super().__init__(str(folder), image_size=image_size, patch_size=patch_size, **kwargs)

    @property
    def dataset_name(self) -> str:
        """`synthetic2d` or `synthetic3d`."""
        return f"synthetic{self.spatial_dims}d"

    @staticmethod
    def _write(
        folder: Path, num_cases: int, size: tuple[int, ...], num_classes: int, unlabeled: int, seed: int
    ) -> None:
        """Write beside and rename, so that of two processes one wins and neither sees half a set."""
        beside = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(dir=folder.parent))
            write_folder(beside, num_cases, len(size), size, num_classes, unlabeled=unlabeled, seed=seed)
            beside.rename(folder)
        except OSError as error:
            if not (folder / "images").is_dir():  # else the other process was first
                raise UserError(
                    f"{folder}: cannot be written ({error.strerror}); choose another --data.root"
                ) from error
        finally:
            if beside is not None:
                shutil.rmtree(beside, ignore_errors=True)
