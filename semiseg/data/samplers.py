"""Which images a training step sees: a pure function of (seed, step, rank), with no state to save or restore."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One image of one step: `slot` is its place in the batch over all ranks, `member` its place in the stream."""

    stream: str
    step: int
    slot: int
    member: int


class StepSampler(Sampler[list[Draw]]):
    """Batches of draws, step by step, for one or two streams (labeled, unlabeled).

    A stream is an endless row of seeded permutations of its images; step t takes the next `batch_size x world_size`
    places of the row and rank r the r-th part of them. So two processes with batch B see what one sees with 2B, a
    stream shorter than a batch repeats images within it, and resuming at step t needs nothing but t.

    Args:
        sizes: number of images of each stream.
        batch_sizes: images per step and rank of each stream.
        seed: seed of the permutations.
        start: first step (the trainer's global step).
        stop: step to stop before (the budget).
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        batch_sizes: dict[str, int],
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sizes = sizes
        self.batch_sizes = batch_sizes
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Steps of the whole budget: Lightning counts the steps done before a resume itself."""
        return self.stop

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            yield self.draws(step)

    def draws(self, step: int) -> list[Draw]:
        """The draws of one step on this rank."""
        batch = []
        for number, (stream, size) in enumerate(sorted(self.sizes.items())):
            own = self.batch_sizes[stream]
            for slot in range(self.rank * own, (self.rank + 1) * own):
                turn, place = divmod(step * own * self.world_size + slot, size)
                member = int(_permutation(self.seed, number, turn, size)[place])
                batch.append(Draw(stream, step, slot, member))
        return batch


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, turn: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, stream, turn]).permutation(size)
