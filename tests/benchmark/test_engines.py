"""Real processes: crashes, kills, two grids at once, and Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semiseg.benchmark.engines import LocalEngine, Share, _gpu_places, _process
from semiseg.cli import main

OWN = """
import os, signal
from semiseg.methods import Supervised

class Killed(Supervised):
    def training_step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGKILL)

class Broken(Supervised):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("the matrix is singular")

class Fine(Supervised):
    pass
"""


def statuses(root: Path) -> dict[str, dict]:
    return {path.parts[-4]: json.loads(path.read_text()) for path in (root / "runs").rglob("status.json")}


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_crash_takes_nothing_else_along(write_grid, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for name in ("Killed", "Broken", "Fine"):
        (tmp_path / f"{name.lower()}.yaml").write_text(f"model: {{class_path: own.{name}}}")
    grid = write_grid(methods=["killed.yaml", "broken.yaml", "fine.yaml", "supervised", "mean_teacher"], controls=True)

    assert main(["benchmark", str(grid), "--local", "--workers", "2"]) == 1
    out = capfd.readouterr().out
    assert "5 of 6 cells" not in out
    assert "4 of 6 cells done" in out
    assert out.count("failed, will be tried again") == 2
    assert "SIGKILL" in out
    assert "RuntimeError: the matrix is singular" in out
    assert "Traceback" in (tmp_path / "runs/e/synthetic2d/broken/labeled-0.5/fold-0-seed-0/log.txt").read_text()
    done = statuses(tmp_path)
    for method in ("fine", "supervised", "mean_teacher", "otsu", "mean_mask", "everything_foreground"):
        assert set(done[method]["test"]) == {"best-native"}, method

    before = (tmp_path / "runs/e/synthetic2d/supervised/labeled-0.5/fold-0-seed-0/status.json").stat().st_mtime_ns
    assert main(["benchmark", str(grid), "--local"]) == 1
    assert "6 cells, 4 done before" in capfd.readouterr().out
    assert (
        tmp_path / "runs/e/synthetic2d/supervised/labeled-0.5/fold-0-seed-0/status.json"
    ).stat().st_mtime_ns == before


def test_kill_of_the_driver_and_of_a_worker_lose_nothing(write_grid, tmp_path: Path) -> None:
    budget = {"trainer.max_steps": 400, "trainer.val_check_interval": 10}
    grid = write_grid(methods=["supervised", {"config": "supervised", "name": "long", "options": budget}])
    command = [sys.executable, "-m", "semiseg", "benchmark", str(grid), "--local", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "runs/e/synthetic2d"
    short, long = (folder / name / "labeled-0.5/fold-0-seed-0/status.json" for name in ("supervised", "long"))

    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: long.exists() and json.loads(long.read_text()).get("step", 0) >= 100)
    driver.kill()
    driver.wait()
    worker = json.loads(long.read_text())["pid"]
    wait_for(lambda: not Path(f"/proc/{worker}/stat").exists() or ") Z" in Path(f"/proc/{worker}/stat").read_text(), 10)
    finished, step = short.read_bytes(), json.loads(long.read_text())["step"]
    assert json.loads(finished)["cell"]

    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: json.loads(long.read_text())["pid"] != worker and json.loads(long.read_text())["step"] > step)
    os.kill(json.loads(long.read_text())["pid"], signal.SIGKILL)
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, out
    assert "2 cells, 1 done before" in out
    assert "failed, will be tried again: synthetic2d/long/labeled-0.5/fold-0-seed-0" in out
    assert short.read_bytes() == finished, "a finished cell was touched"
    log = (long.parent / "log.txt").read_text()
    assert log.count("going on from step") == 2
    assert "going on from step 0" not in log
    steps = [int(line.split(",")[0]) for line in (long.parent / "metrics.csv").read_text().splitlines()[1:]]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    assert max(steps) == 399


TWO = {"trainer.devices": 2, "trainer.strategy": "ddp"}


def test_cells_of_two_processes(write_grid, tiny_options, tmp_path: Path) -> None:
    grid = write_grid(seeds=[0, 1], options={**tiny_options, **TWO})
    assert main(["benchmark", str(grid), "--local", "--workers", "1"]) == 0
    logs = [path.read_text() for path in (tmp_path / "runs").rglob("log.txt")]
    assert len(logs) == 2
    assert all(log.count("done: ") == 1 and "semiseg benchmark" not in log for log in logs)
    assert {*statuses(tmp_path)["supervised"]["test"]} == {"best-native"}


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_to_the_driver_ends_all_processes_of_its_cells(
    number: signal.Signals, code: int, write_grid, tiny_options, tmp_path: Path
) -> None:
    long = {"trainer.max_steps": 100_000, "trainer.val_check_interval": 10}
    grid = write_grid(options={**tiny_options, **TWO, **long})
    command = [sys.executable, "-m", "semiseg", "benchmark", str(grid), "--local", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    status = tmp_path / "runs/e/synthetic2d/supervised/labeled-0.5/fold-0-seed-0/status.json"
    wait_for(lambda: status.exists() and json.loads(status.read_text()).get("step", 0) > 0, 180)
    assert len(ranks(tmp_path)) == 2
    driver.send_signal(number)
    _, error = driver.communicate(timeout=60)
    assert driver.returncode == code
    assert error.count("\n") == (number != signal.SIGKILL), error
    wait_for(lambda: ranks(tmp_path) == [], 10)


def ranks(root: Path) -> list[str]:
    """Processes of runs below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().split(b"\0")
            found += [path.parent.name] if b"fit" in command and str(root).encode() in b"".join(command) else []
    return found


def test_two_grids_at_once_share_the_work(write_grid, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semiseg", "benchmark", str(write_grid(seeds=[0, 1, 2, 3])), "--local"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    grids = [subprocess.Popen([*command, "--workers", "1"], env=environment) for _ in range(2)]
    assert [grid.wait(200) for grid in grids] == [0, 0]
    logs = [path.read_text() for path in (tmp_path / "runs").rglob("log.txt")]
    assert len(logs) == 4
    assert all(log.count("done: ") == 1 and "error" not in log for log in logs), "a cell was carried out twice"


def test_controls_are_scored_at_each_resolution_once_per_fold(write_grid, tiny_options, tmp_path: Path) -> None:
    tests = ["best-native", "best-network"]
    image = {"data.image_size": [16, 16]}
    grid = write_grid(seeds=[0, 1], tests=tests, controls=True, options={**tiny_options, **image})
    assert main(["benchmark", str(grid), "--local"]) == 0
    (otsu,) = (tmp_path / "runs/e/synthetic2d/otsu").rglob("status.json")
    assert otsu.parent.name == "fold-0-seed-0"
    assert otsu.parent.parent.name == "labeled-0.5"
    status = json.loads(otsu.read_text())
    assert set(status["test"]) == set(tests)
    assert status["test"]["best-native"]["hd95"] > status["test"]["best-network"]["hd95"]
    run = tmp_path / "runs/e/synthetic2d/supervised/labeled-0.5/fold-0-seed-1/status.json"
    assert set(json.loads(run.read_text())["test"]) == set(tests)


def test_a_test_asked_for_later_is_made(write_grid, tiny_options, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    status = tmp_path / "runs/e/synthetic2d/supervised/labeled-0.5/fold-0-seed-0/status.json"
    assert main(["benchmark", str(write_grid()), "--local"]) == 0
    trained = json.loads(status.read_text())["seconds"]
    assert main(["benchmark", str(write_grid(tests=["best-native", "last-network"])), "--local"]) == 0
    out = capfd.readouterr().out
    assert "1 cells, 0 done before" in out
    assert "wait for each other" not in out
    assert (
        main(["benchmark", str(write_grid(tests=["best-native"])), "--local", "--cpus", "2", "--workers", "999"]) == 0
    )
    assert "999 runs with 2 cores each" in capfd.readouterr().out
    assert set(json.loads(status.read_text())["test"]) == {"best-native", "last-network"}
    assert json.loads(status.read_text())["seconds"] == trained, "it was trained again"

    for checkpoint in (status.parent / "checkpoints").iterdir():
        checkpoint.unlink()
    changed = write_grid(options={**tiny_options, "trainer.max_steps": 6})
    assert main(["benchmark", str(changed), "--local"]) == 1, "other options, and results of the old ones"
    assert "trainer.max_steps 4, not 6" in capfd.readouterr().out


def test_runs_may_be_moved_but_not_start_from_another_first_stage(
    write_grid, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    short = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "model.network.widths": [4, 4, 8]}
    stage = {"config": "hebbian_hpca_tsa", "name": "hpca", "options": {**short, "model.network.dropout": [0, 0, 0]}}
    grid = str(write_grid(first_stages=[stage], starts=["hpca"]))
    assert main(["benchmark", grid, "--local"]) == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert main(["benchmark", grid, "--local", "--runs_dir", str(tmp_path / "elsewhere")]) == 0
    assert "2 cells, 2 done before" in capfd.readouterr().out

    stage["options"]["model.rule"] = "swta"  # another first stage in the old one's place
    grid = str(write_grid(first_stages=[stage], starts=["hpca"]))
    shutil.rmtree(tmp_path / "elsewhere/e/synthetic2d/hpca")
    assert main(["benchmark", grid, "--local", "--runs_dir", str(tmp_path / "elsewhere")]) == 1
    out = capfd.readouterr().out
    assert "1 of 2 cells done" in out
    assert "as it was before its options changed; delete it" in out


@pytest.mark.parametrize(
    ("gpus", "visible", "places"),
    [
        (0, "0,1", []),
        (1, "0,1", ["0", "1"]),
        (0.5, "4,7", ["4", "7", "4", "7"]),
        (2, "0,1,2,3,4", ["0,1", "2,3"]),
    ],
)
def test_gpus_are_shared_out(gpus: float, visible: str, places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpu_places(gpus) == places
    engine = LocalEngine(None, Share(gpus=gpus))
    assert engine.workers == (len(places) or len(os.sched_getaffinity(0)))
    seen: list[str] = []
    monkeypatch.setattr(os, "chdir", lambda folder: (seen.append(os.environ["CUDA_VISIBLE_DEVICES"]), sys.exit(0)))
    with pytest.raises(SystemExit):
        _process(None, 1, "7", ".")  # type: ignore[arg-type]
    assert seen == ["7"]


def test_ray_carries_out_cells_and_reports_a_crash(write_grid, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "killed.yaml").write_text("model: {class_path: own.Killed}")
    assert main(["benchmark", str(write_grid(methods=["supervised", "killed.yaml"])), "--workers", "2"]) == 1
    out = capfd.readouterr().out
    assert "1 of 2 cells done" in out
    assert "SIGKILL" in out
    assert set(statuses(tmp_path)["supervised"]["test"]) == {"best-native"}


def test_without_ray_a_line_says_so(write_grid, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["benchmark", str(write_grid())]) == 0
    assert "Ray is not installed" in capfd.readouterr().out
    assert main(["benchmark", str(write_grid()), "--address", "auto"]) == 2
    assert "pip install 'semiseg[ray]'" in capfd.readouterr().err
