"""Pieces of semi-supervised losses against NumPy, and means of no pixels."""

import math

import numpy as np
import pytest
import torch

from semiseg.losses import entropy, masked_mean, probabilities, sharpened, squared_error


def drawn(classes, shape=(2, 5, 4)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape[0], classes, *shape[1:], generator=generator)


def test_the_mean_of_no_pixels_is_zero_with_a_graph():
    values = torch.rand(2, 3, 3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3, 3, dtype=torch.bool))
    assert mean == 0
    mean.backward()
    assert (values.grad == 0).all()


def test_the_masked_mean_is_that_of_the_pixels():
    values, mask = torch.rand(2, 3, 3), torch.rand(2, 3, 3) < 0.5
    torch.testing.assert_close(masked_mean(values, mask), values[mask].mean())
    weights = torch.rand(2, 3, 3)
    torch.testing.assert_close(masked_mean(values, weights), (values * weights).sum() / weights.sum())


@pytest.mark.parametrize("classes", [2, 5])
def test_entropy_is_between_0_and_1(classes):
    p = probabilities(drawn(classes))
    expected = -(p.numpy() * np.log(p.numpy() + 1e-6)).sum(1) / math.log(classes)
    np.testing.assert_allclose(entropy(p).numpy(), expected, atol=1e-6)
    uniform = torch.full((1, classes, 2), 1 / classes)
    torch.testing.assert_close(entropy(uniform), torch.ones(1, 2), atol=1e-4, rtol=0)


def test_squared_error_is_the_mean_over_classes():
    p, q = probabilities(drawn(3)), probabilities(drawn(3).flip(0))
    np.testing.assert_allclose(squared_error(p, q), ((p.numpy() - q.numpy()) ** 2).mean(1), atol=1e-7)


@pytest.mark.parametrize("classes", [2, 4])
def test_sharpening_is_a_power_and_sums_to_one(classes):
    p = probabilities(drawn(classes))
    power = p.double().numpy() ** 2
    np.testing.assert_allclose(sharpened(p, 0.5), power / power.sum(1, keepdims=True), atol=1e-4)
    hard = sharpened(p, 0.01)
    torch.testing.assert_close(hard.sum(1), torch.ones_like(hard[:, 0]))
    assert torch.equal(hard.argmax(1), p.argmax(1))
    assert torch.isfinite(sharpened(torch.tensor([[1.0, 0.0]]), 0.001)).all()


def test_half_precision_logits_give_single_precision_probabilities():
    assert probabilities(drawn(2).bfloat16()).dtype == torch.float32
