"""Grids that take seconds: tiny networks on tiny synthetic images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY = {
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "model.network.widths": [4, 4, 8],
    "model.network.dropout": [0, 0, 0],
}


@pytest.fixture
def tiny_options() -> dict[str, Any]:
    """Options of every run of `write_grid`."""
    return dict(TINY)


@pytest.fixture
def write_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`write_grid(**keys)` writes a grid of one method on ten synthetic images, with these keys laid over it."""
    monkeypatch.chdir(tmp_path)

    def write(**keys: Any) -> Path:
        grid = {
            "data": [
                {
                    "config": "synthetic2d",
                    "options": {"data.root": str(tmp_path / "data"), "data.num_cases": 10, "data.size": [32, 32]},
                }
            ],
            "methods": ["supervised"],
            "labeled_fraction": [0.5],
            "options": TINY,
            "tests": ["best-native"],
            "controls": False,
            **keys,
        }
        path = tmp_path / "e.yaml"
        path.write_text(yaml.safe_dump(grid))
        return path

    return write
