"""The base of every data set as Lightning knows it: split, streams and loaders over an image set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from semiseg.data.augmentation import Augmentation
from semiseg.data.cache import ArrayCache
from semiseg.data.cases import Case
from semiseg.data.datasets import EvaluationSet, TrainingSet, collate_evaluation, collate_training
from semiseg.data.image_set import ImageSet, mask_file, size_text
from semiseg.data.preprocessing import Preprocessing
from semiseg.data.samplers import StepSampler
from semiseg.data.splits import Split, make_split
from semiseg.errors import UserError, check_number


class SegmentationDataModule(ImageSet, lightning.LightningDataModule):
    """Cases, split, cache and loaders of one data set.

    A data set is a subclass that sets the class attributes of `ImageSet` and writes `find_cases` (where) and, where
    masks are not simply "above 0 is foreground", `to_classes` (what). Training batches are
    `{"labeled": {"image" (B, C, *S), "mask" (B, *S), "case"}, "unlabeled": {"image", "case"}}`, with the streams that
    the method asks for.

    Args:
        root: folder of the data set, as it was released.
        labeled_fraction: share of the training patients (with masks) that is labeled, 0..1.
        labeled_count: number of labeled patients, instead of a fraction.
        fold: fold of this run, 0 .. num_folds - 1.
        num_folds: number of folds.
        split: `kfold`, or `official` where the data set has a test set of its own.
        split_seed: seed of the split, the same for all methods that are compared.
        batch_size: labeled images per step and process.
        unlabeled_batch_size: unlabeled images per step and process; default `batch_size`.
        image_size: size that whole images are resized to, a multiple of the network's stride.
        patch_size: size of random training patches and of the sliding window, instead of whole images.
        spacing: spacing in mm that volumes are resampled to; default: as they are.
        foreground_share: share of labeled patches that are made to hold a foreground voxel (a third, as nnU-Net).
        augmentation: random flips, rotations and intensity changes.
        evaluation: score at the images' own resolution (`native`) or at the network's (`network`, as the papers did).
        ignore_unlabeled: accept cases without mask in a method that learns from labeled ones only.
        num_workers: loader processes; 0 suffices while the cache is warm.
        cache_dir: folder of decoded images; default `$SEMISEG_CACHE` or `~/.cache/semiseg`.
        cache_gb: size that the cache folder is trimmed to.
        seed: seed of sampling and augmentation; the command line sets it from `seed_everything`.
    """

    def __init__(
        self,
        root: str,
        labeled_fraction: float = 1.0,
        labeled_count: int | None = None,
        fold: int = 0,
        num_folds: int = 5,
        split: Literal["kfold", "official"] = "kfold",
        split_seed: int = 0,
        batch_size: int = 2,
        unlabeled_batch_size: int | None = None,
        image_size: Sequence[int] | None = None,
        patch_size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        foreground_share: float = 1 / 3,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  (frozen)
        evaluation: Literal["native", "network"] = "native",
        ignore_unlabeled: bool = False,
        num_workers: int = 0,
        cache_dir: str | None = None,
        cache_gb: float = 50.0,
        seed: int = 0,
    ) -> None:
        lightning.LightningDataModule.__init__(self)
        ImageSet.__init__(self, Path(root), image_size, patch_size, spacing, ArrayCache(cache_dir, cache_gb))
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("unlabeled_batch_size", unlabeled_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None:
                check_number(f"--data.{option}", value, least)
        check_number("--data.foreground_share", foreground_share, 0, 1)
        self.labeled_fraction = labeled_fraction
        self.labeled_count = labeled_count
        self.fold = fold
        self.num_folds = num_folds
        self.split_mode: Literal["kfold", "official"] = split
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.unlabeled_batch_size = unlabeled_batch_size or batch_size
        self.foreground_share = foreground_share
        self.augmentation = augmentation
        self.evaluation = evaluation
        self.ignore_unlabeled = ignore_unlabeled
        self.num_workers = num_workers
        self.seed = seed

    @cached_property
    def partition(self) -> Split:
        """The split of this fold, seed and label fraction."""
        return make_split(
            self.cases,
            mode=self.split_mode,
            num_folds=self.num_folds,
            fold=self.fold,
            seed=self.split_seed,
            labeled_fraction=self.labeled_fraction,
            labeled_count=self.labeled_count,
        )

    def part(self, name: str) -> list[Case]:
        """Cases of one part of the split: labeled, unlabeled, validation or test."""
        return [self.by_name[case] for case in getattr(self.partition, name)]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of this run; in 2D with the mean and deviation of its training images (at most 256 of them)."""
        if self.spatial_dims == 3:
            return self._preprocessing(self.in_channels)
        training = sorted([*self.part("labeled"), *self.part("unlabeled")])
        pixels, total, squares = 0, [], []
        for case in training[:: max(1, -(-len(training) // 256))]:
            image = self.prepared_image(case)
            pixels += image[0].size
            total.append(image.sum((1, 2), dtype=np.float64))
            squares.append(np.square(image, dtype=np.float64).sum((1, 2)))
        mean, power = sum(total) / pixels, sum(squares) / pixels
        std = np.sqrt(np.maximum(power - mean**2, 1e-12))
        return self._preprocessing(
            self.in_channels,
            mean=tuple(round(float(m), 6) for m in mean),
            std=tuple(round(float(s), 6) for s in std),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer: what a loader process that is not forked gets."""
        return {**self.__dict__, "trainer": None}

    # Lightning

    @property
    def _wanted_streams(self) -> Sequence[str]:
        """Streams that the run's method learns from; both where there is no method."""
        method = self.trainer.lightning_module if self.trainer is not None else None
        return getattr(method, "streams", ("labeled", "unlabeled"))

    @property
    def _without_masks(self) -> bool:
        """Whether the run's method does without the labeled stream: it then gets no mask, and every training image."""
        return "labeled" not in self._wanted_streams

    def prepare_data(self) -> None:
        """Decode what the run needs into the cache; every problem of a needed file shows here, before training."""
        training = [*self.part("labeled"), *self.part("unlabeled")]
        held_out = [*self.part("validation"), *self.part("test")]
        self._preprocessing(self.in_channels)  # found once, not by every thread
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(self.image_entry, [*training, *held_out]):
                pass
            if not self._without_masks:
                for _ in pool.map(self.mask_entry, self.part("labeled")):
                    pass
                for _ in pool.map(self.native_mask_entry, held_out):
                    pass
        self.cache.trim()
        shapes = {case: self.image_entry(case).shape[1:] for case in training}
        if self.patch_size is None:
            together = max(self.batch_size, self.unlabeled_batch_size, len(self._wanted_streams))
            if len(set(shapes.values())) > 1 and together > 1:
                raise UserError(f"{self.root}: images differ in size; set --data.image_size or --data.patch_size")
            return
        for case, shape in shapes.items():
            if any(n < p for n, p in zip(shape, self.patch_size, strict=True)):
                raise UserError(
                    f"{case.image}: volume {size_text(shape)} is smaller than --data.patch_size "
                    f"{size_text(self.patch_size)}; use a smaller patch or a finer --data.spacing"
                )

    def setup(self, stage: str) -> None:
        """Check that the run's method finds the streams it learns from."""
        if stage != "fit" or self.trainer is None:
            return
        streams = self._streams
        if "unlabeled" in streams and not streams["unlabeled"]:
            raise UserError(
                f"{type(self.trainer.lightning_module).__name__} needs unlabeled cases but none is left: lower "
                "--data.labeled_fraction or add images without masks"
            )
        without = [case for case in self.part("unlabeled") if case.mask is None]
        if "unlabeled" not in streams and without and not self.ignore_unlabeled:
            raise UserError(
                f"{without[0].image}: no mask, and {len(without)} such case(s), but this method learns from labeled "
                "images only; add the masks, or set --data.ignore_unlabeled true to leave these cases out"
            )
        if not self.partition.validation:
            raise UserError("no validation case is left; use fewer folds or add patients with masks")

    @property
    def _streams(self) -> dict[str, list[Case]]:
        if self._without_masks:
            return {"unlabeled": [*self.part("labeled"), *self.part("unlabeled")]}
        return {stream: self.part(stream) for stream in self._wanted_streams}

    def train_dataloader(self) -> Any:
        """Batches from the trainer's present step to its last one (times the batches that it accumulates)."""
        trainer = self.trainer
        assert trainer is not None
        if trainer.max_steps <= 0:
            raise UserError("--trainer.max_steps is not set: the budget of a run is counted in optimiser steps")
        streams = self._streams
        turns = trainer.accumulate_grad_batches  # batches of an optimiser step
        sampler = StepSampler(
            sizes={stream: len(cases) for stream, cases in streams.items()},
            batch_sizes={"labeled": self.batch_size, "unlabeled": self.unlabeled_batch_size},
            seed=self.seed,
            start=trainer.global_step * turns,
            stop=trainer.max_steps * turns,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return DataLoader(
            TrainingSet(self, streams),
            batch_sampler=sampler,
            collate_fn=collate_training,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> Any:
        """Whole validation images."""
        return self.evaluation_loader(self.part("validation"))

    def test_dataloader(self) -> Any:
        """Whole test images."""
        return self.evaluation_loader(self.part("test"))

    def evaluation_loader(self, cases: list[Case]) -> Any:
        """Whole images: this rank's share, repeated so that all ranks have equally many; the table counts once."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = [cases[i % len(cases)] for i in range(rank, -(-len(cases) // world) * world, world)] if cases else []
        same_size = self.image_size is not None and self.patch_size is None
        return DataLoader(
            EvaluationSet(self, share, masks=not self._without_masks),
            batch_size=8 if same_size else 1,
            collate_fn=collate_evaluation,
            num_workers=self.num_workers,
        )

    def content(self, streams: Sequence[str]) -> dict[str, dict[str, str]]:
        """What the files of this split hold: fingerprints of the images, and of the masks that a run may open.

        These are the masks of labeled, validation and test cases, and none for a method without the labeled stream. A
        file that holds an image and its mask counts as the image.

        Args:
            streams: streams that the run's method learns from.

        Returns:
            `{"images": {case: fingerprint}, "masks": {case: fingerprint}}`.

        Raises:
            UserError: a file is missing or cannot be read.
        """
        held_out = [*self.part("validation"), *self.part("test")]
        masked = [*self.part("labeled"), *held_out] if "labeled" in streams else []
        cases = [*self.part("labeled"), *self.part("unlabeled"), *held_out]
        files = {
            "images": {case.case: case.image for case in cases},
            "masks": {case.case: mask_file(case) for case in masked},
        }
        paths = list(dict.fromkeys(path for part in files.values() for path in part.values()))
        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(paths, pool.map(self.cache.fingerprint, paths), strict=True))
        return {kind: {case: found[path] for case, path in part.items()} for kind, part in files.items()}

    def split_text(self, streams: Sequence[str] = ()) -> str:
        """Content of `split.json`: the parts, their hash, the arguments they follow from, and what the cases hold.

        Args:
            streams: streams of the run's method, which decide what masks it may open; without any, the content of the
                cases is left out.
        """
        arguments = {
            "dataset": self.dataset_name,
            "split": self.split_mode,
            "num_folds": self.num_folds,
            "fold": self.fold,
            "split_seed": self.split_seed,
            "labeled_fraction": self.labeled_fraction,
            "labeled_count": self.labeled_count,
        }
        content = {"content": self.content(streams)} if streams else {}
        return json.dumps({**arguments, **self.partition.to_dict(), **content}, indent=1) + "\n"
