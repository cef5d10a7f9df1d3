"""What belongs to the whole batch, in one process: the plain counterpart, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from semiseg import whole_batch
from semiseg.components.perturbations import FeatureDropout


@pytest.mark.parametrize("draw", [torch.randn_like, nn.Dropout(0.3), nn.Dropout2d(0.5)])
def test_draws_of_one_process_are_torchs_own(draw: Callable[[Tensor], Tensor]):
    features = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    whole_batch.seed(shared=1, own=2)
    with whole_batch.of_parts(1, 1):
        found = whole_batch.each(draw, features)
    with whole_batch.drawn_alike():
        found_alike = draw(features)
    torch.manual_seed(1)
    assert torch.equal(found, draw(features))
    assert torch.equal(found_alike, draw(features))


def test_feature_dropout_of_one_process_is_the_dropout():
    features = torch.randn(2, 3, 4, 5)
    torch.manual_seed(0)
    found = FeatureDropout(nn.Dropout(0.5))(features)
    torch.manual_seed(0)
    assert torch.equal(found, nn.Dropout(0.5)(features))


def test_a_ratio_and_its_gradients():
    numerator, denominator = torch.tensor([3.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)
    ratio = whole_batch.ratio(numerator.sum(), denominator.sum())
    ratio.backward()
    assert (ratio.item(), numerator.grad.item(), denominator.grad.item()) == (0.75, 0.25, -3 / 16)


def test_a_ratio_of_nothing_by_nothing_is_zero_with_a_graph():
    numerator = torch.tensor(0.0, requires_grad=True)
    ratio = whole_batch.ratio(numerator, torch.tensor(0))
    ratio.backward()
    assert ratio == 0
    assert torch.isfinite(numerator.grad)


def test_neighbors_and_places_of_one_process():
    images = torch.arange(3.0)
    assert whole_batch.rolled(images).tolist() == [2, 0, 1]
    assert whole_batch.slots(images).tolist() == [0, 1, 2]
    assert whole_batch.gathered(images) is images
    assert whole_batch.mean(images) is images
