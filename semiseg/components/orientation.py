"""Flips and quarter turns that can be undone exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semiseg import whole_batch


@dataclass(frozen=True)
class Orientation:
    """Flips along some spatial axes, then quarter turns in the first two: of images, probabilities and masks alike.

    Args:
        flips: axes that are flipped, counted from the end (-1 is the last).
        turns: quarter turns.
        plane: the axes of the plane that turns, counted from the end.
    """

    flips: tuple[int, ...]
    turns: int
    plane: tuple[int, int]

    @classmethod
    def draw(cls, size: Sequence[int]) -> Orientation:
        """One of all orientations that keep a spatial size, for the whole batch, from torch's global generator."""
        dims = len(size)
        with whole_batch.drawn_alike():
            flips = tuple(axis for axis in range(-dims, 0) if float(torch.rand(())) < 0.5)
            turns = int(torch.randint(4, ()))
        return cls(flips, turns if size[0] == size[1] else turns - turns % 2, (-dims, 1 - dims))

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor (..., *S), oriented."""
        return tensor.flip(self.flips).rot90(self.turns, self.plane)

    def undo(self, tensor: Tensor) -> Tensor:
        """The tensor whose `apply` gave this one."""
        return tensor.rot90(-self.turns, self.plane).flip(self.flips)
