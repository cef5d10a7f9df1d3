"""Schedules at hand-computed steps, and as functions of the step alone."""

import pytest
import torch

from semiseg.components import Constant, WarmupHalving, WarmupPoly
from semiseg.errors import UserError


def rates(schedule: type, steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant() -> None:
    assert set(rates(Constant, 5)) == {1.0}


def test_the_papers_recipe() -> None:
    found = rates(WarmupHalving, 200)
    assert found[0] == pytest.approx(1 / 21)  # the first step moves
    assert found[9] == pytest.approx(10 / 21)
    assert found[20] == found[69] == 1.0
    assert found[70] == found[119] == 0.5
    assert found[120] == found[169] == 0.25
    assert found[170] == found[199] == 0.125


def test_poly() -> None:
    found = rates(WarmupPoly, 100, warmup=0.1)
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.5**0.9)
    assert found[-1] == pytest.approx((1 / 90) ** 0.9)
    assert sorted(found[10:], reverse=True) == found[10:]
    assert rates(WarmupPoly, 10)[0] == 1.0
    assert rates(WarmupPoly, 9, warmup=1.0) == pytest.approx([step / 10 for step in range(1, 10)])


@pytest.mark.parametrize("option", [{"warmup": 1.5}, {"warmup": -0.1}, {"power": -1.0}], ids=str)
def test_numbers_that_cannot_be_are_named(option: dict[str, float]) -> None:
    for schedule in (WarmupPoly, WarmupHalving) if "warmup" in option else (WarmupPoly,):
        with pytest.raises(UserError, match=f"--model.schedule.{next(iter(option))}"):
            rates(schedule, 10, **option)
