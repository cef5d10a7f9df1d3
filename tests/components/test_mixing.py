"""Boxes of copy-paste and CutMix: their size, place and share."""

import pytest
import torch

from semiseg.components.mixing import box, cutmix_boxes


@pytest.mark.parametrize(("size", "sides"), [((9, 12), (6, 8)), ((8, 8, 6), (5, 5, 4)), ((4, 4), (4, 4))])
def test_a_box_has_its_sides_at_every_place(size, sides):
    torch.manual_seed(0)
    places = set()
    for _ in range(600):
        mask = box(size, sides)
        rows = [mask.any(tuple(other for other in range(mask.ndim) if other != axis)) for axis in range(mask.ndim)]
        assert [int(row.sum()) for row in rows] == list(sides)
        assert int(mask.sum()) == torch.tensor(sides).prod()
        places.add(tuple(int(row.int().argmax()) for row in rows))
    possible = torch.tensor([n - side + 1 for n, side in zip(size, sides, strict=True)]).prod()
    assert len(places) == possible


@pytest.mark.parametrize("shape", [(400, 1, 32, 32), (200, 2, 16, 16, 16)])
def test_cutmix_takes_boxes_of_up_to_two_fifths_from_half_of_the_images(shape):
    torch.manual_seed(0)
    masks = cutmix_boxes(torch.zeros(shape))
    assert masks.shape == (shape[0], *shape[2:])
    sides = []
    for mask in masks[masks.flatten(1).any(1)]:
        side = [mask.any(tuple(o for o in range(mask.ndim) if o != axis)).sum() for axis in range(mask.ndim)]
        assert mask.sum() == torch.stack(side).prod(), "not a box"
        sides.append(torch.stack(side))
    ratios = torch.stack(sides).float()
    assert float((ratios.amax(1) / ratios.amin(1)).max()) < 1 / 0.3 * 1.5  # and rounding of small boxes
    shares = masks.flatten(1).float().mean(1)
    assert 0.4 < float((shares > 0).float().mean()) < 0.6
    assert float(shares.max()) < 0.5  # 0.4, and rounding
    assert float(shares[shares > 0].mean()) == pytest.approx(0.2, abs=0.04)
