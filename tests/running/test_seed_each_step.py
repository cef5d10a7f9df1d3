"""Dropout and noise are functions of (seed, step, rank)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from semiseg.running.callbacks import SeedEachStep


def mask(seed: int, step: int, rank: int) -> torch.Tensor:
    trainer: Any = SimpleNamespace(global_rank=rank)
    SeedEachStep(seed).on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
    return torch.nn.functional.dropout(torch.ones(1000), 0.5)


def test_the_same_after_anything_else():
    one = mask(3, 7, 1)
    torch.rand(5)
    assert torch.equal(one, mask(3, 7, 1))


@pytest.mark.parametrize("other", [(4, 7, 1), (3, 8, 1), (3, 7, 0), (7, 3, 1), (3, 1, 7)])
def test_differs_by_seed_step_and_rank(other: tuple[int, int, int]):
    assert not torch.equal(mask(3, 7, 1), mask(*other))
