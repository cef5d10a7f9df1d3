"""The batch over all processes: with these, N processes of batch B compute what one computes with batch N x B.

DDP averages gradients over the processes. That is exact for means over images; what else concerns the whole batch goes
through here: random draws, ratios of sums, means that are not linear in the loss, and neighbors in the batch. In one
process each function is its plain counterpart on the local batch. All processes have batches of the same size.

All functions but `drawn_alike`, `each` and `slots` communicate: call them equally often in every process, never inside
a branch that depends on the data or on the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass
class _Context:
    alone: bool = False
    parts: tuple[int, ...] = ()
    drawing: bool = False
    shared: tuple[Tensor, ...] | None = None  # states of the generators for draws that all processes share


_now = _Context()


@contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = {name: getattr(_now, name) for name in values}
    vars(_now).update(values)
    try:
        yield
    finally:
        vars(_now).update(before)


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() and not _now.alone else 1


def rank() -> int:
    """Number of this process among them."""
    return distributed.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this module's functions concern the local batch only and do not communicate."""
    with _set(alone=True):
        yield


@contextmanager
def of_parts(*sizes: int) -> Iterator[None]:
    """Inside, the local batch is a concatenation of streams of these sizes, each with a whole batch of its own."""
    with _set(parts=sizes):
        yield


def seed(shared: int, own: int) -> None:
    """Seed torch: `shared` for what all processes draw alike, and for everything in one process; else `own`."""
    torch.manual_seed(shared)
    if world_size() > 1:
        _now.shared = _generator_states()
        torch.manual_seed(own)


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Inside, torch's global generators give the same numbers in all processes: for draws that belong to the batch."""
    if world_size() == 1 or _now.shared is None or _now.drawing:
        yield
        return
    own = _generator_states()
    _set_generator_states(_now.shared)
    try:
        with _set(drawing=True):
            yield
    finally:
        _now.shared = _generator_states()
        _set_generator_states(own)


def each(draw: Callable[[Tensor], Tensor], local: Tensor) -> Tensor:
    """`draw(local)`, where `draw` takes random numbers for each image: those of its place in the whole batch.

    Every process draws for the whole batch and keeps its own part, so `local` should hold little beside its shape.
    """
    count = world_size()
    if count == 1:
        return draw(local)
    sizes = list(_now.parts) or [len(local)]
    whole = torch.cat([part for part in torch.split(local, sizes) for _ in range(count)])
    with drawn_alike():
        drawn = torch.split(draw(whole), [size for size in sizes for _ in range(count)])
    return torch.cat(drawn[rank() :: count])


def slots(local: Tensor) -> Tensor:
    """Places (B,) of the local images in the whole batch."""
    return torch.arange(len(local), device=local.device) + rank() * len(local)


def mean(value: Tensor) -> Tensor:
    """Mean over the processes, without a gradient where there are several."""
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / world_size()


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator` of sums over images, 0 / 0 being 0; its mean over processes is the whole batch's ratio.

    So are its gradients, by numerator and denominator, once they are averaged over the processes.
    """
    if world_size() == 1:
        return numerator / torch.where(denominator > 0, denominator, 1)
    denominator = denominator.to(numerator.dtype)
    above, below = mean(torch.stack([numerator, denominator]))
    below = torch.where(below > 0, below, 1)
    return (numerator - above / below * (denominator - denominator.detach())) / below


def gathered(local: Tensor) -> Tensor:
    """The whole batch, without a gradient where there are several processes."""
    if world_size() == 1:
        return local
    local = local.detach().contiguous()
    parts = [torch.empty_like(local) for _ in range(world_size())]
    distributed.all_gather(parts, local)
    return torch.cat(parts)


def rolled(local: Tensor) -> Tensor:
    """`roll(1, 0)` of the whole batch: for each image the one before, for the first the last; without a gradient."""
    before = local.detach().roll(1, 0)
    if world_size() > 1:
        before[0] = gathered(local[-1:])[rank() - 1]
    return before


def _generator_states() -> tuple[Tensor, ...]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append(torch.cuda.get_rng_state())
    return tuple(states)


def _set_generator_states(states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
