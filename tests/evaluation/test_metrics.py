"""Metrics of one case against independent formulas and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

from semiseg.evaluation.metrics import case_metrics

# MONAI 1.6 warns about its own call.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

NAMES = ("background", "a", "b")


def blobs(shape, seed, classes=2):
    """Smooth random class map, so that surfaces are not every voxel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return torch.from_numpy(np.digitize(noise, np.quantile(noise, np.linspace(0.6, 0.85, classes))))


def directed_distances(predicted, true, spacing):
    """Surface by looking at the neighbours, distances by a dense transform of the whole image."""

    def surface(mask):
        around = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(mask.ndim):
            for shift in (-1, 1):
                inside &= np.roll(around, shift, axis)[(slice(1, -1),) * mask.ndim]
        return mask & ~inside

    p, t = surface(predicted), surface(true)
    forth = ndimage.distance_transform_edt(~t, sampling=spacing)[p]
    back = ndimage.distance_transform_edt(~p, sampling=spacing)[t]
    return forth, back


@pytest.mark.parametrize(("shape", "spacing"), [((40, 33), (0.7, 1.9)), ((18, 22, 13), (1.0, 0.8, 2.5))])
def test_against_independent_formulas(shape, spacing):
    prediction, target = blobs(shape, 1), blobs(shape, 2)
    result = case_metrics(prediction, target, NAMES, spacing, medpy=True)
    for label, name in enumerate(NAMES[1:], start=1):
        p, t = prediction.numpy() == label, target.numpy() == label
        p_set, t_set = set(np.flatnonzero(p)), set(np.flatnonzero(t))
        assert result[f"dice_{name}"] == pytest.approx(2 * len(p_set & t_set) / (len(p_set) + len(t_set)))
        assert result[f"jaccard_{name}"] == pytest.approx(len(p_set & t_set) / len(p_set | t_set))
        assert result[f"tp_{name}"] == len(p_set & t_set)
        assert result[f"fp_{name}"] == len(p_set - t_set)
        assert result[f"fn_{name}"] == len(t_set - p_set)
        assert result[f"volume_true_{name}"] == pytest.approx(len(t_set) * np.prod(spacing))
        assert result[f"volume_predicted_{name}"] == pytest.approx(len(p_set) * np.prod(spacing))
        assert result[f"empty_{name}"] == 0
        forth, back = directed_distances(p, t, spacing)
        pooled = np.concatenate([forth, back])
        assert result[f"hd95_{name}"] == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), rel=1e-5)
        assert result[f"asd_{name}"] == pytest.approx(pooled.mean(), rel=1e-5)
        assert result[f"hd95_medpy_{name}"] == pytest.approx(np.percentile(pooled, 95), rel=1e-5)
    for metric in ("dice", "jaccard", "hd95", "asd", "hd95_medpy"):
        assert result[metric] == pytest.approx((result[f"{metric}_a"] + result[f"{metric}_b"]) / 2)


def test_against_monai():
    prediction, target = blobs((20, 16, 12), 3), blobs((20, 16, 12), 4)
    spacing = [1.0, 0.5, 3.0]
    result = case_metrics(prediction, target, NAMES, spacing)
    p, t = (torch.stack([labels == c for c in range(3)])[None] for labels in (prediction, target))
    hd95 = compute_hausdorff_distance(p, t, percentile=95, spacing=spacing)[0]
    asd = compute_average_surface_distance(p, t, symmetric=True, spacing=spacing)[0]
    assert [result["hd95_a"], result["hd95_b"]] == pytest.approx(hd95.tolist(), rel=1e-5)
    assert [result["asd_a"], result["asd_b"]] == pytest.approx(asd.tolist(), rel=1e-5)


def test_image_border_is_surface():
    # The reference is the left 4 columns: its surface is the whole outline, border included, not the last column only.
    target = torch.zeros(9, 9, dtype=torch.long)
    target[:, :4] = 1
    prediction = torch.zeros_like(target)
    prediction[2:7, 2:6] = 1
    result = case_metrics(prediction, target, ("background", "a"), (1, 1), medpy=True)
    forth, back = directed_distances(prediction.numpy() == 1, target.numpy() == 1, (1, 1))
    assert len(back) == 2 * 9 + 2 * 2
    assert result["asd"] == pytest.approx(np.concatenate([forth, back]).mean())
    masks = [torch.stack([labels == 0, labels == 1])[None] for labels in (prediction, target)]
    assert result["hd95"] == pytest.approx(compute_hausdorff_distance(*masks, percentile=95).item())
    # Putting the masks into a larger image changes nothing.
    wider = [torch.nn.functional.pad(labels, (5, 3, 4, 6)) for labels in (prediction, target)]
    assert case_metrics(*wider, ("background", "a"), (1, 1), medpy=True) == pytest.approx(result)


@pytest.mark.parametrize(("shape", "spacing"), [((8, 5), (2.0, 0.5)), ((6, 5, 7), (2.0, 0.5, 3.0))])
def test_empty_rule(shape, spacing):
    nothing = torch.zeros(shape, dtype=torch.uint8)
    something = nothing.clone()
    something[(slice(1, 3),) * len(shape)] = 1
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing, strict=True)))
    keys = ("dice", "jaccard", "hd95", "asd", "hd95_medpy", "empty_a")

    def values(prediction, target):
        result = case_metrics(prediction, target, ("background", "a"), spacing, medpy=True)
        return pytest.approx([result[key] for key in keys])

    assert values(nothing, nothing) == [1, 1, 0, 0, 0, 1]
    assert values(nothing, something) == [0, 0, diagonal, diagonal, diagonal, 2]
    assert values(something, nothing) == [0, 0, diagonal, diagonal, diagonal, 3]


def test_absent_class_counts_in_the_mean():
    target = torch.zeros(6, 6, dtype=torch.long)
    target[2:4, 2:4] = 1
    result = case_metrics(torch.zeros_like(target), target, NAMES, (1, 1))
    assert (result["dice_a"], result["dice_b"], result["dice"]) == (0, 1, 0.5)
    assert (result["empty_a"], result["empty_b"]) == (2, 1)
    assert result["hd95"] == pytest.approx(math.hypot(6, 6) / 2)


def test_single_voxels_at_a_known_offset():
    prediction, target = torch.zeros(2, 10, 10, 10, dtype=torch.long)
    prediction[1, 2, 3] = target[4, 6, 4] = 1  # 3, 4 and 1 voxels apart
    result = case_metrics(prediction, target, ("background", "a"), (1.0, 0.5, 4.0), medpy=True)
    assert [result[key] for key in ("hd95", "asd", "hd95_medpy")] == pytest.approx([math.sqrt(9 + 4 + 16)] * 3)
    assert result["dice"] == 0


def test_directed_distances_are_not_pooled():
    # One stray voxel far away is 1 of 17 in one direction, 1 of 33 in both together.
    target = torch.zeros(40, 40, dtype=torch.long)
    target[4:6, 4:12] = 1
    prediction = target.clone()
    prediction[35, 4] = 1  # 30 rows below
    result = case_metrics(prediction, target, ("background", "a"), (1, 1), medpy=True)
    assert result["hd95"] == pytest.approx(6, rel=1e-5)  # linear between 0 at 15/16 and 30 at 1
    assert result["hd95_medpy"] == 0
    assert result["asd"] == pytest.approx(30 / 33)


def test_identical_masks():
    labels = blobs((12, 14, 9), 5)
    result = case_metrics(labels, labels, NAMES, (1, 2, 3))
    assert [result[key] for key in ("dice", "jaccard", "hd95", "asd")] == [1, 1, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_jaccard_follows_from_dice(seed):
    result = case_metrics(blobs((16, 16), seed), blobs((16, 16), seed + 50), NAMES, (1, 1), distances=False)
    for name in NAMES[1:]:
        dice = result[f"dice_{name}"]
        assert result[f"jaccard_{name}"] == pytest.approx(dice / (2 - dice))


def test_flips_and_swap_change_nothing():
    prediction, target = blobs((15, 12, 10), 6), blobs((15, 12, 10), 7)
    result = case_metrics(prediction, target, NAMES, (1, 2, 0.5), medpy=True)
    for axis in range(3):
        flipped = case_metrics(prediction.flip(axis), target.flip(axis), NAMES, (1, 2, 0.5), medpy=True)
        assert flipped == pytest.approx(result)
    swapped = case_metrics(target, prediction, NAMES, (1, 2, 0.5), medpy=True)
    for metric in ("dice", "jaccard", "hd95", "asd", "hd95_medpy"):
        assert swapped[metric] == pytest.approx(result[metric])


def test_columns():
    labels = torch.ones(4, 4, dtype=torch.long)
    quick = case_metrics(labels, labels, ("background", "a"), (1, 1), distances=False)
    counts = ["volume_true_a", "volume_predicted_a", "tp_a", "fp_a", "fn_a", "empty_a"]
    assert list(quick) == ["dice", "jaccard", "dice_a", "jaccard_a", *counts]
    usual = case_metrics(labels, labels, ("background", "a"), (1, 1))
    assert set(usual) - set(quick) == {"hd95", "asd", "hd95_a", "asd_a"}
    full = case_metrics(labels, labels, ("background", "a"), (1, 1), medpy=True)
    assert {"hd95_medpy", "hd95_medpy_a"} < set(full)
    assert all(type(value) is float for value in full.values())


def test_wrong_input_is_refused():
    labels = torch.zeros(4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="do not agree"):
        case_metrics(labels, labels[:3], NAMES, (1, 1))
    with pytest.raises(ValueError, match="do not agree"):
        case_metrics(labels, labels, NAMES, (1, 1, 1))
    with pytest.raises(ValueError, match="target has labels outside"):
        case_metrics(labels, labels + 255, NAMES, (1, 1))
    with pytest.raises(ValueError, match="prediction has labels outside"):
        case_metrics(labels - 1, labels, NAMES, (1, 1))
