"""Supervised losses against NumPy, MONAI and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from semiseg.losses import cross_entropy, dice_ce, soft_dice

LOSSES = [cross_entropy, soft_dice, dice_ce]
SIZES = [(5, 4), (3, 4, 2)]


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def batch(request):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, *request.param, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 3, (2, *request.param), generator=generator)
    return logits, mask


def ignore_some(mask, ignore_index=-1):
    holes = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    return mask.masked_fill(holes, ignore_index)


def numpy_losses(logits, mask, ignore_index=-1, smooth=1.0):
    """Both losses in loops over samples, classes and pixels."""
    dice, ce = [], []
    for sample, truth in zip(logits.numpy(), mask.numpy(), strict=True):
        kept = truth.ravel() != ignore_index
        scores, labels = sample.reshape(len(sample), -1)[:, kept], truth.ravel()[kept]
        p = np.exp(scores) / np.exp(scores).sum(0)
        ce += [-np.log(p[label, pixel]) for pixel, label in enumerate(labels)]
        for k in range(len(p)):
            g = (labels == k).astype(float)
            dice.append(1 - (2 * (p[k] * g).sum() + smooth) / ((p[k] ** 2).sum() + (g**2).sum() + smooth))
    return np.mean(ce), np.mean(dice)


@pytest.mark.parametrize(("ignore_index", "smooth"), [(-1, 1.0), (255, 0.1)])
def test_against_numpy_with_ignored_pixels(batch, ignore_index, smooth):
    logits, mask = batch[0], ignore_some(batch[1], ignore_index)
    ce, dice = numpy_losses(logits, mask, ignore_index, smooth)
    assert cross_entropy(logits, mask, ignore_index).item() == pytest.approx(ce)
    assert soft_dice(logits, mask, ignore_index, smooth).item() == pytest.approx(dice)
    assert dice_ce(logits, mask, ignore_index, smooth).item() == pytest.approx((ce + dice) / 2)


def test_soft_dice_against_monai(batch):
    logits, mask = batch
    monai = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)
    torch.testing.assert_close(soft_dice(logits, mask), monai(logits, mask.unsqueeze(1)))


def test_cross_entropy_against_pytorch(batch):
    logits, mask = batch[0], ignore_some(batch[1])
    torch.testing.assert_close(cross_entropy(logits, mask), F.cross_entropy(logits, mask, ignore_index=-1))


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_influence(batch, loss):
    logits, mask = batch[0].requires_grad_(), ignore_some(batch[1])
    value = loss(logits, mask)
    (gradient,) = torch.autograd.grad(value, logits)
    ignored = (mask == -1).unsqueeze(1).expand_as(logits)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()
    torch.testing.assert_close(loss(logits + 5 * ignored * torch.randn_like(logits), mask), value)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_a_graph(batch, loss):
    logits = batch[0].requires_grad_()
    value = loss(logits, torch.full_like(batch[1], -1))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_batch_without_foreground(batch, loss):
    logits, mask = batch[0].requires_grad_(), torch.zeros_like(batch[1])
    value = loss(logits, mask)
    value.backward()
    assert 0 < value.item() < 10
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_prediction_is_near_zero_and_its_opposite_is_not(batch, loss):
    target = F.one_hot(batch[1], 3).movedim(-1, 1).double()
    assert loss(20 * target, batch[1]).item() < 1e-6
    assert loss(-20 * target, batch[1]).item() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(batch, loss):
    mask = ignore_some(batch[1])
    assert torch.autograd.gradcheck(lambda logits: loss(logits, mask), batch[0].requires_grad_())


def test_soft_dice_in_half_precision_does_not_overflow():
    mask = torch.zeros(1, 300, 300, dtype=torch.long)  # 90 000 pixels, beyond the largest half
    logits = torch.stack([20 + 0.0 * mask, 0.0 * mask], dim=1).half()
    assert soft_dice(logits, mask).item() < 1e-3
