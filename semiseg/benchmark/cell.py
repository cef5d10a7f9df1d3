"""One cell of a grid, carried out in a process of its own: train, test, or score the controls."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from semiseg.benchmark.grid import CONTROLS
from semiseg.benchmark.plan import Cell, pairs
from semiseg.cli import main
from semiseg.data.command import data_parser
from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.controls import score_controls
from semiseg.files import parse_yaml, read_yaml, take_lock
from semiseg.running.configs import find_configs
from semiseg.running.folder import RunFolder, provenance
from semiseg.running.results import cases_name, why_stale
from semiseg.trust import foreign_modules

BUSY = 75  # exit code: another process is at work on this cell
ATTEMPT = "--- attempt"  # begins each in the log
LOG_END = 2**20  # bytes of a log that are looked at


def is_done(cell: Cell) -> bool:
    """Whether a cell has been carried out as it is asked for now, and what it left is still there.

    Raises:
        UserError: its `status.json` is damaged.
    """
    status = RunFolder(cell.folder).status
    return carried_out(status).get("digest") == cell.digest and not _lacks(cell, status)


def carried_out(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a status says of the cell that carried the run out."""
    return _mapping(status.get("cell"))


def _mapping(value: Any) -> Mapping[str, Any]:
    """A value of a file, where it is a mapping."""
    return value if isinstance(value, Mapping) else {}


def _lacks(cell: Cell, status: Mapping[str, Any]) -> bool:
    """Whether a file of a cell is gone, or one of its tests has to be made."""
    if cell.controls:
        runs = [_control_folder(cell, name) for name in CONTROLS[1:]]
        return any(_must_test(run, run.status, key) for run in runs for key in cell.tests)
    folder = RunFolder(cell.folder)
    checkpoints = [folder.checkpoint(which) for which in (("best", "last") if cell.tests else ("last",))]
    files = (folder.config, folder.split, *checkpoints)
    return not all(file.is_file() for file in files) or any(_must_test(folder, status, key) for key in cell.tests)


def _must_test(folder: RunFolder, status: Mapping[str, Any], key: str) -> bool:
    """Whether a test has no result, one of another checkpoint, or no table that can be read."""
    if not isinstance(_mapping(status.get("test")).get(key), Mapping) or why_stale(folder, status, key):
        return True
    try:
        return not len(CaseTable.read_csv(folder.path / f"{cases_name(key)}.csv"))
    except (UserError, FileNotFoundError):
        return True


def last_lines(cell: Cell, count: int = 3) -> str:
    """The end of a cell's last attempt: the complaint of the command line, or a traceback's last lines."""
    log = cell.folder / "log.txt"
    text = ""
    with contextlib.suppress(OSError), _open_log(log, os.O_RDONLY) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_END))
        text = file.read().decode("utf-8", "replace").rpartition(ATTEMPT)[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaint = [line for line in lines if line.startswith("semiseg: error: ")]
    return printable(complaint[-1].removeprefix("semiseg: error: ") if complaint else " | ".join(lines[-count:]))


def _open_log(path: Path, flags: int) -> BinaryIO:
    """Open a regular file; a link, which may lead anywhere, and a FIFO, which may never end, are refused.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file; remove it", str(path))
    return os.fdopen(handle, "ab" if flags & os.O_APPEND else "rb")


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
    except (OSError, UserError) as error:  # such as a full disk, which takes no log either
        reason = f"{error.filename or cell.folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"semiseg: error: {reason}", file=sys.stderr)
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
    if code := _fit(cell):
        return code
    trusted = [part for module in _foreign_modules(cell) for part in ("--trust", module)]
    for key, arguments in cell.tests.items():  # a first stage has none
        due = _must_test(folder, folder.status, key)
        if due and (code := main(["test", "--run", str(cell.folder), *arguments, *trusted])):
            return code
    return 0


def _fit(cell: Cell) -> int:
    """Train; a run of several processes as a command of its own, which Lightning's launcher starts for each of them."""
    if cell.processes == 1 and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return main(["fit", *cell.arguments])
    process = subprocess.Popen([sys.executable, "-m", "semiseg", "fit", *cell.arguments], stdin=subprocess.DEVNULL)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code  # as a shell has it


def _foreign_modules(cell: Cell) -> list[str]:
    """Modules of the user's own that a cell's arguments name: the grid is trusted, what lies in the folder is not."""
    named = [
        read_yaml(Path(value)) if name == "--config" else {name.rpartition(".")[2].lstrip("-"): parse_yaml(value, name)}
        for name, value in pairs(find_configs(list(cell.arguments)))
    ]
    return foreign_modules(named)


def _control_folder(cell: Cell, name: str) -> RunFolder:
    """Run folder of a control, beside those of the methods."""
    return RunFolder(cell.folder.parents[2] / name / Path(*cell.folder.parts[-2:]))


def _score_controls(cell: Cell) -> int:
    """Score each control into a run folder of its own."""
    parser = data_parser("semiseg benchmark")
    text = parser.dump(parser.parse_args(find_configs(list(cell.arguments))))
    for key, place in cell.tests.items():
        data = parser.instantiate(parser.parse_args(find_configs([*cell.arguments, *place]))).data
        for name, table in score_controls(data).items():
            folder = _control_folder(cell, name)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.adopt(text, data.split_text())
            table.write_csv(folder.path / f"{cases_name(key)}.csv")
            folder.update_test(key, table.summary())
            folder.update_status(state="done", control=True, **provenance())
    return 0


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process and its children print to the end of a file."""
    with (
        io.TextIOWrapper(_open_log(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "utf-8", line_buffering=True) as file,
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
