"""Weights of unsupervised losses as functions of the optimiser step and the budget; resuming needs nothing else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from semiseg.errors import UserError, check_number


class Ramp:
    """A weight as a function of the step; one of your own is a subclass whose first argument is the budget in steps."""

    def __call__(self, step: int) -> float:
        """Weight at a step."""
        raise NotImplementedError


RampFactory = Callable[[int], Ramp]
"""From the budget in steps to a ramp: in YAML a class path with the rest of its arguments."""


def check_ramp(make_ramp: RampFactory) -> None:
    """Build a ramp once, so that a mistake in its options shows before training.

    Raises:
        UserError: an option is out of its range, or the ramp does not take the budget or gives no number.
    """
    try:
        ramp = make_ramp(1)
        check_number("--model.weight at step 0", ramp(0), 0)
    except (TypeError, NotImplementedError) as error:
        raise UserError(
            f"--model.weight: is no ramp from the budget in steps to a weight at a step: {error}"
        ) from error
    first = next(iter(inspect.signature(type(ramp)).parameters), "nothing")
    if isinstance(ramp, Ramp) and first != "max_steps":
        raise UserError(
            f"--model.weight {type(ramp).__name__}: takes {first} where the budget in steps stands; name its first "
            "argument max_steps"
        )


class ConstantWeight(Ramp):
    """The same weight throughout.

    Args:
        max_steps: budget in optimiser steps; not used.
        peak: the weight.
    """

    def __init__(self, max_steps: int, peak: float = 1.0) -> None:
        check_number("--model.weight.peak", peak, 0, 1e6)
        self.peak = peak

    def __call__(self, step: int) -> float:
        """Weight at a step."""
        return self.peak


class LinearRamp(Ramp):
    """Rise in proportion to the step: to 5 at the end of the budget in both 2025 papers.

    Args:
        max_steps: budget in optimiser steps.
        peak: weight at the end of the rise.
        length: share of the budget that rises; after it the weight stays.
    """

    def __init__(self, max_steps: int, peak: float = 5.0, length: float = 1.0) -> None:
        check_number("--model.weight.peak", peak, 0, 1e6)
        check_number("--model.weight.length", length, 0, 100)
        self.peak = peak
        self.rise = length * max_steps

    def __call__(self, step: int) -> float:
        """Weight at a step."""
        return self.peak * (min(step / self.rise, 1.0) if self.rise else 1.0)


class SigmoidRamp(Ramp):
    """Rise along exp(-5 (1 - t)^2), from e^-5 of the peak to the peak (Laine and Aila, https://arxiv.org/abs/1610.02242).

    SSL4MIS (https://github.com/HiLab-git/SSL4MIS) counts steps by 150 and rises over 200 of these, all of its budget
    of 30 000 steps, to a peak of 0.1.

    Args:
        max_steps: budget in optimiser steps.
        peak: weight at the end of the rise.
        length: share of the budget that rises; after it the weight stays.
    """

    def __init__(self, max_steps: int, peak: float = 0.1, length: float = 1.0) -> None:
        check_number("--model.weight.peak", peak, 0, 1e6)
        self.peak = peak
        self.rise = LinearRamp(max_steps, 1.0, length)

    def __call__(self, step: int) -> float:
        """Weight at a step."""
        return self.peak * math.exp(-5 * (1 - self.rise(step)) ** 2)
