"""`semiseg benchmark GRID.yaml`: carry out a grid of runs, or print its plan."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from semiseg.benchmark.cell import is_done
from semiseg.benchmark.driver import Driver, Progress, minutes_left, step_seconds, steps_made
from semiseg.benchmark.engines import Engine, LocalEngine, Share, make_engine
from semiseg.benchmark.grid import check_option, read_grid
from semiseg.benchmark.options import check_options
from semiseg.benchmark.plan import Cell, Plan, pairs
from semiseg.data import SegmentationDataModule
from semiseg.data.command import data_parser
from semiseg.data.splits import make_split
from semiseg.errors import OneLineParser, UserError, check_number
from semiseg.escaping import printable
from semiseg.files import import_from_here
from semiseg.running.configs import find_configs

EPILOG = (
    "Further options, such as --trainer.max_steps 100, go to every run of a method, --data ones to first stages too. "
    "The same command goes on where it stopped."
)


def benchmark_command(args: Sequence[str]) -> int:
    """Carry out the command; returns 0 if every cell is done, else 1."""
    parser = OneLineParser(
        "semiseg benchmark", description="Carry out a grid of runs.", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="such as configs/benchmark/quick_glas.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate of its time")
    parser.add_argument(
        "--measure", type=int, metavar="STEPS", help="with --dry-run: train so long first, for the estimate"
    )
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder that holds all runs")
    parser.add_argument("--data_dir", type=Path, help="folder that holds the data sets' folders; default: data")
    parser.add_argument("--workers", type=int, help="runs at a time; default: as many as cores or GPUs suffice for")
    parser.add_argument("--cpus", type=int, default=1, help="cores per run")
    parser.add_argument(
        "--gpus", type=float, default=float(torch.cuda.is_available()), help="GPUs per run; 0.5: two share one"
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    parser.add_argument("--local", action="store_true", help="processes of this machine, even if Ray is installed")
    options, extra = parser.parse_known_args(args)
    for name, least, most in (("workers", 1, 10_000), ("cpus", 1, 1000), ("gpus", 0, 1000), ("measure", 1, 100_000)):
        if (value := getattr(options, name)) is not None:
            check_number(f"--{name}", value, least, most)
    if 0 < options.gpus < 0.01 or (options.gpus > 1 and not options.gpus.is_integer()):
        raise UserError(f"--gpus {options.gpus:g}: use a whole number, or a share of one from 0.01")
    if options.local and options.address:
        raise UserError("--address is of a Ray cluster, and --local means processes of this machine; leave one out")
    if options.measure is not None and not options.dry_run:
        raise UserError("--measure goes with --dry-run")
    extra = [part for argument in extra for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])]
    if len(extra) % 2 or not all(name.startswith("--") for name, _ in pairs(extra)):
        raise UserError(f"semiseg benchmark: {' '.join(extra)}: write options of the runs as --trainer.max_steps 100")
    extra = [
        part for name, value in pairs(extra) for part in (f"--{check_option('semiseg benchmark', name[2:])}", value)
    ]
    start = time.monotonic()
    import_from_here()
    plan = Plan(read_grid(options.grid), options.runs_dir, options.data_dir, extra)
    cells = _cells(plan)
    check_options({cell.method: cell.arguments for cell in reversed(cells) if not cell.controls})
    processes = max((cell.processes for cell in cells), default=1)
    share = Share(options.cpus, max(options.gpus, processes) if options.gpus else 0.0, processes)
    if options.dry_run:
        measured = _measure(cells, share, options.measure)
        _print_plan(cells, options.workers or LocalEngine(None, share).workers, measured)
        return 0
    _check_writable(plan.runs_dir / plan.grid.experiment)
    engine: Engine
    if options.local:
        engine = LocalEngine(options.workers, share)
    else:
        engine = make_engine(options.address, options.workers, share)
    return _run(cells, engine, plan, start)


def _warn_of_too_few_cores(engine: Engine, share: Share) -> None:
    """Say that the runs wait for each other, where there are more than this machine has cores for."""
    if isinstance(engine, LocalEngine) and engine.workers * share.cpus > (cores := len(os.sched_getaffinity(0))):
        print(f"{engine.workers} runs with {share.cpus} cores each on {cores} cores wait for each other: lower --cpus")


def _check_writable(folder: Path) -> None:
    """Complain once, not for every cell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another place with --runs_dir DIR") from error


def _cells(plan: Plan) -> list[Cell]:
    """The cells, after a look at each data set, so that its problems show before the first run."""
    sets: list[SegmentationDataModule] = []
    for entry in plan.grid.data:
        parser = data_parser("semiseg benchmark")
        options = parser.parse_args(find_configs(list(plan.data_arguments(entry))))
        sets.append(parser.instantiate(options).data)
    names = [data.dataset_name for data in sets]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"the grid has the data set {twice[0]} twice; make two grids of it, each with its experiment")

    @cache
    def labeled(i: int, fold: int, label: float | None) -> int:
        data, counts = sets[i], plan.grid.counts
        split = make_split(
            data.cases, mode=data.split_mode, num_folds=data.num_folds, fold=fold, seed=data.split_seed,
            **({} if label is None else {"labeled_count": int(label)} if counts else {"labeled_fraction": label}),
        )  # fmt: skip
        return len(split.labeled)

    return plan.cells(names, labeled)


def _run(cells: list[Cell], engine: Engine, plan: Plan, start: float) -> int:
    """Carry out what is left, showing how far it is."""
    _warn_of_too_few_cores(engine, engine.share)
    console = Console()
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    driver = Driver(cells, engine, partial(console.print, markup=False) if live else partial(print, flush=True))
    before = len(driver.progress.done)
    print(f"{len(cells)} cells, {before} done before; {engine.workers} at a time", flush=True)
    try:
        if live:
            with live:
                failed = driver.run(lambda state: live.update(_table(state, engine.workers), refresh=True))
        else:
            failed = driver.run(_TellTimeLeft(engine.workers))
    finally:
        engine.close()
    console.print(_table(driver.progress, engine.workers))
    folder = plan.runs_dir / plan.grid.experiment
    print(f"{len(driver.progress.done)} of {len(cells)} cells done, {(time.monotonic() - start) / 60:.1f} min")
    for path, reason in failed.items():
        print(printable(f"failed: {path}: {reason}"))
    print(f"next: semiseg report {folder} --output {folder}/report")
    return 1 if failed else 0


class _TellTimeLeft:
    """Says every few minutes how much time is left, where there is no terminal for a live table."""

    def __init__(self, workers: int, every: float = 300.0) -> None:
        self.workers = workers
        self.every = every
        self.told = time.monotonic()

    def __call__(self, state: Progress) -> None:
        """Print a line if it is time."""
        if time.monotonic() - self.told > self.every:
            self.told = time.monotonic()
            print(f"{len(state.done)} of {len(state.cells)} done; {_time_left(state, self.workers)}", flush=True)


def _time_left(state: Progress, workers: int) -> str:
    """Estimate from the cells that are done."""
    left = [*state.waiting, *(cell for cell, _ in state.running.values())]
    minutes = minutes_left(left, step_seconds(state.cells), workers)
    return "time left not known yet" if minutes is None else f"about {_minutes(minutes)} left"


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _table(state: Progress, workers: int) -> Table:
    """Progress by data set and method, the running ones with step, speed and time left."""
    table = Table(title=f"{len(state.done)} of {len(state.cells)} cells, {_time_left(state, workers)}")
    for column in ("data set", "method", "done", "failed", "running"):
        table.add_column(column, justify="right" if column in ("done", "failed") else "left", overflow="fold")
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in state.cells:
        groups[cell.dataset, cell.method].append(cell)
    for (dataset, method), cells in groups.items():
        done = sum(cell.folder in state.done for cell in cells)
        failed = sum(cell.folder in state.failed for cell in cells)
        running = [_running(state, cell) for cell in cells if cell.folder in state.running]
        table.add_row(_plain(dataset), _plain(method), f"{done}/{len(cells)}", str(failed or ""), "\n".join(running))
    return table


def _plain(name: str) -> str:
    """A name that neither a terminal nor Rich takes for more than its letters."""
    return escape(printable(name))


def _running(state: Progress, cell: Cell) -> str:
    """Where a run is."""
    minutes = (time.monotonic() - state.running[cell.folder][1]) / 60
    step = steps_made(cell)
    run = "/".join(cell.folder.parts[-2:])
    return f"{run}: step {step}/{cell.steps}, {minutes:.1f} min" if cell.steps else f"{run}: {minutes:.1f} min"


def _measure(cells: list[Cell], share: Share, steps: int | None) -> dict[tuple[str, str], float]:
    """Seconds per step of each method on each data set, from the cells that are done or from a few steps now."""
    measured = step_seconds(cells)
    if steps is None:
        return measured
    short = ("--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps), "--labeled_epochs", "null")
    with tempfile.TemporaryDirectory() as folder:
        trials: dict[tuple[str, str], Cell] = {}
        for cell in cells:
            if cell.after is None and not cell.controls and (cell.dataset, cell.method) not in measured:
                place = Path(folder, *cell.folder.parts[-5:])
                arguments = (*cell.arguments, *short, "--runs_dir", folder)
                trial = Cell(place, arguments, {}, steps, cell.digest, processes=cell.processes)
                trials.setdefault((cell.dataset, cell.method), trial)
        with contextlib.closing(LocalEngine(1, share)) as engine:
            failed = Driver(list(trials.values()), engine, print).run(lambda state: None)
        if failed:
            raise UserError(f"a run of {steps} steps failed: {next(iter(failed.values()))}")
        return {**measured, **step_seconds(list(trials.values()))}


def _print_plan(cells: list[Cell], workers: int, measured: dict[tuple[str, str], float]) -> None:
    """The cells by data set and method, with their steps and time."""
    done = {cell.folder for cell in cells if is_done(cell)}
    table = Table(title=f"{len(cells)} cells, {len(done)} done")
    for column in ("data set", "method", "cells", "left", "steps each", "minutes each"):
        table.add_column(column, justify="left" if column in ("data set", "method") else "right", overflow="fold")
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.dataset, cell.method].append(cell)
    for (dataset, method), group in groups.items():
        left = [cell for cell in group if cell.folder not in done]
        steps = sorted({cell.steps for cell in group})
        span = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        pace = measured.get((dataset, method)) or measured.get((dataset, ""))
        each = "?" if pace is None and steps[-1] else f"{(pace or 0) * sum(steps) / len(steps) / 60:.1f}"
        table.add_row(_plain(dataset), _plain(method), str(len(group)), str(len(left)), span, each)
    Console().print(table)
    total = minutes_left([cell for cell in cells if cell.folder not in done], measured, workers)
    if total is None:
        print("nothing was measured yet: --dry-run --measure 20 trains each method for 20 steps to estimate the time")
    else:
        print(f"about {_minutes(total)} with {workers} at a time, from measured step times")
