"""Checkpoints: plain types, enough for predict, written whole; initial weights are needed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.inference.predictor import Predictor
from semiseg.methods import SegmentationMethod, Supervised
from semiseg.running.checkpoints import AtomicCheckpointIO, load_checkpoint


def kinds(value: Any) -> set[type]:
    if isinstance(value, dict):
        return {type(value)}.union(*(kinds(v) for item in value.items() for v in item))
    if isinstance(value, list | tuple | set):
        return {type(value)}.union(*(kinds(v) for v in value))
    return {type(value)}


def test_plain_types_suffice_without_data_and_yaml(tiny, run, tmp_path, monkeypatch):
    assert main([*tiny, "--experiment", "stage1"]) == 0
    weights = Path("stage1.ckpt")
    Path("runs/stage1", *run.parts[2:], "checkpoints/best.ckpt").rename(weights)
    tiny += ["--model.network.weights", str(weights)]

    original = Supervised.training_step
    monkeypatch.setattr(Supervised, "training_step", lambda s, b, i: original(s, b, i) if i < 6 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(tiny)
    monkeypatch.setattr(Supervised, "training_step", original)
    weights.unlink()
    assert main([*tiny, "--experiment", "fresh"]) == 2  # a first start needs them
    assert main(tiny) == 0  # going on does not
    assert main(tiny) == 0  # nor does being done
    assert main(["test", "--run", str(run)]) == 0

    checkpoint = run / "checkpoints/best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    allowed = {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor, type(content["state_dict"])}
    assert kinds(content) <= allowed
    assert content["preprocessing"]["image_size"]
    assert str(weights) not in str(content["hyper_parameters"])

    Path("moved.ckpt").write_bytes(checkpoint.read_bytes())
    run.rename("gone")
    method = SegmentationMethod.load_from_checkpoint("moved.ckpt", map_location="cpu", weights_only=True)
    assert all(torch.equal(v, content["state_dict"][k]) for k, v in method.state_dict().items())
    Image.fromarray(np.zeros((50, 40), np.uint8)).save("one.png")
    prediction = Predictor(Path("moved.ckpt"), "cpu")(Path("one.png"))
    assert prediction.classes.shape == (50, 40)


def test_a_failed_write_leaves_the_former(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError(reason)

    monkeypatch.setattr(torch, "save", half)
    reason = "CUDA error: device-side assert triggered"
    with pytest.raises(RuntimeError, match="CUDA error"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    reason = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
    with pytest.raises(UserError, match=r"disk is probably full.* goes on from .*last.ckpt"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_checkpoint_is_said_in_one_line(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"half a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of a semiseg run"):
        load_checkpoint(path)
