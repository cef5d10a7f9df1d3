"""What carries cells out, several at a time: processes of this machine, or Ray, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol

import torch

from semiseg.benchmark.cell import run_cell
from semiseg.benchmark.plan import Cell
from semiseg.errors import UserError
from semiseg.files import import_from_here


@dataclass(frozen=True)
class Share:
    """What one run gets.

    Args:
        threads: processor cores of each of its processes.
        gpus: GPUs; 0.5 lets two runs share one.
        processes: processes of the run.
    """

    threads: int = 1
    gpus: float = 0.0
    processes: int = 1

    @property
    def cpus(self) -> int:
        """Processor cores of all its processes."""
        return self.threads * self.processes


class Engine(Protocol):
    """Carries out cells, each in a process of its own, so that a crash takes nothing else along."""

    workers: int
    share: Share

    def start(self, cell: Cell) -> None:
        """Begin a cell; at most `workers` at a time."""

    def wait(self, seconds: float) -> list[tuple[Cell, int]]:
        """Cells that ended, waiting for one for so long: with the exit code, negative for a signal that ended it."""

    def close(self) -> None:
        """Stop what is running; a run stopped so goes on from its last checkpoint."""


GRACE = 10.0  # seconds that a run has to stop by itself

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["semiseg.benchmark.cell", "semiseg.running.lightning_cli", "monai.inferers"])


def _start_process(cell: Cell, threads: int, gpus: str) -> Any:
    """A process for a cell, forked from one that has imported everything already.

    Args:
        cell: the cell.
        threads: processor threads that it may use.
        gpus: GPUs that it sees, as CUDA_VISIBLE_DEVICES has them.
    """
    process = CONTEXT.Process(target=_process, args=(cell, threads, gpus, os.getcwd()), name=cell.name)
    process.start()
    return process


def _process(cell: Cell, threads: int, gpus: str, folder: str) -> None:
    """The main function of that process, which leads a group of all processes that the cell starts."""
    os.setpgid(0, 0)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.chdir(folder)  # the process that it was forked from is where it was first started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import_from_here()
    sys.exit(run_cell(cell, threads))


def _end_with_parent() -> None:
    """End this process's group when the one that started it has ended, even by `kill -9`: nobody would wait for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _end_group(process: Any) -> None:
    """End a cell's process, if it still runs, and all that it started."""
    process.kill()
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


class LocalEngine:
    """Processes of this machine.

    Args:
        workers: runs at a time; default: as many as there are GPUs or cores for.
        share: what each gets.
    """

    def __init__(self, workers: int | None, share: Share) -> None:
        self.share = share
        self.places = _gpu_places(share.gpus) or [""] * max(1, len(os.sched_getaffinity(0)) // share.cpus)
        if workers is not None:
            self.places = [self.places[i % len(self.places)] for i in range(workers)]
        self.workers = len(self.places)
        self.running: dict[Any, tuple[Any, Cell, str]] = {}

    def start(self, cell: Cell) -> None:
        """Start a process for a cell."""
        place = self.places.pop()
        process = _start_process(cell, self.share.threads, place)
        self.running[process.sentinel] = (process, cell, place)

    def wait(self, seconds: float) -> list[tuple[Cell, int]]:
        """Processes that ended."""
        ended = []
        for sentinel in connection.wait(list(self.running), seconds):
            process, cell, place = self.running.pop(sentinel)
            process.join()
            _end_group(process)
            self.places.append(place)
            ended.append((cell, process.exitcode))
        return ended

    def close(self) -> None:
        """End all processes, those that do not listen after some seconds by force."""
        processes = [process for process, _, _ in self.running.values()]
        for process in processes:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        for process in processes:
            _end_group(process)
        self.running.clear()


def _gpu_places(gpus: float) -> list[str]:
    """For each run that the GPUs here can take at a time, those that it sees."""
    if not gpus:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(devices) < gpus:
        raise UserError(f"--gpus {gpus:g}: this machine has {len(devices)}; use --gpus 0, or --address of a cluster")
    if gpus < 1:
        return devices * int(1 / gpus)
    each = int(gpus)
    return [",".join(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]


class RayEngine:
    """Ray: embedded in this process, or a cluster at an address.

    All machines need this package and must see the runs and the data under the same paths.

    Args:
        address: of the cluster, as `ray.init` takes it, or None.
        workers: runs at a time; default: as many as the cluster's cores and GPUs suffice for.
        share: what each gets.
    """

    def __init__(self, address: str | None, workers: int | None, share: Share) -> None:
        import ray

        self.ray = ray
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        here = {} if address else {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
        except (ConnectionError, ValueError, RuntimeError) as error:
            way = (
                f"--address {address}: {error}; `ray start --head` prints it"
                if address
                else f"Ray: {error}; use --local"
            )
            raise UserError(way) from error
        total = ray.cluster_resources()
        room = int(total.get("CPU", 0) // share.cpus)
        room = min(room, int(total.get("GPU", 0) / share.gpus)) if share.gpus else room
        if not room:
            raise UserError(f"--cpus {share.cpus} --gpus {share.gpus:g}: the cluster has only {total}")
        self.workers = min(workers or room, room)
        remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0)
        self.task = remote(_run_on_ray)
        self.share = share
        self.running: dict[Any, Cell] = {}

    def start(self, cell: Cell) -> None:
        """Submit a task for a cell."""
        self.running[self.task.remote(cell, self.share, os.getcwd())] = cell

    def wait(self, seconds: float) -> list[tuple[Cell, int]]:
        """Tasks that ended."""
        done, _ = self.ray.wait(list(self.running), timeout=seconds)
        ended = []
        for task in done:
            try:
                code = self.ray.get(task)
            except self.ray.exceptions.RayTaskError as error:  # the machine lacks the package, the folder, ...
                print(f"{self.running[task].name}: {error.cause}", flush=True)
                code = 1
            except self.ray.exceptions.RayError:  # Ray's worker crashed, or Ray ended it for want of memory
                code = -signal.SIGKILL
            ended.append((self.running.pop(task), code))
        return ended

    def close(self) -> None:
        """Stop all tasks and leave the cluster."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()


def _run_on_ray(cell: Cell, share: Share, folder: str) -> int:
    """The task of a cell, on whichever machine: a process of its own too, so that imports are made once per worker."""
    os.chdir(folder)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if share.gpus else ""
    process = _start_process(cell, share.threads, gpus)
    process.join()
    code = int(process.exitcode)
    _end_group(process)
    return code


def make_engine(address: str | None, workers: int | None, share: Share) -> Engine:
    """Ray where it is installed, else local processes, with a line that says so.

    Raises:
        UserError: an address is given but Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        if address:
            raise UserError("--address needs Ray: pip install 'semiseg[ray]'") from None
        print("Ray is not installed (pip install 'semiseg[ray]'): running in processes of this machine", flush=True)
        return LocalEngine(workers, share)
    return RayEngine(address, workers, share)


def why(code: int) -> str:
    """What an exit code says that the log may not."""
    number = -code if code < 0 else code - 128  # as a shell has it
    if number in signal.valid_signals():
        hint = "; the system may have run out of memory" if number == signal.SIGKILL else ""
        return f"ended by {signal.Signals(number).name}{hint}"
    return f"exit code {code}"
