"""Orientations are undone exactly, keep the size and act alike on whatever has the same pixels."""

import pytest
import torch

from semiseg.components.orientation import Orientation


@pytest.mark.parametrize("size", [(6, 6), (6, 8), (4, 4, 6), (4, 6, 6)])
def test_undone_exactly(size):
    torch.manual_seed(0)
    image, mask = torch.randn(2, 3, *size), torch.randint(0, 5, (2, *size))
    seen = set()
    for _ in range(100):
        orientation = Orientation.draw(size)
        turned = orientation.apply(image)
        assert turned.shape == image.shape
        assert torch.equal(orientation.undo(turned), image)
        assert torch.equal(orientation.undo(orientation.apply(mask)), mask)
        assert torch.equal(orientation.apply(image)[:, 0], orientation.apply(image[:, 0]))
        seen.add(tuple(turned.flatten().tolist()))
    flips = 2 ** (len(size) - 2)
    assert len(seen) == (8 if size[0] == size[1] else 4) * flips
