"""Synthetic scenes are pure functions of their arguments and hold every class."""

import numpy as np
import pytest

from semiseg.data.scenes import scene_2d, scene_3d

SMALL = [(scene_2d, (48, 40)), (scene_3d, (24, 20, 16))]


@pytest.mark.parametrize(("scene", "size"), SMALL)
def test_same_arguments_give_the_same_scene_whatever_the_global_state(scene, size):
    np.random.seed(1)
    first = scene(3, 5, size)
    state = np.random.get_state()[1].copy()
    np.random.seed(2)
    second = scene(3, 5, size)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    np.random.seed(1)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize(("scene", "size"), SMALL)
def test_seed_and_index_change_image_and_mask(scene, size):
    images, masks = zip(*(scene(seed, index, size) for seed, index in [(0, 0), (0, 1), (1, 0)]), strict=True)
    assert len({image.tobytes() for image in images}) == 3
    assert len({mask.tobytes() for mask in masks}) == 3


def test_shapes_and_dtypes():
    image, mask = scene_2d(0, 0, (48, 40))
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((48, 40, 3), np.uint8, (48, 40), np.uint8)
    volume, labels = scene_3d(0, 0, (24, 20, 16))
    assert (volume.shape, volume.dtype) == ((24, 20, 16), np.float32)
    assert (labels.shape, labels.dtype) == ((24, 20, 16), np.uint8)
    assert np.isfinite(volume).all()


@pytest.mark.parametrize(("scene", "size"), [(scene_2d, (64, 64)), (scene_3d, (32, 32, 16))])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_nearly_every_scene_holds_every_class(scene, size, num_classes):
    masks = [scene(0, index, size, num_classes)[1] for index in range(20)]
    assert max(mask.max() for mask in masks) == num_classes - 1
    present = [[(mask == label).any() for label in range(num_classes)] for mask in masks]
    assert np.mean(present, axis=0).min() >= 0.9
    assert 0.05 < np.mean([(mask > 0).mean() for mask in masks]) < 0.5


def test_background_is_not_separable_by_colour():
    """Distractors share the colour of the class: the best threshold on any one channel stays far from the mask."""
    image, mask = scene_2d(0, 1, (64, 64))
    for channel in np.moveaxis(image, -1, 0):
        for level in np.percentile(channel, range(5, 100, 5)):
            guess = channel > level
            overlap = max(2 * (side & (mask > 0)).sum() / (side.sum() + mask.sum()) for side in (guess, ~guess))
            assert overlap < 0.8
