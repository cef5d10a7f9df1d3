"""Overlap and surface-distance metrics of one case."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance
from torch import Tensor

NONE_EMPTY, BOTH_EMPTY, PREDICTION_EMPTY, TARGET_EMPTY = range(4)


def case_metrics(
    prediction: Tensor,
    target: Tensor,
    class_names: Sequence[str],
    spacing: Sequence[float],
    distances: bool = True,
    medpy: bool = False,
) -> dict[str, float]:
    """Compare the predicted class map of one image or volume with its reference.

    With P and T the voxel sets of a class and dP, dT their surfaces (voxels of the set with a 4- or 6-neighbour
    outside it; voxels at the image border always count as surface):

    * ``dice`` = 2|P∩T| / (|P|+|T|) and ``jaccard`` = |P∩T| / |P∪T|, in [0, 1];
    * ``hd95``: the larger of the two directed 95th percentiles of the distances dP→dT and dT→dP, as in MONAI's
      ``compute_hausdorff_distance(percentile=95)``;
    * ``asd``: the mean of all distances dP→dT and dT→dP together, as in MONAI's
      ``compute_average_surface_distance(symmetric=True)``;
    * ``hd95_medpy`` (on request): the 95th percentile of both directions pooled, as MedPy's ``hd95`` has it, for
      comparison with papers that used MedPy. It is mostly below ``hd95``. MedPy's ``assd`` differs from ``asd`` as
      well (it averages the two directed means, whatever the sizes of the surfaces) and is not computed;
    * ``volume_true``, ``volume_predicted``: voxel count times the product of ``spacing``;
    * ``tp``, ``fp``, ``fn``: voxel counts;
    * ``empty``: 0 none is empty, 1 both are, 2 only the prediction, 3 only the reference.

    Distances are in the unit of ``spacing`` (mm, or pixels for a spacing of 1), volumes in its square or cube. If both
    sets are empty, the overlap is 1 and the distances are 0; if exactly one is, the overlap is 0 and the distances are
    the diagonal of the image (MONAI would give nan or infinity, MedPy an error).

    Args:
        prediction: Integer class map, 2D or 3D.
        target: Integer class map of the same shape.
        class_names: Name of every class, the background first.
        spacing: Size of a voxel along each axis.
        distances: Whether to compute surface distances, the slow part.
        medpy: Whether to add ``hd95_medpy`` to the distances.

    Returns:
        The means over the foreground classes of ``dice, jaccard[, hd95, asd[, hd95_medpy]]`` under these names,
        then every value of every foreground class ``c`` as ``<name>_<c>``.
    """
    if prediction.shape != target.shape or target.ndim != len(spacing):
        shapes = f"{tuple(prediction.shape)}, {tuple(target.shape)} and {len(spacing)}"
        raise ValueError(f"prediction, target and spacing do not agree: {shapes}")
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(f"the {name} has labels outside 0..{len(class_names) - 1}, the {len(class_names)} classes")

    averaged = ["dice", "jaccard"]
    if distances:
        averaged += ["hd95", "asd"] + ["hd95_medpy"] * medpy
    prediction, target = prediction.cpu(), target.cpu()
    values: dict[str, float] = {}
    for label, name in enumerate(class_names[1:], start=1):
        predicted, true = prediction == label, target == label
        measured = _overlap(predicted, true, spacing)
        if distances:
            measured |= _distances(predicted, true, spacing, int(measured["empty"]))
            if not medpy:
                del measured["hd95_medpy"]
        values |= {f"{metric}_{name}": value for metric, value in measured.items()}
    return {metric: fmean(values[f"{metric}_{name}"] for name in class_names[1:]) for metric in averaged} | values


def _overlap(predicted: Tensor, true: Tensor, spacing: Sequence[float]) -> dict[str, float]:
    num_predicted, num_true = int(predicted.count_nonzero()), int(true.count_nonzero())
    tp = int((predicted & true).count_nonzero())
    union = num_predicted + num_true - tp
    if num_predicted and num_true:
        empty = NONE_EMPTY
    elif union == 0:
        empty = BOTH_EMPTY
    else:
        empty = TARGET_EMPTY if num_predicted else PREDICTION_EMPTY
    voxel = float(math.prod(spacing))
    return {
        "dice": 2 * tp / (num_predicted + num_true) if union else 1.0,
        "jaccard": tp / union if union else 1.0,
        "volume_true": num_true * voxel,
        "volume_predicted": num_predicted * voxel,
        "tp": float(tp),
        "fp": float(num_predicted - tp),
        "fn": float(num_true - tp),
        "empty": float(empty),
    }


def _distances(predicted: Tensor, true: Tensor, spacing: Sequence[float], empty: int) -> dict[str, float]:
    if empty == NONE_EMPTY:
        # MONAI crops both masks to their joint bounding box plus a margin of background, also at the image border.
        edges_predicted, edges_true = get_mask_edges(predicted, true)
        forth = np.asarray(get_surface_distance(edges_predicted, edges_true, spacing=spacing), np.float64)
        back = np.asarray(get_surface_distance(edges_true, edges_predicted, spacing=spacing), np.float64)
        both = np.concatenate([forth, back])
        hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
        return {"hd95": float(hd95), "asd": float(both.mean()), "hd95_medpy": float(np.percentile(both, 95))}
    diagonal = math.hypot(*(size * step for size, step in zip(true.shape, spacing, strict=True)))
    return dict.fromkeys(("hd95", "asd", "hd95_medpy"), 0.0 if empty == BOTH_EMPTY else diagonal)
