"""A run folder: done, other options, two processes, failures, accumulation."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from kills import CONTEXT

from semiseg.cli import main
from semiseg.methods import Supervised
from semiseg.report.runs import read_runs
from semiseg.running.folder import RunFolder


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_same_command_again_is_done_already(tiny, run, capsys, monkeypatch):
    assert main(tiny) == 0
    assert status(run)["state"] == "done"
    assert steps(run) == list(range(12))
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.ckpt")}
    capsys.readouterr()
    monkeypatch.setattr(Supervised, "training_step", lambda *args: pytest.fail("trained"))
    assert main(tiny) == 0
    assert "done already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.ckpt")} == before
    assert main([*tiny, "--model.optimizer.lr", "0.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model.optimizer.lr" in error
    assert status(run)["state"] == "done"


def test_failure_is_in_the_status_and_the_run_goes_on(tiny, run, monkeypatch, capsys):
    original = Supervised.training_step
    monkeypatch.setattr(
        Supervised, "training_step",
        lambda self, batch, i: original(self, batch, i) if i < 6 else 1 / 0,
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        main(tiny)
    assert status(run)["state"] == "failed"
    assert "ZeroDivisionError" in status(run)["error"]
    assert status(run)["step"] == 4
    monkeypatch.setattr(Supervised, "training_step", lambda self, batch, i: original(self, batch, i) * torch.nan)
    assert main(tiny) == 2
    assert "loss is not a number at step 5" in status(run)["error"]

    def interrupt(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Supervised, "training_step", interrupt)
    assert main(tiny) == 130
    assert status(run)["state"] == "failed"
    assert status(run)["error"].startswith("interrupted;")
    monkeypatch.setattr(Supervised, "training_step", original)
    assert main(tiny) == 0
    assert (status(run)["state"], status(run)["error"], status(run)["step"]) == ("done", None, 12)
    assert steps(run) == list(range(12))


def _hold(path: str, ready: object, leave: object) -> None:
    folder = RunFolder(Path(path))
    folder.open()
    ready.set()  # type: ignore[attr-defined]
    leave.wait(60)  # type: ignore[attr-defined]


def test_two_processes_in_one_folder(tiny, run, capsys):
    ready, leave = CONTEXT.Event(), CONTEXT.Event()
    other = CONTEXT.Process(target=_hold, args=(str(run.absolute()), ready, leave))
    other.start()
    assert ready.wait(60)
    assert main(tiny) == 2
    assert "another process" in capsys.readouterr().err
    assert not (run / "status.json").exists()
    leave.set()
    other.join()
    folder = RunFolder(run)
    folder.open()
    folder.close()


def test_accumulated_gradients_keep_budget_and_interval_in_steps(tiny, run, monkeypatch):
    seen = []
    original = Supervised.training_step

    def step(self, batch, i):
        seen.append((i, batch["labeled"]["case"], torch.rand(()).item()))
        if len(seen) == 12:
            raise ZeroDivisionError
        return original(self, batch, i)

    monkeypatch.setattr(Supervised, "training_step", step)
    arguments = [*tiny, "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "8"]
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert status(run)["step"] == 4
    assert main(arguments) == 0
    assert [i for i, _, _ in seen] == [*range(12), *range(8, 16)]
    assert seen[8:11] == seen[12:15]  # the same cases and the same noise again
    assert len({noise for _, _, noise in seen}) == 16
    assert status(run)["step"] == 8


def test_other_budgets_are_refused(tiny, capsys):
    assert main([*tiny, "--trainer.max_epochs", "1"]) == 2
    assert "max_steps" in capsys.readouterr().err


def test_a_checkpoint_is_bound_to_its_number_of_processes(tiny, run, monkeypatch, capsys):
    original = Supervised.training_step
    monkeypatch.setattr(Supervised, "training_step", lambda s, b, i: original(s, b, i) if i < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(tiny)
    last = run / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["callbacks"]["KeepBestAndLast"]["processes"] = 2
    torch.save(content, last)
    assert main(tiny) == 2
    assert "--trainer.devices 2" in capsys.readouterr().err


def test_a_test_with_other_options_is_kept_apart_and_one_of_another_split_is_refused(tiny, run, capsys, monkeypatch):
    logged = []
    monkeypatch.setattr("semiseg.running.lightning_cli.wandb_logger", lambda *names: (logged.append(names), ""))
    assert main(tiny) == 0
    test = ["test", "--run", str(run)]
    assert main(test) == 0
    tests, cases = status(run)["test"], (run / "cases.csv").read_text()
    (found,) = read_runs(Path("runs"))[0]
    assert list(found.tables) == ["best-native"]
    capsys.readouterr()

    logged.clear()
    assert main([*test, "--trainer.precision", "bf16-mixed", "--data.num_workers", "0"]) == 0
    assert "no report takes these scores" in capsys.readouterr().out
    assert not logged, "they are not the run's on W&B either"
    assert status(run)["test"].keys() == {"best-native", "best-native+trainer.precision=bf16_mixed"}
    assert status(run)["test"]["best-native"] == tests["best-native"]
    assert (run / "cases.csv").read_text() == cases
    assert (run / "cases+trainer.precision=bf16_mixed.csv").exists()
    (found,) = read_runs(Path("runs"))[0]
    assert list(found.tables) == ["best-native"]

    for command in ("test", "validate"):
        assert main([command, "--run", str(run), "--data.fold", "1"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "the split was" in error
        assert "semiseg predict" in error
    assert (run / "cases.csv").read_text() == cases, "images that it was trained on are no test"
