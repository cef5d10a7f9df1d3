"""Hebbian pretraining as a method: its step, two processes, folding, and the linear probe on top of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semiseg.methods import HebbianPretrain, LinearProbe, Method
from semiseg.methods.pretraining.hebbian import average_over_processes
from semiseg.networks import UNet

HEBBIAN = ("--config", "configs/method/hebbian_swta_tsa.yaml")
DATA = ("--data", "Synthetic", "--data.size", "[32,32]", "--data.num_cases", "10")


def tiny_network(in_channels: int, num_classes: int, spatial_dims: int) -> UNet:
    return UNet(in_channels, num_classes, spatial_dims, widths=(4, 8), dropout=(0, 0))


def loaded(run: Path) -> Method:
    return HebbianPretrain.load_from_checkpoint(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)


def test_masks_of_all_training_images_may_be_missing_and_all_are_used(fit, tmp_path: Path) -> None:
    """10 cases: 6 to train, of which 1 is labeled; 4 steps of batch 2 see 8 images, so all six of them."""
    root = tmp_path / "data"
    seen = set()
    original = HebbianPretrain.training_step

    def note(self, batch, batch_idx):
        assert batch.keys() == {"unlabeled"}
        assert batch["unlabeled"].keys() == {"image", "case"}
        seen.update(batch["unlabeled"]["case"])
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HebbianPretrain, "training_step", note)
        fit(*HEBBIAN, *DATA, "--data.root", str(root), "--data.labeled_fraction", "0.1")
    assert len(seen) == 6


def test_the_checkpoint_is_the_network_that_training_used(fit) -> None:
    """Unit norm is folded in: a plain network with the checkpoint's weights gives the method's logits."""
    run = fit(*HEBBIAN, *DATA)
    method = loaded(run).eval()
    plain = UNet(3, 2, 2, widths=(4, 4, 8), dropout=(0, 0, 0), weights=str(run / "checkpoints/last.ckpt")).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(image), method.network(image))
        method.units.fold()
        torch.testing.assert_close(plain(image), method.network(image))
    for name, weight in method.units.named_weights():
        others = [dim for dim in range(4) if dim != method.units.unit_axis[name]]
        unit = weight / torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        torch.testing.assert_close(dict(plain.named_modules())[name].weight, unit)


def test_the_optimiser_has_the_raw_weights_alone_and_its_schedule_follows_the_steps(fit) -> None:
    run = fit(*HEBBIAN, *DATA)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    (optimizer,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    assert len(optimizer["param_groups"][0]["params"]) == len(loaded(run).units.weights)
    assert schedule["last_epoch"] == checkpoint["global_step"] == 4
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.001 / 8)  # three times halved


def test_the_seed_of_the_run_is_that_of_pretraining(fit) -> None:
    first, again, other = (
        loaded(fit(*HEBBIAN, *DATA, "--seed_everything", seed, "--experiment", name))
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    for a, b, c in zip(first.units.weights, again.units.weights, other.units.weights, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)


def test_changes_that_are_not_numbers_stop_the_run(fit, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(AssertionError):
        fit(*HEBBIAN, *DATA, "--model.optimizer.lr", "1e30")
    assert "not a number at step" in capsys.readouterr().err


def test_compilation_is_refused(fit, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(AssertionError):
        fit(*HEBBIAN, *DATA, "--model.compile", "true")
    assert "--model.compile" in capsys.readouterr().err


def test_bfloat16_trains(fit) -> None:
    run = fit(*HEBBIAN, *DATA, "--trainer.precision", "bf16-mixed")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in loaded(run).units.weights)


def test_mean_over_processes_is_the_identity_for_one() -> None:
    tensor = torch.arange(3.0)
    average_over_processes([tensor])
    assert torch.equal(tensor, torch.arange(3.0))


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instance norm, since batch norm is each process's own; centring is not, and no observer waits for another."""
    monkeypatch.chdir(tmp_path)
    options = (
        *(*HEBBIAN, *DATA, "--trainer.accelerator", "cpu", "--trainer.max_steps", "4"),
        *("--trainer.val_check_interval", "4", "--model.network.norm", "instance", "--model.network.widths", "[4,8]"),
        *("--model.network.dropout", "[0,0]", "--model.center", "true", "--trainer.precision", "64-true"),
        *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"),
    )
    ddp = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "1", "--experiment", "two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "semiseg", "fit", *options, "--data.unlabeled_batch_size", "1", *ddp]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    from semiseg.cli import main

    assert main(["fit", *options, "--data.batch_size", "2", "--experiment", "one"]) == 0
    two, one = (loaded(Path(f"runs/{n}/synthetic2d/hebbian_swta_tsa/labeled-1/fold-0-seed-0")) for n in ("two", "one"))
    start = loaded_start(one)
    for (name, a), (_, b) in zip(two.units.named_weights(), one.units.named_weights(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
        assert (a - start[name]).abs().max() > 1e-3, f"{name} has not moved"


def loaded_start(method: Method) -> dict[str, torch.Tensor]:
    """Weights of the same layers before training: the run's seed draws the same network again."""
    torch.manual_seed(0)
    fresh = HebbianPretrain(
        network=lambda *sizes: UNet(*sizes, widths=(4, 8), dropout=(0, 0), norm="instance"), in_channels=3
    )
    return {name: weight.detach() for name, weight in fresh.units.named_weights()}


def test_linear_probe_trains_its_head_alone(fit) -> None:
    first = fit(*HEBBIAN, *DATA)
    weights = str(first / "checkpoints/last.ckpt")
    run = fit("--model", "LinearProbe", *DATA, "--model.network.weights", weights, "--model.optimizer.lr", "0.1")
    probe = LinearProbe.load_from_checkpoint(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    before = torch.load(weights, weights_only=True)["state_dict"]
    after = probe.state_dict()
    frozen = [key for key in after if not key.startswith("network.head")]
    assert frozen
    assert all(torch.equal(after[key], before[key]) for key in frozen)  # batch normalisation's statistics too
    assert after["network.head.weight"].shape == (2, 4, 1, 1)
    torch.manual_seed(0)
    assert not torch.equal(after["network.head.weight"], LinearProbe(network=tiny_network).network.head.weight)


def test_linear_probe_is_frozen_in_training_too() -> None:
    probe = LinearProbe(network=lambda *sizes: UNet(*sizes, widths=(4, 8), dropout=(0.5, 0.5))).train()
    image = torch.randn(2, 3, 16, 16)
    features = probe.network.features(image)
    assert torch.equal(features, probe.network.features(image)), "dropout is on"
    assert not features.requires_grad
    assert [name for name, p in probe.named_parameters() if p.requires_grad] == [
        "network.head.weight",
        "network.head.bias",
    ]
