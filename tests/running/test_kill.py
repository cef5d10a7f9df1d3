"""A run that was killed and started again ends as one that never was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kills
import pytest
import torch


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [d for i, (p, q) in enumerate(zip(a, b, strict=True)) for d in differences(p, q, f"{where}.{i}")]
    return [] if a == b else [f"{where}: {a} != {b}"]


def assert_same(one: Path, other: Path) -> None:
    """Whole checkpoints, loops and callbacks included, metrics and status; nothing half-written is left."""
    for path in (one / "checkpoints").iterdir():
        a, b = (torch.load(run / "checkpoints" / path.name, weights_only=True) for run in (one, other))
        assert all(a[key] for key in ("global_step", "optimizer_states", "lr_schedulers", "state_dict"))
        assert differences(a, b, path.stem) == []
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    a, b = (json.loads((run / "status.json").read_text()) for run in (one, other))
    assert all(a.get(key) == b.get(key) for key in ("state", "step", "best_step", "best_val_dice", "error")), (a, b)
    assert sorted(p.name for p in (other / "checkpoints").iterdir()) == sorted(
        p.name for p in (one / "checkpoints").iterdir()
    )


# Three kills of the same run, then its end. 10 steps end between two validations.
@pytest.mark.parametrize(
    ("steps", "moments"),
    [
        (12, [("step", 6), ("writing a checkpoint", 2), ("between last and status", 1)]),
        (10, [("between best and last", 1), ("validation", 2), ("writing a checkpoint", 3)]),
    ],
)
def test_killed_run_ends_bit_for_bit_the_same(
    tiny: list[str], run: Path, tmp_path: Path, steps: int, moments: list[tuple[str, int]]
):
    arguments = [*tiny, "--trainer.max_steps", str(steps)]
    whole = Path(run.parts[0], "whole", *run.parts[2:])
    assert kills.run_and_kill([*arguments, "--experiment", "whole"], None) == 0
    for moment, count in moments:
        assert kills.run_and_kill(arguments, moment, count) == -9, moment
        assert json.loads((run / "status.json").read_text())["state"] == "running"
    assert kills.run_and_kill(arguments, None) == 0
    assert_same(whole, run)


def test_killed_first_stage_ends_bit_for_bit_the_same(tiny: list[str], tmp_path: Path):
    arguments = [tiny[0], "--config", "configs/method/hebbian_swta_tsa.yaml", *tiny[1:]]  # its budget last
    assert kills.run_and_kill([*arguments, "--experiment", "whole"], None) == 0
    for moment, count in [("step", 7), ("writing a checkpoint", 1)]:
        assert kills.run_and_kill(arguments, moment, count) == -9, moment
    assert kills.run_and_kill(arguments, None) == 0
    one, other = (
        Path("runs", name, "synthetic2d/hebbian_swta_tsa/labeled-1/fold-0-seed-0") for name in ("whole", "default")
    )
    assert [path.name for path in (one / "checkpoints").iterdir()] == ["last.ckpt"]
    assert_same(one, other)


def test_killed_teacher_ends_bit_for_bit_the_same(tiny: list[str], tmp_path: Path):
    arguments = [tiny[0], "--config", "configs/method/uamt.yaml", *tiny[1:], "--data.labeled_fraction", "0.5"]
    assert kills.run_and_kill([*arguments, "--experiment", "whole"], None) == 0
    for moment, count in [("step", 6), ("writing a checkpoint", 2)]:
        assert kills.run_and_kill(arguments, moment, count) == -9, moment
    assert kills.run_and_kill(arguments, None) == 0
    one, other = (Path("runs", name, "synthetic2d/uamt/labeled-0.5/fold-0-seed-0") for name in ("whole", "default"))
    assert any(key.startswith("teacher.") for key in torch.load(one / "checkpoints/last.ckpt")["state_dict"])
    assert_same(one, other)


def test_killed_after_the_last_checkpoint_only_becomes_done(tiny: list[str], run: Path):
    assert kills.run_and_kill(tiny, "between last and status", 3) == -9
    before = (run / "checkpoints/last.ckpt").read_bytes()
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 12
    assert json.loads((run / "status.json").read_text())["step"] == 8
    assert kills.run_and_kill(tiny, None) == 0
    status = json.loads((run / "status.json").read_text())
    best_step = last["callbacks"]["KeepBestAndLast"]["best_step"]
    assert (status["state"], status["step"], status["best_step"]) == ("done", 12, best_step)
    assert (run / "checkpoints/last.ckpt").read_bytes() == before
