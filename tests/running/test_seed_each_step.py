"""Dropout and noise are functions of (seed, step, rank), and what processes share of (seed, step)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from semiseg import whole_batch
from semiseg.running.callbacks import SeedEachStep


def mask(seed: int, step: int, rank: int | None = None) -> torch.Tensor:
    """A dropout mask of a process among two, or of the only one."""
    with pytest.MonkeyPatch.context() as patch:
        if rank is not None:
            patch.setattr(whole_batch, "world_size", lambda: 2)
        trainer: Any = SimpleNamespace(global_rank=rank or 0)
        SeedEachStep(seed).on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
        return torch.nn.functional.dropout(torch.ones(1000), 0.5)


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_the_same_after_anything_else(rank: int | None):
    one = mask(3, 7, rank)
    torch.rand(5)
    assert torch.equal(one, mask(3, 7, rank))


@pytest.mark.parametrize("other", [(4, 7, 1), (3, 8, 1), (3, 7, 0), (7, 3, 1), (3, 1, 7), (3, 7)])
def test_differs_by_seed_step_and_rank(other: tuple[int, ...]):
    assert not torch.equal(mask(3, 7, 1), mask(*other))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_processes_share_is_what_one_alone_draws(rank: int, monkeypatch: pytest.MonkeyPatch):
    first, then = mask(3, 7), torch.rand(10)  # alone
    monkeypatch.setattr(whole_batch, "world_size", lambda: 2)
    mask(3, 7, rank)
    with whole_batch.drawn_alike():
        assert torch.equal(torch.nn.functional.dropout(torch.ones(1000), 0.5), first)
    torch.rand(5)  # this process's own
    with whole_batch.drawn_alike(), whole_batch.drawn_alike():
        assert torch.equal(torch.rand(10), then)
