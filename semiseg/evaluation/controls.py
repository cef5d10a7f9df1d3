"""Trivial controls: segmentations without a network, which every method must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cases import Case
from semiseg.data.preprocessing import resize_classes, resize_logits
from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.metrics import case_metrics

Control = Callable[[Case], Tensor]
"""A case to scores (K, *S) of the classes, of any size, as a network's logits."""


def score_controls(data: SegmentationDataModule) -> dict[str, CaseTable]:
    """Score three trivial controls on the test cases, as `SegmentationMethod` scores a network.

    What a control learns, it learns from the masks of the labeled training cases; it never opens those of unlabeled
    ones. With more than two classes, "foreground" is the class that covers most voxels of the labeled masks.

    * `everything_foreground`: every voxel is foreground. Where foreground covers the share p of a case, its Dice is
      2p / (1 + p).
    * `otsu`: Otsu's threshold on the image's intensity, the mean over its channels; the brighter or the darker side is
      foreground, whichever has the higher mean Dice on the labeled cases (the brighter one where they tie).
    * `mean_mask`: the most frequent class at each place of the labeled masks; with two classes, where the mean mask is
      above 0.5. Masks of different sizes are brought to their median size first.

    Args:
        data: data set, with the split and the resolution (`evaluation`) of the runs to compare with.

    Returns:
        A table of the test cases for each control.
    """
    data.prepare_data()
    names = data.preprocessing.class_names
    masks = [np.array(data.prepared_mask(case)) for case in data.part("labeled")]
    foreground = _largest_class(masks, data.num_classes)
    everything = F.one_hot(torch.tensor(foreground), data.num_classes).float().view(-1, *(1,) * data.spatial_dims)
    mean_mask = class_frequencies(masks, data.num_classes)
    sign = _foreground_side(data, masks, foreground)
    controls: dict[str, Control] = {
        "everything_foreground": lambda case: everything,
        "otsu": lambda case: _otsu_scores(data, case, foreground, sign),
        "mean_mask": lambda case: mean_mask,
    }
    tables = {name: CaseTable() for name in controls}
    for batch in data.evaluation_loader(data.part("test")):
        for case, patient, target, spacing in zip(
            batch["case"], batch["patient"], batch["target"], batch["spacing"], strict=True
        ):
            for name, control in controls.items():
                prediction = resize_logits(control(data.by_name[case])[None], target.shape).argmax(1)[0]
                metrics = case_metrics(prediction, target, names, spacing)
                tables[name].add({"case": case, "patient": patient, **metrics})
    return tables


def otsu_threshold(image: np.ndarray) -> float:
    """The threshold that best parts an image's values in two: largest variance between the two sides.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 1979,
    https://doi.org/10.1109/TSMC.1979.4310076; every value of the image is a grey level, so there are no bins to choose.

    Args:
        image: values of any shape.

    Returns:
        The middle between the highest value of the lower and the lowest of the upper side; of a constant image, its
        value.
    """
    values, counts = np.unique(image.astype(np.float64), return_counts=True)
    if len(values) == 1:
        return float(values[0])
    below, sums = counts.cumsum()[:-1], (counts * values).cumsum()
    above = image.size - below
    variance = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    best = int(variance.argmax())
    return float(values[best] + values[best + 1]) / 2


def class_frequencies(masks: Sequence[np.ndarray], num_classes: int) -> Tensor:
    """How often each place holds each class, (K, *S), in class maps that are first brought to their median size."""
    size = np.median([mask.shape for mask in masks], axis=0).astype(int).tolist()
    maps = (torch.from_numpy(resize_classes(mask, size)).long() for mask in masks)
    total = sum(F.one_hot(classes, num_classes).movedim(-1, 0) for classes in maps)
    return torch.as_tensor(total) / len(masks)


def _largest_class(masks: Sequence[np.ndarray], num_classes: int) -> int:
    """The foreground class with most voxels; 1 where there is no foreground."""
    voxels = sum(np.bincount(mask.ravel(), minlength=num_classes) for mask in masks)
    return 1 + int(np.argmax(np.asarray(voxels)[1:]))


def _otsu_scores(data: SegmentationDataModule, case: Case, foreground: int, sign: int) -> Tensor:
    """Scores (K, *S) on the network's grid that are above 0 on one side of the threshold, for one class."""
    intensity = data.prepared_image(case).mean(0, dtype=np.float64)
    scores = torch.zeros(data.num_classes, *intensity.shape)
    scores[foreground] = torch.from_numpy(sign * (intensity - otsu_threshold(intensity)))
    return scores


def _foreground_side(data: SegmentationDataModule, masks: Sequence[np.ndarray], foreground: int) -> int:
    """1 where the brighter side is the better foreground on the labeled cases, else -1."""

    def mean_dice(sign: int) -> float:
        spacing = (1.0,) * data.spatial_dims
        return fmean(
            case_metrics(
                _otsu_scores(data, case, foreground, sign).argmax(0), torch.from_numpy(mask), data.class_names, spacing,
                distances=False,
            )["dice"]
            for case, mask in zip(data.part("labeled"), masks, strict=True)
        )  # fmt: skip

    return max((1, -1), key=mean_dice)
