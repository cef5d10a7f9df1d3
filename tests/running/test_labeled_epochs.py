"""The papers' budget: passes over the labeled images instead of a number of steps."""

import csv
import json
from pathlib import Path

import pytest

from semiseg.cli import main

TINY = ("--model.network.widths", "[4,4,8]", "--model.network.dropout", "[0,0,0]", "--trainer.accelerator", "cpu")


def options(tmp_path: Path, fraction: str) -> list[str]:
    data = [
        "--data",
        "Synthetic",
        "--data.root",
        str(tmp_path / "data"),
        "--data.num_cases",
        "10",
        "--data.size",
        "[32,32]",
    ]
    return [
        *data,
        "--data.batch_size",
        "2",
        "--data.labeled_fraction",
        fraction,
        "--runs_dir",
        str(tmp_path / "runs"),
        *TINY,
    ]


@pytest.mark.parametrize(("fraction", "steps"), [("0.1", 3), ("0.5", 2 * 3), ("1", 3 * 3)])  # 1, 3 and 6 labeled images
def test_steps_follow_from_labeled_images(fraction: str, steps: int, tmp_path: Path) -> None:
    assert main(["fit", *options(tmp_path, fraction), "--labeled_epochs", "3", "--trainer.max_steps", "77"]) == 0
    (status,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("status.json"))
    assert status["step"] == steps
    assert status["state"] == "done"


def test_the_published_protocol(tmp_path: Path) -> None:
    protocol = [
        "--config",
        "configs/protocol/published.yaml",
        "--labeled_epochs",
        "2",
        "--trainer.val_check_interval",
        "2",
    ]
    assert main(["fit", *protocol, *options(tmp_path, "0.5")]) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("status.json"))
    assert main(["test", "--run", str(run)]) == 0
    status = json.loads((run / "status.json").read_text())
    assert status["step"] == 2 * 2
    assert set(status["test"]) == {"best-network-threshold"}
    assert "torch.optim.SGD" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("steps", [["--trainer.max_steps", "3"], ["--trainer.max_steps=3"]])
def test_steps_given_beside_a_protocol_are_the_budget(steps: list[str], tmp_path: Path) -> None:
    assert main(["fit", "--config", "configs/protocol/published.yaml", *steps, *options(tmp_path, "0.5")]) == 0
    (status,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("status.json"))
    assert status["step"] == 3


@pytest.mark.parametrize("interval", ["2", "0.4"])
def test_validations_are_counted_in_optimiser_steps(interval: str, tmp_path: Path) -> None:
    """A share of the budget too, however many batches a step accumulates: a checkpoint lies between two steps."""
    steps = ["--trainer.max_steps", "5", "--trainer.accumulate_grad_batches", "3"]
    assert main(["fit", *options(tmp_path, "0.5"), *steps, "--trainer.val_check_interval", interval]) == 0
    (table,) = (tmp_path / "runs").rglob("metrics.csv")
    assert [int(row["step"]) for row in csv.DictReader(table.open()) if row["val/dice"]] == [1, 3]  # from 0


def test_a_run_keeps_to_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", *options(tmp_path, "0.5"), "--labeled_epochs", "2"]) == 0
    assert main(["fit", *options(tmp_path, "0.5"), "--labeled_epochs", "3"]) == 2
    assert "labeled_epochs 2, not 3" in capsys.readouterr().err
    assert main(["fit", *options(tmp_path, "0.5"), "--labeled_epochs", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
