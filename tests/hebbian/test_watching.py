"""What a user sees of Hebbian pretraining: right numbers, pictures of something, and no effect on training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from semiseg.cli import main
from semiseg.hebbian.figures import latent_figure
from semiseg.hebbian.units import HebbianUnits
from semiseg.hebbian.watching import WatchLearning, choose, latent_vectors, record, without_outliers
from semiseg.methods import HebbianPretrain
from semiseg.networks import UNet
from semiseg.running.checkpoints import load_checkpoint
from semiseg.running.configs import config_folder

METHOD = ("--config", str(config_folder() / "method" / "hebbian_swta_tsa.yaml"))
DATA = ("--data", "Synthetic", "--data.num_cases", "10")
SIZE = {"2d": "[32,32]", "3d": "[16,16,16]"}
CHANGES = {
    "hpca": ("--model.rule", "hpca", "--model.network.upsample", "bilinear"),
    "none": ("--model.rule", "none", "--model.transposed", "s"),
    "part": ("--model.exclude", "[decoder.*,encoder.levels.0.1]"),
}


def seen(units: HebbianUnits, network: UNet, image: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    passed = {}
    with torch.no_grad(), units.watching(lambda name, *maps: passed.update({name: [m.clone() for m in maps]})):
        network.features(image)
    return passed


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("transposed", ["tsa", "s"])
@pytest.mark.parametrize("center", [False, True])
def test_records_and_latent_vectors_by_their_formulas(dims: int, transposed: Any, center: bool) -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, dims, widths=(4, 6), dropout=(0, 0))
    units = HebbianUnits(network, "swta", transposed, inverse_temperature=2.0, center=center)
    for name, (x, y) in seen(units, network, torch.randn(2, 3, *[8] * dims)).items():
        weight = dict(units.named_weights())[name].detach()
        up, start = "ups" in name, torch.randn_like(weight)
        values = record(units, name, start, x, y)
        patches, vectors = latent_vectors(units, name, x, y)
        if center:
            x, y = (maps - maps.mean((0, *range(2, maps.ndim)), keepdim=True) for maps in (x, y))

        axis = 1 if up and transposed == "tsa" else 0
        neurons = [part.flatten() for part in weight.unbind(axis)]
        cosine = [a @ b.flatten() / a.norm() / b.norm() for a, b in zip(neurons, start.unbind(axis), strict=True)]
        others = [a @ b / a.norm() / b.norm() for a in neurons for b in neurons if a is not b]
        gate = torch.softmax(2.0 * (x if up and transposed == "s" else y), 1).movedim(1, -1).flatten(0, -2)
        mean = gate.mean(0)
        direct = {
            "cosine": sum(cosine) / len(neurons),
            "norm": sum(a.norm() for a in neurons) / len(neurons),
            "similarity": sum(abs(c) for c in others) / len(others),
            "entropy": -(gate * gate.log()).sum(1).mean() / math.log(len(neurons)),
            "usage": (-(mean * mean.log()).sum()).exp() / len(neurons),
        }
        assert values.keys() == direct.keys()
        for quantity, value in direct.items():
            torch.testing.assert_close(values[quantity], value, msg=f"{name}: {quantity}")

        # a product of patches and vectors is what a convolution computes, and a transposed one each offset of
        conv, conv_up = (F.conv2d, F.conv_transpose2d) if dims == 2 else (F.conv3d, F.conv_transpose3d)
        if axis == 1:
            blocks = conv_up(x, weight, stride=2)  # offsets, then units, to the channels
            for d in range(2, 2 + dims):
                blocks = torch.stack([blocks.unflatten(d, (-1, 2)).select(d + 1, q) for q in (0, 1)], -1)
            expected = blocks.movedim(1, 1 + dims).flatten(dims + 1)
        else:
            expected = (conv(y, weight, stride=2) if up else conv(x, weight, padding=1)).movedim(1, -1)
        torch.testing.assert_close(patches @ vectors.T, expected.flatten(0, -2), rtol=1e-4, atol=1e-4)


def test_extremes() -> None:
    network = UNet(1, 2, widths=(4, 8), dropout=(0, 0))
    units = HebbianUnits(network)
    name, weight = next(units.named_weights())
    image, equal = torch.zeros(2, 1, 8, 8), torch.ones(2, 4, 8, 8)
    flat = record(units, name, weight.detach().clone(), image, equal)
    assert [float(flat[q]) for q in ("cosine", "entropy", "usage")] == pytest.approx([1, 1, 1])
    equal[:, 2] += 5
    hard = record(units, name, -weight.detach(), image, equal)
    assert [float(hard[q]) for q in ("cosine", "entropy", "usage")] == pytest.approx([-1, 0, 1 / 4])
    weight.data[:] = weight.data[:1]
    assert float(record(units, name, weight.detach(), image, equal)["similarity"]) == pytest.approx(1)


def test_outliers_are_those_beyond_tukeys_fences() -> None:
    patches = F.one_hot(torch.zeros(9, dtype=torch.long), 3) * torch.tensor([1, 2, 3, 4, 5, 6, 7, 13.1, 12.9])[:, None]
    assert without_outliers(patches)[:, 0].tolist() == pytest.approx([1, 2, 3, 4, 5, 6, 7, 12.9])  # 7 + 1.5 (7 - 3)


def test_choices_are_the_same_and_leave_torchs_generator_alone() -> None:
    state, first = torch.get_rng_state(), choose(5, 20)
    assert torch.equal(first, choose(5, 20))
    assert len(set(first.tolist())) == 5
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("count", [1, 2])
def test_latent_space_of_hardly_any_patch(count: int) -> None:
    stage = {"step": 0, "patches": torch.randn(count, 1), "vectors": torch.randn(3, 1)}
    assert latent_figure([stage]).std() > 0


@pytest.mark.parametrize("dims", SIZE)
def test_rows_and_figures(dims: str, fit, tmp_path: Path) -> None:
    run = fit(*METHOD, *DATA, "--data.size", SIZE[dims])
    with (run / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["hebbian/cosine"]}
    assert list(rows) == [0, 1, 3]  # 1 and 3 are the batches before validations
    assert float(rows[0]["hebbian/cosine"]) == pytest.approx(1)
    assert float(rows[3]["cosine/encoder.levels.0.1"]) < float(rows[1]["cosine/encoder.levels.0.1"]) < 1
    for quantity in ("cosine", "norm", "similarity", "entropy", "usage"):
        layers = [float(value) for name, value in rows[3].items() if name.startswith(f"{quantity}/")]
        assert len(layers) == 12
        assert float(rows[3][f"hebbian/{quantity}"]) == pytest.approx(sum(layers) / 12)
    for name in ("filters", "learning", "latent"):
        picture = np.asarray(Image.open(run / "figures" / f"{name}.png"))
        assert picture.std() > 5, name
        assert picture.shape[1] > 500
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, name


@pytest.mark.parametrize("change", CHANGES)
def test_other_rules_and_networks(change: str, fit) -> None:
    run = fit(*METHOD, *DATA, "--data.size", SIZE["2d"], *CHANGES[change])
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"]["WatchLearning"]
    assert ("hebbian/usage" in state["curves"][0]) == (change not in ("hpca", "none"))
    assert (state["curves"][-1]["hebbian/cosine"] == pytest.approx(1, abs=1e-7)) == (change == "none")
    assert {stage["step"]: "patches" in stage for stage in state["stages"]} == dict.fromkeys((0, 3), change != "part")
    assert {path.stem for path in (run / "figures").iterdir()} >= {"filters", "learning"}


def test_goes_on_bit_for_bit(fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*METHOD, *DATA, "--data.size", SIZE["2d"], "--data.root", str(tmp_path / "data")]
    tiny = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "20", "--trainer.val_check_interval", "8"]
    tiny += ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0.1,0.1]"]
    whole = load_checkpoint(fit(*options, tiny=tiny) / "checkpoints" / "last.ckpt")

    command = ["fit", *options, *tiny, "--runs_dir", str(tmp_path / "runs"), "--experiment", "stopped"]
    step = HebbianPretrain.training_step
    monkeypatch.setattr(HebbianPretrain, "training_step", lambda s, b, i: step(s, b, i) if i < 11 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command)
    monkeypatch.setattr(HebbianPretrain, "training_step", step)
    assert main(command) == 0
    (path,) = (tmp_path / "runs" / "stopped").rglob("last.ckpt")
    again = load_checkpoint(path)
    one, two = (checkpoint["callbacks"]["WatchLearning"] for checkpoint in (whole, again))
    assert [record["step"] for record in one["curves"]] == [0, 1, 7, 15, 19]
    assert [stage["step"] for stage in one["stages"]] == [0, 1, 19]
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert one["curves"] == two["curves"]
    with (path.parents[1] / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["hebbian/norm"]] == ["0", "1", "7", "15", "19"]

    # and training is the same without it
    monkeypatch.setattr(HebbianPretrain, "configure_callbacks", lambda self: [])
    without = load_checkpoint(fit(*options, "--experiment", "unseen", tiny=tiny) / "checkpoints" / "last.ckpt")
    assert WatchLearning.__name__ not in without["callbacks"]
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(without[part], whole[part], rtol=0, atol=0)
