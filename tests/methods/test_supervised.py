"""The supervised step against a loop written out, and the base's promises about checkpoints."""

from pathlib import Path

import pytest
import torch

from semiseg.cli import main
from semiseg.losses import dice_ce
from semiseg.methods import Supervised
from semiseg.networks import UNet

DATA = ("--data", "Synthetic", "--data.num_cases", "10", "--data.size", "[16,16]")


def tiny_network(in_channels: int, num_classes: int, spatial_dims: int) -> UNet:
    return UNet(in_channels, num_classes, spatial_dims, widths=(4, 8), dropout=(0, 0))


def batch(size: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "labeled": {
            "image": torch.randn(size, 1, 16, 16, generator=generator),
            "mask": torch.randint(0, 2, (size, 16, 16), generator=generator),
            "case": ["a", "b"],
        }
    }


def test_step_is_the_loss_of_the_network_on_the_labeled_images(monkeypatch) -> None:
    method = Supervised(network=tiny_network, in_channels=1)
    logged: dict = {}
    monkeypatch.setattr(method, "log_dict", logged.update)
    data = batch()
    loss = method.training_step(data, 0)
    torch.testing.assert_close(loss, dice_ce(method.network(data["labeled"]["image"]), data["labeled"]["mask"]))
    assert logged.keys() == {"train/loss", "train/loss_supervised"}
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.network.head.parameters())


def test_the_loss_option_is_the_loss() -> None:
    data = batch()["labeled"]
    values = {}
    for name in ("dice_ce", "dice", "ce"):
        torch.manual_seed(0)
        method = Supervised(network=tiny_network, in_channels=1, loss=name)
        values[name] = method.supervised_loss(method.network(data["image"]), data["mask"])
    torch.testing.assert_close(values["dice_ce"], (values["dice"] + values["ce"]) / 2)
    assert not torch.isclose(values["dice"], values["ce"])


def test_initial_weights_are_used_and_not_needed_again(fit, tmp_path: Path) -> None:
    first = fit(*DATA)
    stage1 = tmp_path / "stage1.ckpt"
    (first / "checkpoints" / "last.ckpt").rename(stage1)
    pretrained = torch.load(stage1, weights_only=True)["state_dict"]
    second = fit(
        *DATA, "--experiment", "second", "--model.network.weights", str(stage1), "--model.optimizer.lr", "1e-30",
        "--model.optimizer.weight_decay", "0",
    )  # fmt: skip
    stage1.unlink()
    content = torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)
    learnt = [key for key in pretrained if "running" not in key and "tracked" not in key]
    assert learnt
    assert all(torch.equal(content["state_dict"][key], pretrained[key]) for key in learnt)
    assert content["hyper_parameters"]["network"]["init_args"]["weights"] is None
    Supervised.load_from_checkpoint(second / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_are_those_of_tests_too(precision: str, fit) -> None:
    run = fit(
        "--data", "Synthetic", "--data.num_cases", "10", "--data.size", "[16,16]", "--trainer.precision", precision
    )
    assert main(["test", "--run", str(run)]) == 0
    assert main(["test", "--run", str(run), "--model.threshold", "validation"]) == 0
    assert {path.name for path in (run / "figures").glob("cases*")} == {"cases-test.png", "cases-threshold-test.png"}


def test_thresholds_and_pictures_are_made_in_the_precision_of_the_scores(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(*DATA, "--trainer.precision", "bf16-mixed")
    seen = []
    whole = Supervised.forward
    monkeypatch.setattr(
        Supervised, "forward", lambda self, image: seen.append(torch.is_autocast_enabled("cpu")) or whole(self, image)
    )
    assert main(["test", "--run", str(run), "--model.threshold", "validation"]) == 0
    assert seen == [True] * len(seen)
    assert len(seen) >= 3, "validation, test, pictures"
