"""Signed distance maps against brute force and by their properties."""

import numpy as np
import pytest
import torch

from semiseg.components.distance_maps import signed_distances


def brute_force(inside):
    """Distance of each pixel to the nearest one of the other side, inside negative, each side by its maximum."""
    points = np.stack(np.meshgrid(*map(np.arange, inside.shape), indexing="ij"), -1).reshape(-1, inside.ndim)
    flat = inside.ravel()
    far = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    to_inside, to_outside = far[:, flat].min(1), far[:, ~flat].min(1)
    signed = to_inside / to_inside.max() - to_outside / to_outside.max()
    signed[flat & (to_outside == 1)] = 0  # face neighbours of the outside
    return signed.reshape(inside.shape)


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 7)])
def test_against_brute_force_for_every_class(shape):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (2, *[-(-n // 3) for n in shape]), generator=generator)
    mask = coarse
    for axis, n in enumerate(shape, 1):
        mask = mask.repeat_interleave(3, axis).narrow(axis, 0, n)
    maps = signed_distances(mask, 3)
    assert maps.shape == (2, 2, *shape)
    assert maps.dtype == torch.float32
    for sample, found in zip(mask, maps, strict=True):
        for label in (1, 2):
            np.testing.assert_allclose(found[label - 1], brute_force((sample == label).numpy()), atol=1e-6)


def test_inside_is_negative_and_a_steep_sigmoid_gives_the_mask_back():
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[0, 4:11, 5:12] = 1
    distance = signed_distances(mask, 2)[0, 0]
    assert distance.min() == -1
    assert distance.max() == 1
    soft = torch.sigmoid(-1500 * distance)
    assert (soft[mask[0] == 0] < 0.5).all()
    assert (soft[mask[0] == 1] >= 0.5).all()


def test_a_class_without_border_is_far_outside_or_deep_inside():
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    mask[1] = 1
    maps = signed_distances(mask, 2)
    assert (maps[0] == 1).all()
    assert (maps[1] == -1).all()


def test_ignored_pixels_count_as_background():
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[0, 4:11, 5:12] = 1
    ignored = mask.clone()
    ignored[0, :3] = -1
    assert torch.equal(signed_distances(ignored, 2), signed_distances(mask, 2))
