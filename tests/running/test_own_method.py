"""A method in the user's own file, named by its class path."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.inference.predictor import Predictor

METHOD = """
from semiseg.methods import Supervised

class MyMethod(Supervised):
    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return self.factor * super().training_step(batch, batch_idx)
"""


def test_trains_tests_and_predicts(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "my_method.py").write_text(METHOD)
    (tmp_path / "my.yaml").write_text("model:\n  class_path: my_method.MyMethod\n  init_args:\n    factor: 2.0\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert main([tiny[0], "--config", "my.yaml", *tiny[1:]]) == 0
    assert "--trust my_method\n" in capsys.readouterr().out  # only a file names it from here on
    run = Path("runs/default/synthetic2d/mymethod/labeled-1/fold-0-seed-0")
    assert main(["test", "--run", str(run)]) == 2
    assert "--trust my_method" in capsys.readouterr().err
    assert main(["test", "--run", str(run), "--trust", "my_method"]) == 0
    Image.fromarray(np.zeros((40, 40), np.uint8)).save("one.png")
    best = run / "checkpoints/best.ckpt"
    capsys.readouterr()
    assert main(["predict", str(best), "one.png", "--output", "masks"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--trust" in error
    assert main(["predict", str(best), "one.png", "--output", "masks", "--trust", "my_method", "--device", "cpu"]) == 0
    assert Image.open("masks/one.png").size == (40, 40)
    with pytest.raises(UserError, match="--trust"):
        Predictor(best)
