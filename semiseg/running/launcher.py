"""Start the other processes of a run on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from semiseg.errors import UserError
from semiseg.running.processes import Watch


class Launcher(_SubprocessScriptLauncher):
    """Starts `python -m semiseg` with the same arguments for each further device, and has them watched.

    Lightning starts `sys.argv` again, which need not be `fit`, and ends all processes by force, without a word, once
    one of them has failed.

    Args:
        launcher: Lightning's, which this one replaces.
        args: arguments of the command line.
        watch: stops this process with those that it starts.
    """

    def __init__(self, launcher: _SubprocessScriptLauncher, args: Sequence[str], watch: Watch) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self.args = args
        self.watch = watch

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, then call the function, which is to train."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ.update(
                MASTER_ADDR=environment.main_address,
                MASTER_PORT=str(environment.main_port),
                NODE_RANK=str(environment.node_rank()),
                LOCAL_RANK=str(environment.local_rank()),
                WORLD_SIZE=str(self.num_processes * self.num_nodes),
            )
            command = [sys.executable, "-m", "semiseg", *self.args]
            for rank in range(1, self.num_processes):
                self.procs.append(subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}))
            self.watch.children = self.procs
        return function(*args, **kwargs)


def replace_launcher(trainer: Trainer, args: Sequence[str], watch: Watch) -> None:
    """Let a trainer that starts processes of its own do so by `Launcher`.

    Raises:
        UserError: its strategy forks processes, which cannot be resumed or watched, or there are too many.
    """
    launcher = trainer.strategy.launcher
    most = max(os.cpu_count() or 1, 8)  # Lightning knows how many GPUs there are, but takes any number of processors
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(f"--trainer.devices {trainer.num_devices}: use 1 to {most} processes on the processors here")
    if isinstance(launcher, _MultiProcessingLauncher):
        raise UserError("--trainer.strategy: spawned and forked processes are not supported; use ddp")
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = Launcher(launcher, args, watch)
