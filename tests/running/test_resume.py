"""What a run goes on from must be its own: every other state of its files is named, in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.cli import main
from semiseg.methods import Supervised


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was stopped after two of its three validations."""
    from tests.running.conftest import TINY

    folder = tmp_path_factory.mktemp("half")
    original = Supervised.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Supervised, "training_step", lambda s, b, i: original(s, b, i) if i < 9 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(list(TINY))
    return folder


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        for key, change in changes.items():
            change(content) if callable(change) else content.update({key: change})
        torch.save(content, path)

    return edit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_out(path: Path) -> None:
    outside = Path("outside").absolute()
    shutil.move(path, outside)
    path.symlink_to(outside)


def deep(path: Path) -> None:
    path.write_text("[" * 30000)


def other_test_case(path: Path) -> None:
    split = json.loads(path.read_text())
    split["test"], split["validation"] = split["validation"], split["test"]
    path.write_text(json.dumps(split))


def other_image(path: Path) -> None:
    split = json.loads(path.read_text())
    case = split["labeled"][0]
    split["content"]["images"][case] = "0" * 32
    path.write_text(json.dumps(split))


def keeper(content: dict[str, Any]) -> dict[str, Any]:
    return content["callbacks"]["KeepBestAndLast"]


FILES = ("config.yaml", "split.json", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
STATES = [
    *((file, damage) for file in FILES for damage in (cut, emptied, fifo, link_out)),
    *((file, missing) for file in FILES[:-1]),  # without a last checkpoint a run begins
    *((file, deep) for file in ("config.yaml", "split.json", "status.json")),
    *(("status.json", damage) for damage in (cut, emptied, fifo, link_out)),
    ("split.json", other_test_case),
    ("split.json", other_image),
    ("checkpoints/last.ckpt", edited(optimizer_states=[])),
    ("checkpoints/last.ckpt", edited(lr_schedulers=[])),
    ("checkpoints/last.ckpt", edited(loops={})),
    ("checkpoints/last.ckpt", edited(loops={"fit_loop": 3})),
    ("checkpoints/last.ckpt", edited(callbacks={})),
    ("checkpoints/last.ckpt", edited(a=lambda c: keeper(c).clear())),
    ("checkpoints/last.ckpt", edited(a=lambda c: keeper(c).update(best_dice="x"))),
    ("checkpoints/last.ckpt", edited(a=lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"))),
    ("checkpoints/last.ckpt", edited(a=lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.ones(2)))),
    ("checkpoints/last.ckpt", edited(a=lambda c: c["hyper_parameters"].update(_class_path="evil.Method"))),
    ("checkpoints/last.ckpt", edited(global_step=10**9)),
]


@pytest.mark.parametrize(("file", "damage"), STATES)
def test_resume_names_what_is_wrong(half, tiny, run, file, damage, capsys):
    shutil.copytree(half / "runs", "runs")
    damage(run / file)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert Path(file).name in error
    if file != "checkpoints/best.ckpt":  # which is looked at once training begins
        free = ("status.json", "metrics.csv")  # which loses the rows of steps that are to be repeated
        kept = {path: content for path, content in before.items() if path.name not in free}
        assert {path: path.read_bytes() for path in kept} == kept


def test_resume_of_an_intact_run(half, tiny, run, capsys):
    shutil.copytree(half / "runs", "runs")
    (run / "figures" / ".semiseg-abcdvalidation.png").write_bytes(b"half a picture")
    assert main(tiny) == 0
    assert "going on from step 8" in capsys.readouterr().out
    assert not list(run.rglob(".semiseg-*"))


def test_status_that_is_missing_is_said(half, tiny, run, capsys):
    shutil.copytree(half / "runs", "runs")
    (run / "status.json").unlink()
    assert main(tiny) == 0
    assert "status.json is missing" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["config.yaml", "split.json", "."])  # others are written once more at the end
def test_what_is_removed_while_a_run_goes_on_is_noticed(tiny, run, file, monkeypatch, capsys):
    original = Supervised.training_step

    def step(self: Supervised, batch: Any, i: int) -> Any:
        if i == 11:
            shutil.rmtree(run) if file == "." else (run / file).unlink()
        return original(self, batch, i)

    monkeypatch.setattr(Supervised, "training_step", step)
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "missing" in error or "removed" in error
    assert file == "." or json.loads((run / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("file", FILES)
def test_done_means_that_everything_is_there(half, tiny, run, file, capsys):
    shutil.copytree(half / "runs", "runs")
    assert main(tiny) == 0
    (run / file).unlink()
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert Path(file).name in error


def test_test_of_a_run_that_was_trained_on_is_stale(half, tiny, run, capsys):
    shutil.copytree(half / "runs", "runs")
    assert main(["test", "--run", str(run)]) == 0
    assert main(["test", "--run", str(run), "--checkpoint", "last"]) == 0
    result = json.loads((run / "status.json").read_text())["test"]["last-native"]
    assert result["step"] == 8
    assert main(tiny) == 0
    capsys.readouterr()
    main(["report", "runs/default", "--output", "report"])
    text = "".join(capsys.readouterr())
    assert "tested at step 8" in text
    assert "semiseg test --run" in text


def test_data_set_of_the_same_name_does_not_share_a_run(tmp_path, monkeypatch, capsys):
    from semiseg.data.layouts import write_folder

    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write_folder(tmp_path / str(seed) / "mine", 12, 2, (32, 32), 2, seed=seed)
    network = ("--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]", "--trainer.accelerator", "cpu")
    fit = ["fit", "--data", "Folder", *network, "--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    assert main([*fit, "--data.root", "0/mine", "--data.image_size", "[32,32]"]) == 0
    run = Path("runs/default/mine/supervised/labeled-1/fold-0-seed-0")
    assert main(["test", "--run", str(run)]) == 0
    cases = (run / "cases.csv").read_bytes()
    for command in (
        [*fit, "--data.root", "1/mine", "--data.image_size", "[32,32]"],
        ["test", "--run", str(run), "--data.root", "1/mine"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "has another image than when the run began" in error
    assert (run / "cases.csv").read_bytes() == cases
