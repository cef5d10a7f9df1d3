"""One cell of a grid, carried out in a process of its own: train, test, or score the controls."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from semiseg.benchmark.plan import Cell
from semiseg.cli import main
from semiseg.data.command import data_parser
from semiseg.errors import UserError
from semiseg.evaluation.controls import score_controls
from semiseg.files import take_lock
from semiseg.running.configs import find_configs
from semiseg.running.folder import RunFolder, provenance
from semiseg.running.results import cases_name

BUSY = 75  # exit code: another process is at work on this cell
ATTEMPT = "--- attempt"  # begins each in the log


def is_done(cell: Cell) -> bool:
    """Whether a cell has been carried out as it is asked for now."""
    return RunFolder(cell.folder).status.get("cell", {}).get("digest") == cell.digest


def last_lines(cell: Cell, count: int = 3) -> str:
    """The end of a cell's last attempt: the complaint of the command line, or a traceback's last lines."""
    log = cell.folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(ATTEMPT)[2] if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaint = [line for line in lines if line.startswith("semiseg: error: ")]
    return complaint[-1].removeprefix("semiseg: error: ") if complaint else " | ".join(lines[-count:])


def run_cell(cell: Cell, threads: int) -> int:
    """Carry out a cell, its output in `log.txt` of the run folder; returns the exit code, `BUSY` included.

    What is finished of it is not redone: `fit` goes on from its last checkpoint or says that it is done.

    Args:
        cell: the cell.
        threads: processor threads that it may use.
    """
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of loader processes
    try:
        cell.folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(cell.folder / ".cell.lock")
        if lock is None:
            return BUSY
        with lock, _output_to(cell.folder / "log.txt"):
            print(f"{ATTEMPT} {time.strftime('%Y-%m-%dT%H:%M:%S%z')}", flush=True)
            return _carry_out(cell)
    except OSError as error:  # such as a full disk, which takes no log either
        print(f"semiseg: error: {cell.folder}: {error.strerror}", file=sys.stderr)
        return 2


def _carry_out(cell: Cell) -> int:
    """Carry out a cell and note that it is done."""
    start = time.monotonic()
    try:
        code = _score_controls(cell) if cell.controls else _fit_and_test(cell)
        if code == 0:
            seconds = round(time.monotonic() - start, 1)
            RunFolder(cell.folder).update_status(cell={"digest": cell.digest, "seconds": seconds})
        return code
    except UserError as error:
        print(f"semiseg: error: {error}", flush=True)
        return 2
    except Exception:
        traceback.print_exc()
        return 1


def _fit_and_test(cell: Cell) -> int:
    folder = RunFolder(cell.folder)
    before = folder.status.get("first_stage", cell.first_stage)
    if before != cell.first_stage and (folder.checkpoint("last").exists() or folder.status.get("state") == "done"):
        raise UserError(f"{cell.folder}: started from {cell.after} as it was before its options changed; delete it")
    folder.update_status(first_stage=cell.first_stage)
    if code := main(["fit", *cell.arguments]):
        return code
    if not cell.tests:  # a first stage: what is done already also ends here
        return 0
    for key, arguments in cell.tests.items():
        if key not in folder.status.get("test", {}) and (code := main(["test", "--run", str(cell.folder), *arguments])):
            return code
    return 0


def _score_controls(cell: Cell) -> int:
    """Score each control into a run folder of its own, beside those of the methods."""
    parser = data_parser("semiseg benchmark")
    text = parser.dump(parser.parse_args(find_configs(list(cell.arguments))))
    for key, place in cell.tests.items():
        data = parser.instantiate(parser.parse_args(find_configs([*cell.arguments, *place]))).data
        for name, table in score_controls(data).items():
            folder = RunFolder(cell.folder.parents[2] / name / Path(*cell.folder.parts[-2:]))
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.adopt(text, data.split_text())
            table.write_csv(folder.path / f"{cases_name(key)}.csv")
            tests = {**folder.status.get("test", {}), key: table.summary()}
            folder.update_status(state="done", control=True, test=tests, **provenance())
    return 0


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process and its children print to the end of a file."""
    with (
        path.open("a", buffering=1, encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
