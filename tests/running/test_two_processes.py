"""Two processes on the CPU: the same batches as one with twice the batch size, each case scored once, one writer."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Notes what each process sees, and how it ends.
METHOD = """
import json
from pathlib import Path
import torch
from semiseg.methods import Supervised

class Noting(Supervised):
    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("of_process", torch.zeros(()))  # as batch normalisation's statistics

    def training_step(self, batch, batch_idx):
        images = batch["labeled"]["image"].double().sum((1, 2, 3)).tolist()
        note = {"step": batch_idx, "cases": batch["labeled"]["case"], "images": images, "noise": torch.rand(()).item()}
        with Path(f"seen-{self.trainer.world_size}-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\\n")
        self.of_process.fill_(self.global_rank)
        return super().training_step(batch, batch_idx)

    def on_train_end(self):
        summary = {**self.cases.summary(), "buffer": float(self.of_process)}
        Path(f"scored-{self.trainer.world_size}-{self.global_rank}.json").write_text(json.dumps(summary))
"""


def seen(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_two_processes_equal_one_with_twice_the_batch(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "noting.py").write_text(METHOD)
    options = (
        "--model",
        "noting.Noting",
        *tiny[1:],
        "--model.network.norm",
        "instance",
        "--trainer.precision",
        "64-true",
    )
    options += (
        "--model.network.dropout",
        "[0,0]",
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.lr",
        "0.1",
    )
    both = (*options, "--trainer.max_steps", "4", "--trainer.val_check_interval", "2")
    ddp = ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.broadcast_buffers", "false")
    ddp += ("--trainer.devices", "2", "--data.batch_size", "1", "--experiment", "two")
    environment = {**os.environ, "WANDB_MODE": "offline"}
    script = Path(sys.executable).with_name("semiseg")  # the installed command finds noting.py here all the same
    command = [str(script)] if script.exists() else [sys.executable, "-m", "semiseg"]
    command += ["fit", *both, *ddp]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == done.stdout.count("9 labeled") == 1
    run = Path("runs/two/synthetic2d/noting/labeled-1/fold-0-seed-0")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert json.loads((run / "status.json").read_text())["state"] == "done"

    monkeypatch.syspath_prepend(tmp_path)
    from semiseg.cli import main

    assert main(["fit", *both, "--data.batch_size", "2", "--experiment", "one"]) == 0
    first, second, alone = (seen(f"seen-{name}.jsonl") for name in ("2-0", "2-1", "1-0"))
    assert len(first) == len(second) == len(alone) == 4
    for a, b, one in zip(first, second, alone, strict=True):
        assert a["cases"] + b["cases"] == one["cases"]
        assert a["images"] + b["images"] == pytest.approx(one["images"])
        assert len({a["noise"], b["noise"], one["noise"]}) == 3, "plain draws are each process's own"
    scores = [json.loads(Path(f"scored-{name}.json").read_text()) for name in ("2-0", "2-1", "1-0")]
    assert scores[0]["num_cases"] == 3  # odd: one case is scored by both processes
    assert scores[0] == scores[1] == pytest.approx(scores[2], rel=1e-9)
    tables = [Path("runs", n, *run.parts[2:], "metrics.csv").read_text().splitlines() for n in ("one", "two")]
    for column, count in (("val/dice", 2), ("train/loss", 4), ("train/loss_supervised", 4)):
        one, two = ([float(row[column]) for row in csv.DictReader(table) if row[column]] for table in tables)
        assert two == pytest.approx(one, rel=1e-9), "the mean over both processes is logged"
        assert len(one) == count
    weights = [torch.load(p, weights_only=True)["state_dict"] for p in Path("runs").rglob("last.ckpt")]
    for state in weights:
        state.pop("of_process")
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)
    assert main(["test", "--run", str(run), "--trust", "noting"]) == 0
    assert json.loads((run / "status.json").read_text())["test"]["best-native"]["num_cases"] == 3


EVERY_METHOD = """
import os
import sys
from pathlib import Path
from semiseg.cli import main
from semiseg.running.configs import config_folder

for path in sorted((config_folder() / "method").glob("*.yaml")):
    own = ["--config", str(path), "--experiment", path.stem]
    assert main(["fit", *own, *sys.argv[1:], "--data.labeled_fraction", "0.5"]) == 0, path.stem
    Path(f"trained-{path.stem}-{os.environ['RANK']}").touch()
"""


def test_every_method_trains_on_two_processes(tiny, tmp_path: Path):
    (tmp_path / "every.py").write_text(EVERY_METHOD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "every.py"]
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "1"]
    tiny = [*tiny, "--model.network.widths", "[4,4,8]", "--model.network.dropout", "[0,0,0]"]
    budget = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [*launch, *tiny[1:], *ddp, *budget], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    files = list((Path(__file__).parents[2] / "configs/method").glob("*.yaml"))
    assert len(list(Path().glob("trained-*-[01]"))) == 2 * len(files)
