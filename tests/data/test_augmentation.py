"""Augmentation treats image and mask alike, and crops stay inside."""

import math

import numpy as np
import pytest
import torch

from semiseg.data.augmentation import Augmentation, _rotate_and_zoom, crop_origin

FLIPS = Augmentation(flip=True, rot90=True, rotate=0, zoom=0, intensity=0)
ALL = Augmentation(rotate=30, zoom=0.3, intensity=0.2)
SHAPES = [(24, 24), (20, 32), (12, 12, 8), (10, 14, 6)]


def generator(seed=0):
    return np.random.default_rng(seed)


def coded(shape, classes=4):
    """A blocky class map and an image whose first channel shows it."""
    coarse = generator(1).integers(0, classes, [max(1, n // 4) for n in shape])
    mask = coarse
    for axis, n in enumerate(shape):
        mask = np.repeat(mask, -(-n // coarse.shape[axis]), axis).take(range(n), axis)
    mask = torch.from_numpy(np.ascontiguousarray(mask))
    return torch.stack([mask.float(), torch.randn(shape, generator=torch.Generator().manual_seed(0))]), mask


@pytest.mark.parametrize("shape", SHAPES)
def test_same_generator_state_same_result_and_inputs_untouched(shape):
    image, mask = coded(shape)
    before = image.clone(), mask.clone()
    first, second = (ALL(image, mask, generator(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])
    others = [ALL(image, mask, generator(seed))[0] for seed in range(4, 10)]
    assert not all(torch.equal(first[0], other) for other in others)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_flips_and_quarter_turns_move_image_and_mask_exactly_alike(shape, seed):
    image, mask = coded(shape)
    new_image, new_mask = FLIPS(image, mask, generator(seed))
    assert new_image.shape == image.shape
    assert (new_mask.shape, new_mask.dtype) == (mask.shape, torch.int64)
    assert torch.equal(new_image[0].long(), new_mask)
    assert torch.equal(new_image[1].flatten().sort().values, image[1].flatten().sort().values)
    assert new_image.is_contiguous()
    assert new_mask.is_contiguous()


def test_the_unlabeled_stream_is_augmented_like_the_labeled_one():
    image, mask = coded((20, 32))
    for seed in range(6):
        with_mask, without = ALL(image, mask, generator(seed))[0], ALL(image, None, generator(seed))
        assert torch.equal(with_mask, without[0])
        assert without[1] is None


@pytest.mark.parametrize("shape", [(24, 24), (16, 32)])
def test_all_flips_and_turns_occur(shape):
    image, mask = coded(shape)
    results = {FLIPS(image, mask, generator(seed))[0].numpy().tobytes() for seed in range(100)}
    assert len(results) == (8 if shape[0] == shape[1] else 4)


def test_volumes_are_turned_in_the_axial_plane_only():
    image, mask = coded((12, 12, 8))
    turned = Augmentation(flip=False, rot90=True, rotate=30, zoom=0, intensity=0)
    results = [turned(image, mask, generator(seed))[1] for seed in range(30)]
    expected = [mask.rot90(k, [0, 1]) for k in range(4)]
    assert all(any(torch.equal(result, e) for e in expected) for result in results)


@pytest.mark.parametrize("shape", [(48, 48), (40, 64)])
@pytest.mark.parametrize("degrees", [-30, 12, 45])
def test_free_rotation_moves_image_and_mask_alike(shape, degrees):
    image, mask = coded(shape, classes=2)
    new_image, new_mask = _rotate_and_zoom(image, mask, math.radians(degrees))
    assert (new_image.shape, new_mask.shape, new_mask.dtype) == (image.shape, mask.shape, torch.int64)
    assert ((new_image[0] > 0.5).long() != new_mask).float().mean() < 0.01
    assert set(new_mask.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("shape", [(41, 41), (41, 81), (81, 41)])
def test_free_rotation_turns_by_the_angle_and_does_not_stretch_oblong_images(shape):
    image = torch.zeros(1, *shape)
    row, column, distance = shape[0] // 2, shape[1] // 2, 12
    image[0, row - 1 : row + 2, column + distance - 1 : column + distance + 2] = 1
    turned, _ = _rotate_and_zoom(image, None, math.radians(30))
    weight = turned[0] / turned.sum()
    y = (weight.sum(1) * torch.arange(shape[0])).sum() - row
    x = (weight.sum(0) * torch.arange(shape[1])).sum() - column
    assert math.hypot(x, y) == pytest.approx(distance, abs=0.1)
    assert abs(math.degrees(math.atan2(y, x))) == pytest.approx(30, abs=0.5)


def test_intensity_changes_the_image_only():
    image, mask = coded((16, 16))
    new_image, new_mask = Augmentation(False, False, 0, 0, 0.3)(image, mask, generator(1))
    assert torch.equal(new_mask, mask)
    contrast = (new_image[1].std() / image[1].std()).item()
    assert 0.7 <= contrast <= 1.3
    assert not torch.equal(new_image, image)
    same, _ = Augmentation(False, False, 0, 0, 0)(image, mask, generator(1))
    assert torch.equal(same, image)


def test_intensity_changes_each_channel_on_its_own():
    image, mask = coded((16, 16))
    changed, _ = Augmentation(False, False, 0, 0, 0.3)(torch.cat([image[:1]] * 3), mask, generator(1))
    slopes = [float(channel.std() / image[0].std()) for channel in changed]
    assert len({round(slope, 4) for slope in slopes}) == 3


@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_zoom_enlarges_about_the_centre(factor):
    image, mask = torch.zeros(1, 61, 81), torch.zeros(61, 81, dtype=torch.long)
    mask[20:41, 30:51] = 1  # 21 x 21 in the centre
    image[0] = mask
    zoomed, new_mask = _rotate_and_zoom(image, mask, 0.0, factor)
    side = math.sqrt(float(new_mask.sum()))
    assert side == pytest.approx(21 * factor, abs=1.5)
    assert ((zoomed[0] > 0.5).long() != new_mask).float().mean() < 0.02
    rows, columns = torch.nonzero(new_mask, as_tuple=True)
    assert rows.float().mean() == pytest.approx(30, abs=0.6)
    assert columns.float().mean() == pytest.approx(40, abs=0.6)


@pytest.mark.parametrize(("shape", "patch"), [((20, 30), (8, 30)), ((12, 10, 9), (4, 10, 5)), ((6, 6, 6), (6, 6, 6))])
def test_crops_lie_inside_reach_every_border_and_hold_the_foreground(shape, patch):
    random = generator(0)
    origins = np.array([crop_origin(shape, patch, None, random) for _ in range(300)])
    assert (origins.min(0) == 0).all()
    assert (origins.max(0) == np.array(shape) - patch).all()
    corners = [np.zeros(len(shape), int), np.array(shape) - 1, np.array(shape) // 2]
    for voxel in corners:
        foreground = np.array([np.ravel_multi_index(tuple(voxel), shape)])
        for _ in range(50):
            origin = np.array(crop_origin(shape, patch, foreground, random))
            assert ((origin >= 0) & (origin + patch <= shape)).all()
            assert ((origin <= voxel) & (voxel < origin + patch)).all()
    assert len(crop_origin(shape, patch, np.array([], int), random)) == len(shape)


def test_any_place_in_the_patch_may_hold_the_foreground_voxel():
    voxel = np.array([np.ravel_multi_index((10, 10), (21, 21))])
    origins = {crop_origin((21, 21), (3, 3), voxel, generator(seed)) for seed in range(200)}
    assert origins == {(y, x) for y in (8, 9, 10) for x in (8, 9, 10)}
