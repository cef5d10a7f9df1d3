"""Carries out the cells of a grid: what is left, in order, several at a time, what fails once more."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from semiseg.benchmark.cell import BUSY, carried_out, is_done, last_lines
from semiseg.benchmark.engines import Engine, why
from semiseg.benchmark.plan import Cell
from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.running.folder import RunFolder

ATTEMPTS = 2
PATIENCE = 5.0  # seconds between looks at cells that another grid is at work on
REMINDER = 300.0  # seconds between lines about such a cell


@dataclass
class Progress:
    """How far a grid is.

    Args:
        cells: all cells.
        waiting: cells to begin.
        running: cells at work, with the time at which they began.
        done: cells finished, now or before.
        failed: cells that failed twice, or whose first stage did, with the reason.
    """

    cells: Sequence[Cell]
    waiting: list[Cell] = field(default_factory=list)
    running: dict[Path, tuple[Cell, float]] = field(default_factory=dict)
    done: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)


def _status(cell: Cell) -> dict[str, Any]:
    """What a run says of itself; nothing where that cannot be read."""
    try:
        return RunFolder(cell.folder).status
    except UserError:
        return {}


def _number(values: Mapping[str, Any], key: str) -> float:
    """A number of at least 0 from a status; 0 where there is none."""
    value = values.get(key)
    return value if isinstance(value, int | float) and 0 < value < 1e15 else 0


def _is_done(cell: Cell) -> bool:
    """Whether a cell is done; one that cannot say is carried out, which says why."""
    try:
        return is_done(cell)
    except UserError:
        return False


def steps_made(cell: Cell) -> int:
    """Steps of a run at its last validation."""
    return int(_number(_status(cell), "step"))


class Driver:
    """Runs a grid on an engine.

    Args:
        cells: the cells, first stages before what starts from them.
        engine: what carries them out.
        tell: told one line at each event.
    """

    def __init__(self, cells: Sequence[Cell], engine: Engine, tell: Callable[[str], None]) -> None:
        self.engine = engine
        self.tell: Callable[[str], None] = lambda line: tell(printable(line))
        self.attempts: dict[Path, int] = defaultdict(int)
        self.not_before: dict[Path, float] = {}
        self.remind: dict[Path, float] = {}  # when to say that a cell is another's
        self.progress = Progress(cells)
        for cell in cells:
            try:
                if is_done(cell):
                    self.progress.done.add(cell.folder)
                else:
                    self.progress.waiting.append(cell)
            except UserError as error:  # a damaged status.json
                self.progress.failed[cell.folder] = str(error)

    def run(self, refresh: Callable[[Progress], None], seconds: float = 1.0) -> dict[Path, str]:
        """Carry out all cells; returns those that failed, with the reason.

        Args:
            refresh: called with the progress at least every so many seconds.
            seconds: those.
        """
        state = self.progress
        while state.waiting or state.running:
            self._start()
            refresh(state)
            if not state.running and state.waiting:
                self._give_up_what_cannot_begin()
                time.sleep(seconds)  # all that is left is being carried out by another grid
            for cell, code in self.engine.wait(seconds) if state.running else ():
                self._end(cell, code)
        refresh(state)
        return state.failed

    def _start(self) -> None:
        """Begin cells while there is room."""
        state = self.progress
        for cell in list(state.waiting):
            if len(state.running) >= self.engine.workers:
                return
            if cell.after in state.failed:
                state.waiting.remove(cell)
                state.failed[cell.folder] = f"its first stage failed: {cell.after}"
            elif _is_done(cell):  # by another grid
                state.waiting.remove(cell)
                state.done.add(cell.folder)
            elif self._may_begin(cell) and self.not_before.get(cell.folder, 0.0) <= time.monotonic():
                state.waiting.remove(cell)
                state.running[cell.folder] = cell, time.monotonic()
                self.engine.start(cell)

    def _may_begin(self, cell: Cell) -> bool:
        return cell.after is None or cell.after in self.progress.done

    def _give_up_what_cannot_begin(self) -> None:
        """Let cells fail that nothing is left to be waited for, however that came about."""
        state = self.progress
        if not any(self._may_begin(cell) for cell in state.waiting):
            for cell in state.waiting:
                state.failed[cell.folder] = f"waits for {cell.after}, which is neither done nor being carried out"
            state.waiting.clear()

    def _end(self, cell: Cell, code: int) -> None:
        """Note how a cell ended; let it be tried again where it failed or another process had it."""
        state = self.progress
        _, start = state.running.pop(cell.folder)
        minutes = (time.monotonic() - start) / 60
        if code == 0:
            state.done.add(cell.folder)
            self.tell(f"[{len(state.done)}/{len(state.cells)}] {cell.name}: {minutes:.1f} min{_result(cell)}")
        elif code == BUSY:
            now = time.monotonic()
            self.not_before[cell.folder] = now + PATIENCE
            state.waiting.append(cell)
            if now >= self.remind.setdefault(cell.folder, now + REMINDER):
                self.remind[cell.folder] = now + REMINDER
                self.tell(f"waiting for {cell.name}: another process is at work in {cell.folder}")
        else:
            self.attempts[cell.folder] += 1
            reason = "; ".join(filter(None, (last_lines(cell) if code > 0 else "", why(code))))
            if self.attempts[cell.folder] < ATTEMPTS:
                state.waiting.append(cell)
                self.tell(f"failed, will be tried again: {cell.name}: {reason}")
            else:
                state.failed[cell.folder] = reason
                self.tell(f"FAILED: {cell.name}: {reason}; its output is in {cell.folder}/log.txt")


def _result(cell: Cell) -> str:
    """The validation score that a run reached, if it has one."""
    status = _status(cell)
    return f", val/dice {_number(status, 'best_val_dice'):.4f}" if status.get("best_val_dice") is not None else ""


def step_seconds(cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Measured seconds per step of finished cells, tests included: per (data set, method), and per (data set, "")."""
    measured = defaultdict(list)
    for cell in cells:
        status = _status(cell)
        seconds = max(_number(carried_out(status), "seconds"), _number(status, "seconds"))
        steps = _number(status, "step")
        if seconds and steps and carried_out(status).get("digest") == cell.digest:
            measured[cell.dataset, cell.method].append(seconds / steps)
            measured[cell.dataset, ""].append(seconds / steps)
    return {key: fmean(values) for key, values in measured.items()}


def minutes_left(cells: Sequence[Cell], measured: dict[tuple[str, str], float], workers: int) -> float | None:
    """Estimate of the time that what is left of some cells takes; None where nothing like them was measured."""
    total = 0.0
    for cell in cells:
        pace = measured.get((cell.dataset, cell.method)) or measured.get((cell.dataset, ""))
        if pace is None and cell.steps:
            return None
        total += (pace or 0.0) * max(0, cell.steps - steps_made(cell))
    return total / 60 / max(1, workers)
