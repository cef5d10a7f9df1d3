"""What the driver does with cells that end, fail, wait or are carried out elsewhere; the engine only pretends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiseg.benchmark import driver as module
from semiseg.benchmark.cell import BUSY, is_done, last_lines
from semiseg.benchmark.driver import Driver, minutes_left, step_seconds
from semiseg.benchmark.plan import Cell
from semiseg.evaluation.cases import CaseTable
from semiseg.running.folder import RunFolder


def make_cell(root: Path, name: str, after: Path | None = None) -> Cell:
    return Cell(root / "data" / name / "labeled-1" / "fold-0-seed-0", ("--x", name), {}, 10, name, after)


def finish(cell: Cell, seconds: float = 30.0) -> None:
    (cell.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for file in ("config.yaml", "split.json", "checkpoints/last.ckpt"):
        (cell.folder / file).touch()
    RunFolder(cell.folder).update_status(cell={"digest": cell.digest, "seconds": seconds}, step=10)


class Pretending:
    """Ends each cell with the next of its exit codes, 0 if there is none left."""

    def __init__(self, workers: int = 2, **codes: list[int]) -> None:
        self.workers = workers
        self.codes = codes
        self.started: list[str] = []
        self.most = 0
        self.running: list[Cell] = []

    def start(self, cell: Cell) -> None:
        self.started.append(cell.method)
        self.running.append(cell)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds: float) -> list[tuple[Cell, int]]:
        cell = self.running.pop(0)
        codes = self.codes.get(cell.method, [])
        code = codes.pop(0) if codes else 0
        if code == 0:
            finish(cell)
        return [(cell, code)]

    def close(self) -> None:
        """Nothing to stop."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A driver that waits forever fails its test."""

    def stop(*_: Any) -> None:
        raise AssertionError("the driver waits forever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(cells: list[Cell], engine: Pretending) -> tuple[dict[Path, str], list[str]]:
    said: list[str] = []
    return Driver(cells, engine, said.append).run(lambda state: None, seconds=0.0), said


def test_runs_all_no_more_at_a_time_than_there_is_room_for(tmp_path: Path) -> None:
    engine = Pretending(workers=2)
    failed, said = run([make_cell(tmp_path, name) for name in "abcde"], engine)
    assert (failed, engine.started, engine.most, len(said)) == ({}, list("abcde"), 2, 5)


def test_done_cells_are_left_alone_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    a, b = make_cell(tmp_path, "a"), make_cell(tmp_path, "b")
    finish(a)
    b.folder.mkdir(parents=True)
    (b.folder / "status.json").write_text(json.dumps({"state": "done", "cell": {"digest": "of other options"}}))
    engine = Pretending()
    run([a, b], engine)
    assert engine.started == ["b"]


def test_a_failed_cell_is_tried_once_more_and_then_reported(tmp_path: Path) -> None:
    cells = [make_cell(tmp_path, name) for name in ("lucky", "broken", "fine")]
    cells[1].folder.mkdir(parents=True)
    (cells[1].folder / "log.txt").write_text("step 1\nsemiseg: error: disk: No space left on device\n")
    engine = Pretending(lucky=[-9], broken=[2, 2])
    failed, said = run(cells, engine)
    assert sorted(engine.started) == ["broken", "broken", "fine", "lucky", "lucky"]
    assert list(failed) == [cells[1].folder]
    assert failed[cells[1].folder] == "disk: No space left on device; exit code 2"
    assert any("lucky" in line and "SIGKILL" in line and "memory" in line for line in said)
    assert any("FAILED" in line and "No space left" in line and "log.txt" in line for line in said)


def test_what_starts_from_a_first_stage_waits_for_it(tmp_path: Path) -> None:
    first = make_cell(tmp_path, "first")
    cells = [first, make_cell(tmp_path, "second", first.folder), make_cell(tmp_path, "other")]
    engine = Pretending(first=[1])  # fails once
    run(cells, engine)
    assert engine.started.index("second") > max(i for i, name in enumerate(engine.started) if name == "first")
    assert engine.started[:2] == ["first", "other"]


def test_what_starts_from_a_first_stage_that_fails_fails_with_it(tmp_path: Path) -> None:
    first = make_cell(tmp_path, "first")
    second = make_cell(tmp_path, "second", first.folder)
    engine = Pretending(first=[1, 1])
    failed, _ = run([first, second, make_cell(tmp_path, "other")], engine)
    assert set(failed) == {first.folder, second.folder}
    assert failed[second.folder] == f"its first stage failed: {first.folder}"
    assert "second" not in engine.started
    assert "other" in engine.started


def test_what_waits_for_a_run_that_nobody_carries_out_fails(tmp_path: Path) -> None:
    lost = make_cell(tmp_path, "lost")
    cells = [make_cell(tmp_path, "a"), make_cell(tmp_path, "b", lost.folder)]
    failed, _ = run(cells, engine := Pretending())
    assert engine.started == ["a"]
    assert list(failed) == [cells[1].folder]
    assert f"waits for {lost.folder}, which is neither done" in failed[cells[1].folder]


def test_a_cell_that_another_process_keeps_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    engine = Pretending(a=[BUSY] * 5)
    cell = make_cell(tmp_path, "a")
    assert run([cell], engine)[1][:-1] == [], "at once"
    (cell.folder / "status.json").unlink()
    monkeypatch.setattr(module, "REMINDER", 0.0)
    _, said = run([cell], Pretending(a=[BUSY, BUSY]))
    line = f"waiting for {cell.name}: another process is at work in {cell.folder}"
    assert said[:-1] == [line, line]


@pytest.mark.parametrize("file", ["config.yaml", "split.json", "checkpoints/last.ckpt"])
def test_a_cell_of_which_a_file_is_gone_is_not_done(file: str, tmp_path: Path) -> None:
    finish(cell := make_cell(tmp_path, "a"))
    assert is_done(cell)
    (cell.folder / file).unlink()
    assert not is_done(cell)


def test_a_cell_is_done_with_tests_of_its_present_checkpoints(tmp_path: Path) -> None:
    cell = replace(make_cell(tmp_path, "a"), tests={"best-native": (), "last-native": ()})
    finish(cell)
    folder = RunFolder(cell.folder)
    folder.checkpoint("best").touch()
    row = {"case": "c", "patient": "c", "dice": 1.0, "jaccard": 1.0, "dice_x": 1.0, "jaccard_x": 1.0}
    row |= {"tp_x": 1.0, "fp_x": 0.0, "fn_x": 0.0, "empty_x": 0.0}
    tests = {"best-native": {"dice": 1.0, "step": 6}, "last-native": {"dice": 1.0, "step": 10}}
    for name in ("cases.csv", "cases-last.csv"):
        CaseTable([row]).write_csv(cell.folder / name)
    folder.update_status(best_step=6, test=tests)
    assert is_done(cell)
    for changes in ({"best_step": 10}, {"step": 20}, {"test": {}}, {"test": {**tests, "last-native": 3}}):
        kept = folder.status
        folder.update_status(**changes)
        assert not is_done(cell), changes
        folder.update_status(**kept)
        assert is_done(cell)
    for damage in ("case,patient\n", "case", None):
        (cell.folder / "cases-last.csv").unlink()
        if damage is not None:
            (cell.folder / "cases-last.csv").write_text(damage)
        assert not is_done(cell)


@pytest.mark.parametrize("status", [{"cell": 3}, {"cell": []}, {"step": "x", "seconds": [], "best_val_dice": "x"}])
def test_odd_values_in_a_status_stop_nothing(status: dict[str, Any], tmp_path: Path) -> None:
    cell = make_cell(tmp_path, "a")
    cell.folder.mkdir(parents=True)
    (cell.folder / "status.json").write_text(json.dumps(status))
    assert minutes_left([cell], step_seconds([cell]), workers=1) is None
    failed, _ = run([cell], engine := Pretending())
    assert (failed, engine.started) == ({}, ["a"])


def test_a_log_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, "a")
    cell.folder.mkdir(parents=True)
    os.mkfifo(cell.folder / "log.txt")
    assert last_lines(cell) == ""
    (cell.folder / "log.txt").unlink()
    (tmp_path / "elsewhere").write_text("secret")
    (cell.folder / "log.txt").symlink_to(tmp_path / "elsewhere")
    assert last_lines(cell) == ""
    (cell.folder / "log.txt").unlink()
    (cell.folder / "log.txt").write_text("--- attempt\nred \x1b[31m\n")
    assert last_lines(cell) == r"red \x1b[31m"


def test_a_cell_that_another_grid_has_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    engine = Pretending(a=[BUSY, BUSY, BUSY])
    failed, said = run([make_cell(tmp_path, "a")], engine)
    assert (failed, engine.started) == ({}, ["a"] * 4)
    assert not any("failed" in line for line in said)


def test_a_cell_that_another_grid_has_finished_is_not_begun(tmp_path: Path) -> None:
    a, b = make_cell(tmp_path, "a"), make_cell(tmp_path, "b")
    driver = Driver([a, b], engine := Pretending(workers=1), lambda line: None)
    finish(b)
    driver.run(lambda state: None, seconds=0.0)
    assert engine.started == ["a"]
    assert driver.progress.done == {a.folder, b.folder}


def test_estimates_come_from_measured_steps(tmp_path: Path) -> None:
    done = make_cell(tmp_path, "a")
    assert minutes_left([done], step_seconds([done]), workers=1) is None
    finish(done, seconds=30.0)
    measured = step_seconds([done])
    assert measured == {("data", "a"): 3.0, ("data", ""): 3.0}
    begun, new = make_cell(tmp_path, "c"), make_cell(tmp_path, "b")
    begun.folder.mkdir(parents=True)
    RunFolder(begun.folder).update_status(step=4)
    assert minutes_left([begun, new], measured, workers=2) == pytest.approx(3.0 * (6 + 10) / 60 / 2)


def test_a_damaged_status_stops_nothing_else(tmp_path: Path) -> None:
    a, b = make_cell(tmp_path, "a"), make_cell(tmp_path, "b")
    a.folder.mkdir(parents=True)
    (a.folder / "status.json").write_text("null")
    failed, _ = run([a, b], engine := Pretending())
    assert list(failed) == [a.folder]
    assert "status.json: does not hold a run's status; delete it" in failed[a.folder]
    assert engine.started == ["b"]


def test_only_the_last_attempt_gives_the_reason(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, "a")
    cell.folder.mkdir(parents=True)
    attempts = ["semiseg: error: disk full", "Traceback\n" + "x\n" * 80 + "RuntimeError: boom"]
    (cell.folder / "log.txt").write_text("".join(f"--- attempt 12:00\n{text}\n" for text in attempts))
    assert last_lines(cell).endswith("RuntimeError: boom")
    assert "disk" not in last_lines(cell)
