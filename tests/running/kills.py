"""Real `kill -9` at chosen moments of a run, in processes forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["semiseg.cli", "semiseg.running.lightning_cli", "monai.inferers", "torch._dynamo"])


def run_and_kill(args: list[str], moment: str | None, count: int = 1) -> int | None:
    """Run the command line in a process of its own, killed at the `count`-th `moment`; returns its exit code."""
    process = CONTEXT.Process(target=_run, args=(args, moment, count))
    process.start()
    process.join(120)
    return process.exitcode


def _run(args: list[str], moment: str | None, count: int) -> None:
    from semiseg.cli import main

    if moment is not None:
        _plant(moment, count)
    raise SystemExit(main(args))


def _plant(moment: str, count: int) -> None:
    """Let the process kill itself at a moment."""
    import torch

    from semiseg.methods import Supervised
    from semiseg.running import callbacks, checkpoints, loggers
    from semiseg.running.folder import RunFolder

    left = [count]

    def die() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            die()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    def half_a_file(content: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        file.flush()
        die()
        file.seek(0)
        original_save(content, file)

    original_save = torch.save
    if moment == "step":
        before(callbacks.SeedEachStep, "on_train_batch_start")
    elif moment == "validation":
        before(Supervised, "validation_step")
    elif moment == "writing a checkpoint":  # 1: best of the first validation, 2: its last, ...
        checkpoints.torch.save = half_a_file  # type: ignore[attr-defined]
    elif moment == "between best and last":
        before(checkpoints.KeepBestAndLast, "_save_last")
    elif moment == "between last and status":
        before(checkpoints.KeepBestAndLast, "progress")
    elif moment == "writing metrics":
        before(loggers.MetricsCSV, "save")
    elif moment == "opening the folder":
        before(RunFolder, "adopt_split")
    else:
        raise ValueError(moment)
