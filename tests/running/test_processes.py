"""All processes of a run end together, within seconds, with one line that says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from semiseg.errors import UserError
from semiseg.running.processes import Cause, Ended, Stopped, Watch, of_a_peer
from tests.running.kills import CONTEXT, _run

SIGNALS = {signal.SIGTERM: "stopped by SIGTERM;", signal.SIGHUP: "stopped by SIGHUP;", signal.SIGINT: "interrupted;"}


def stop(watch: Watch, seconds: float = 10.0) -> BaseException:
    """Wait in Python code until the watch stops this thread."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            time.sleep(0.01)
    except BaseException as error:
        return error
    raise AssertionError("was not stopped")


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_the_main_thread(number):
    before = signal.getsignal(number)
    with Watch() as watch:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        error = stop(watch)
        ended = watch.end(error)
    assert isinstance(error, Stopped)
    assert (ended.cause.code, ended.is_first) == (128 + number, True)
    assert ended.cause.message.startswith(SIGNALS[number])
    assert signal.getsignal(number) == before


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Watch():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_child_that_dies_stops_this_process(tmp_path):
    with Watch() as watch:
        watch.note = tmp_path / "note"
        watch.children = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sleep", "60"])]
        threading.Timer(0.1, watch.children[1].kill).start()
        ended = watch.end(stop(watch))
        assert watch.children[0].poll() is not None  # ended too
    assert "process 2 of the run was ended by SIGKILL" in ended.cause.message
    assert (ended.cause.code, ended.is_first) == (1, True)


def test_cause_of_another_process_is_the_cause_of_all(tmp_path):
    said = []
    with Watch() as watch:
        watch.note, watch.report = tmp_path / "note", said.append
        cause = {"code": 2, "message": "no space"}
        threading.Timer(0.1, (tmp_path / "note").write_text, (json.dumps(cause),)).start()
        ended = watch.end(stop(watch))
    assert (ended.cause, ended.is_first) == (Cause(2, "no space"), False)
    assert not said


def test_first_of_two_processes_reports(tmp_path):
    said = []
    watches = [Watch(lambda error: str(error)), Watch(lambda error: str(error))]
    for watch in watches:
        watch.note, watch.report = tmp_path / "note", said.append
    ended = [watch.end(UserError(f"cause {i}")) for i, watch in enumerate(watches)]
    assert [(e.cause.message, e.is_first) for e in ended] == [("cause 0", True), ("cause 0", False)]
    assert said == [Cause(2, "cause 0")]


@pytest.mark.parametrize("text", ["[", "[]", '{"code": "x"}', "null"])
def test_damaged_note_is_not_a_cause(tmp_path, text):
    (tmp_path / "note").write_text(text)
    watch = Watch()
    watch.note = tmp_path / "note"
    assert watch._noted() is None


def test_process_that_vanishes_is_named():
    gone = subprocess.Popen(["true"])
    gone.wait()
    watch = Watch()
    watch.others = {0: os.getpid(), 3: gone.pid}
    assert "process 3 of the run" in watch._silent_end().message


IN_C_CODE = """
import ctypes, signal
from semiseg.running.processes import Watch
with Watch() as watch:
    watch.grace = 0.5
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the kernel may give a signal to any thread
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(60)
"""


def test_main_thread_in_c_code_is_ended():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", IN_C_CODE], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # to be in sleep()
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert error.count("\n") == 1
    assert "stopped by SIGTERM" in error


def _run_with_errors_in(file: str, args: list[str]) -> None:
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    _run(args, None, 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_fit(tiny, run, number):
    process = CONTEXT.Process(target=_run_with_errors_in, args=("errors", [*tiny, "--trainer.max_steps", "100000"]))
    process.start()
    status = run / "status.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (status.exists() and json.loads(status.read_text()).get("step")):
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 128 + number
    content = json.loads(status.read_text())
    assert content["state"] == "failed"
    assert content["error"].startswith(SIGNALS[number])
    (line,) = Path("errors").read_text().splitlines()
    assert line == f"semiseg: error: {content['error']}"
    assert not list(run.rglob(".semiseg-*"))


def test_only_the_end_of_another_process_is_taken_for_one():
    error = RuntimeError("cannot restore what was stored")
    assert not of_a_peer(error)
    assert of_a_peer(RuntimeError("[gloo/transport] Connection closed by peer"))
    alone = Watch().end(RuntimeError("gloo: no such device"))  # without a note there is no other process
    assert alone.cause.message == "RuntimeError: gloo: no such device"


def test_ended_says_why():
    assert str(Ended(Cause(1, "why"), True)) == "why"
