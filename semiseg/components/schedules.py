"""Learning-rate schedules as functions of the optimiser step and the budget; resuming at a step needs nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from semiseg.errors import UserError, check_number

Schedule = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, max_steps) to a schedule that is a function of the step."""

_BUDGETS = ("max_steps", "T_max", "total_iters")  # ours, and torch's names for the same


class Constant(LambdaLR):
    """The optimiser's own learning rate throughout.

    Args:
        optimizer: optimiser to schedule.
        max_steps: budget in optimiser steps; not used.
    """

    def __init__(self, optimizer: Optimizer, max_steps: int) -> None:
        super().__init__(optimizer, lambda step: 1.0)


class WarmupPoly(LambdaLR):
    """Linear warm-up, then polynomial decay to zero at the end of the budget.

    Args:
        optimizer: optimiser to schedule.
        max_steps: budget in optimiser steps.
        warmup: share of the budget that warms up.
        power: exponent of the decay; 0.9 as in DeepLab and nnU-Net.

    Raises:
        UserError: `warmup` is not a share, or `power` is negative.
    """

    def __init__(self, optimizer: Optimizer, max_steps: int, warmup: float = 0.0, power: float = 0.9) -> None:
        check_number("--model.schedule.warmup", warmup, 0, 1)
        check_number("--model.schedule.power", power, 0, 100)
        rise = warmup * max_steps

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return (1 - min((step - rise) / max(max_steps - rise, 1), 1.0)) ** power

        super().__init__(optimizer, factor)


class WarmupHalving(LambdaLR):
    """Linear warm-up, then a factor at fixed shares of the budget: the recipe of both 2025 papers.

    Their schedule is 20 epochs of warm-up and halving after epochs 70, 120 and 170 of 200. Deviation: the authors'
    code runs the whole first epoch at rate 0, here the first step already moves.

    Args:
        optimizer: optimiser to schedule.
        max_steps: budget in optimiser steps.
        warmup: share of the budget that warms up.
        milestones: shares of the budget at which the rate is multiplied by `factor`.
        factor: what the rate is multiplied by.

    Raises:
        UserError: `warmup`, a milestone or `factor` is not between 0 and 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int,
        warmup: float = 0.1,
        milestones: Sequence[float] = (0.35, 0.6, 0.85),
        factor: float = 0.5,
    ) -> None:
        check_number("--model.schedule.warmup", warmup, 0, 1)
        check_number("--model.schedule.milestones", milestones, 0, 1)
        check_number("--model.schedule.factor", factor, 0, 1)
        rise = warmup * max_steps

        def rate(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return float(factor ** sum(step >= share * max_steps for share in milestones))

        super().__init__(optimizer, rate)


def build_schedule(make_schedule: Schedule, optimizer: Optimizer, max_steps: int) -> LRScheduler:
    """Build a schedule, and check that what it takes for its second argument is the budget.

    Raises:
        UserError: it is of another kind, such as torch's `StepLR`, which would take the budget for something else.
    """
    advice = "use WarmupPoly, WarmupHalving, Constant, or a class of your own that takes (optimizer, max_steps)"
    try:
        schedule = make_schedule(optimizer, max_steps)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"--model.schedule: cannot be built ({str(error)[:120]}); {advice}") from error
    second = [*inspect.signature(type(schedule)).parameters, "nothing"][1]
    if second not in _BUDGETS and type(schedule) is not LambdaLR:  # of which a function may make one
        name = type(schedule).__name__
        raise UserError(f"--model.schedule {name}: takes {second} where the budget in steps stands; {advice}")
    return schedule
