"""What all tests share: a cache and W&B of their own, one thread, and a tiny run through the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from semiseg.cli import main

os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)

TINY = (
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"),
    *("--model.network.widths", "[4,4,8]", "--model.network.dropout", "[0,0,0]"),
)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SEMISEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Path]:
    """`fit(*options)` trains a tiny network below `tmp_path/runs` and returns the run's folder."""

    def run(*options: str, tiny: Sequence[str] = TINY) -> Path:
        runs = tmp_path / "runs"
        before = set(runs.rglob("config.yaml"))
        assert main(["fit", *options, *tiny, "--runs_dir", str(runs)]) == 0
        (config,) = set(runs.rglob("config.yaml")) - before
        return config.parent

    return run
