"""Kill a short run ten times with SIGKILL at random moments, start it again each time, and compare how it ends.

`python -m tests.benchmarks.kill_resume [--kills 10] [--seed 0]`; takes some minutes, most of them importing.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

OPTIONS = (
    *("--data", "Synthetic", "--data.size", "[32,32]", "--data.num_cases", "15", "--trainer.accelerator", "cpu"),
    *("--model.network.widths", "[4,8]", "--model.network.dropout", "[0.1,0.1]", "--trainer.max_steps", "1610"),
    *("--trainer.val_check_interval", "20", "--trainer.log_every_n_steps", "1"),
)


def start(folder: Path, experiment: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment["SEMISEG_CACHE"] = str(folder / "cache")
    command = [sys.executable, "-m", "semiseg", "fit", *OPTIONS, "--experiment", experiment]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [folder / "runs" / e / "synthetic2d/supervised/labeled-1/fold-0-seed-0" for e in ("whole", "killed")]
        begin = time.monotonic()
        assert start(folder, "whole").wait() == 0
        whole = time.monotonic() - begin
        begin = time.monotonic()
        assert start(folder, "whole").wait() == 0  # done already
        startup = time.monotonic() - begin
        print(f"uninterrupted: {whole:.0f} s, of which {startup:.0f} s to start", flush=True)
        kills = 0
        while kills < options.kills:
            process = start(folder, "killed")
            delay = startup + draw.uniform(0, 3)
            try:
                if process.wait(delay) == 0:
                    break  # the end came first
                raise SystemExit("a restart failed")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            kills += 1
            last = runs[1] / "checkpoints/last.ckpt"
            step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
            print(f"kill {kills} after {delay:.1f} s: last checkpoint at step {step}", flush=True)
        assert start(folder, "killed").wait() == 0
        ends = [[torch.load(r / f"checkpoints/{n}.ckpt", weights_only=True) for r in runs] for n in ("best", "last")]
        metrics = [(run / "metrics.csv").read_text() for run in runs]
        left = len(list((runs[1] / "checkpoints").iterdir())) - 2
    equal = {"best.ckpt": same(*ends[0]), "last.ckpt": same(*ends[1]), "metrics.csv": metrics[0] == metrics[1]}
    print(f"{kills} kills; the same bit for bit: {equal}; files left behind: {left}")
    return int(not all(equal.values()) or left > 0)


if __name__ == "__main__":
    sys.exit(main())
