"""A tiny run with dropout, so that what is random in a step shows in its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = (
    *("fit", "--data", "Synthetic", "--data.size", "[32,32]", "--data.num_cases", "15", "--trainer.accelerator", "cpu"),
    *("--model.network.widths", "[4,8]", "--model.network.dropout", "[0.1,0.1]", "--trainer.max_steps", "12"),
    *("--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1"),
)
RUN = Path("runs/default/synthetic2d/supervised/labeled-1/fold-0-seed-0")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a tiny run whose folder is `RUN` in a current directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return list(TINY)


@pytest.fixture
def run() -> Path:
    """The folder of the tiny run."""
    return RUN
