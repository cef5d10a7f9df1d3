"""From a draw of the sampler, or a case, to tensors; and from those to batches."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from semiseg.data.augmentation import crop_origin
from semiseg.data.cases import Case
from semiseg.data.samplers import Draw

if TYPE_CHECKING:
    from semiseg.data.base import SegmentationDataModule

FOREGROUND_BYTES = 2**27  # of the indices that a loader process keeps: some 1700 cases of one class


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented images of the labeled and unlabeled streams, addressed by the sampler's draws.

    The augmentation's generator is seeded from (seed, stream, step, slot): the same whatever the number of workers or
    processes. Masks are opened in the labeled stream only.
    """

    def __init__(self, data: SegmentationDataModule, streams: Mapping[str, Sequence[Case]]) -> None:
        self.data = data
        self.streams = streams
        self._foreground: dict[str, list[np.ndarray]] = {}  # least recently used first
        self._foreground_bytes = 0

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        case = self.streams[draw.stream][draw.member]
        random = np.random.default_rng([self.data.seed, zlib.crc32(draw.stream.encode()), draw.step, draw.slot])
        prepared = self.data.prepared_image(case)
        mask = self.data.prepared_mask(case) if draw.stream == "labeled" else None
        if self.data.patch_size is not None:
            wanted = mask is not None and random.random() < self.data.foreground_share
            foreground = self._pick_foreground(case, mask, random) if wanted and mask is not None else None
            origin = crop_origin(prepared.shape[1:], self.data.patch_size, foreground, random)
            window = tuple(slice(o, o + n) for o, n in zip(origin, self.data.patch_size, strict=True))
            prepared, mask = prepared[(slice(None), *window)], mask[window] if mask is not None else None
        image = self.data.preprocessing.normalise(prepared)
        target = torch.from_numpy(mask.astype(np.int64)) if mask is not None else None
        image, target = self.data.augmentation(image, target, random)
        item = {"stream": draw.stream, "image": image, "case": case.case}
        return item if target is None else {**item, "mask": target}

    def _pick_foreground(self, case: Case, mask: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
        """Flat indices of a random foreground class of this case; some 10,000, evenly taken, are kept of each."""
        classes = self._foreground.pop(case.case, None)
        if classes is None:
            flat = np.asarray(mask).ravel()
            found = [np.flatnonzero(flat == k) for k in range(1, self.data.num_classes)]
            classes = [f[:: max(1, len(f) // 10_000)].copy() for f in found if len(f)]
            self._foreground_bytes += sum(f.nbytes for f in classes)
        self._foreground[case.case] = classes
        while self._foreground_bytes > FOREGROUND_BYTES and len(self._foreground) > 1:
            oldest = self._foreground.pop(next(iter(self._foreground)))
            self._foreground_bytes -= sum(f.nbytes for f in oldest)
        return classes[random.integers(len(classes))] if classes else None


class EvaluationSet(Dataset[dict[str, Any]]):
    """Whole images on the network's grid with their class map at the resolution they are scored at, or without it."""

    def __init__(self, data: SegmentationDataModule, cases: Sequence[Case], masks: bool = True) -> None:
        self.data = data
        self.cases = cases
        self.masks = masks

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        image = self.data.preprocessing.normalise(self.data.prepared_image(case))
        item = {"image": image, "case": case.case, "patient": case.patient}
        if not self.masks:
            return item
        if self.data.evaluation == "network":
            target, spacing = self.data.prepared_mask(case), (1.0,) * self.data.spatial_dims
        else:
            target, spacing = self.data.native_mask(case), self.data.spacing_of(case)
        return {**item, "target": torch.from_numpy(np.array(target)), "spacing": spacing}


def collate_training(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{"labeled": {"image", "mask", "case"}, "unlabeled": {"image", "case"}}` with the streams there are."""
    streams: dict[str, dict[str, Any]] = {}
    for name in sorted({item["stream"] for item in items}):
        own = [item for item in items if item["stream"] == name]
        streams[name] = {"image": torch.stack([i["image"] for i in own]), "case": [i["case"] for i in own]}
        if "mask" in own[0]:
            streams[name]["mask"] = torch.stack([i["mask"] for i in own])
    return streams


def collate_evaluation(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Images stacked; all else, such as targets, which may differ in size, as lists."""
    lists = {key: [item[key] for item in items] for key in items[0] if key != "image"}
    return {"image": torch.stack([item["image"] for item in items]), **lists}
