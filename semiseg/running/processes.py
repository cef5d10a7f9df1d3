"""End all processes of a run, within seconds, when one of them fails or is told to stop; say why once.

A process that waits for another in a collective operation sits in C code, where Python handles no signal. So a thread
watches as well: for signals, for the parent and the children of this process, and for the note that another process of
the run left in the run folder. It first asks the main thread to stop and, if that does not answer, ends the process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.files import read_json

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0  # seconds that the main thread has to stop by itself
TICK = 0.3  # seconds between looks at the other processes
PEERS = 3.0  # seconds to wait for the first cause, after a collective operation failed because another process ended
_GONE = re.compile(r"\b(gloo|nccl|(tcp)?store|socket)\b|connection (closed|reset)", re.IGNORECASE)
GO_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Cause:
    """Why a command ends before it is done.

    Args:
        code: exit code, of every process of a run.
        message: one line, for the terminal and `status.json`.
    """

    code: int
    message: str


class Stopped(SystemExit):
    """Raised in the main thread by a signal, or when another process of the run has ended."""


class Ended(Exception):
    """Training ended before its budget.

    Args:
        cause: the run's first cause.
        is_first: whether this process had it, and is the one to print it.
    """

    def __init__(self, cause: Cause, is_first: bool) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.is_first = is_first


class Watch:
    """Stops this process on a signal, or with the other processes of its run. A context manager for the main thread.

    Attributes:
        note: file in the run folder, in which the first process that fails says why; None until there is a folder.
        children: processes that this one launched.
        others: id of each other process of the run on this machine, by its rank.
        report: called once, by the process whose cause is the first, with that cause.
        grace: seconds that the main thread has to stop by itself.

    Args:
        describe: what a user can do about an error; None where it is a bug.
    """

    def __init__(self, describe: Callable[[BaseException], str | None] = lambda error: None) -> None:
        self.describe = describe
        self.grace = GRACE
        self.note: Path | None = None
        self.children: Sequence[subprocess.Popen[Any]] = ()
        self.others: Mapping[int, int] = {}
        self.report: Callable[[Cause], None] = lambda cause: None
        self._launched = "LOCAL_RANK" in os.environ  # by torchrun, or by another process of the run
        self._process = os.getpid()
        self._parent = os.getppid()
        self._cause: Cause | None = None
        self._ours = False  # whether this process is the first that noted a cause
        self._lock = threading.RLock()  # a signal handler may interrupt its holder
        self._ending = False  # whether the main thread knows that it is to stop
        self._done = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.handle_signals()
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ending = True
        self._done.set()
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._thread.join()
            os.close(self._read)
            os.close(self._write)

    def handle_signals(self) -> None:
        """Install the handlers, again where a library has replaced them; what `nohup` ignores stays ignored."""
        for number, before in self._before.items():
            if before != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, once it is in Python code."""
        if os.getpid() != self._process:  # a data loader process, forked from this one
            os._exit(128 + number)
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)  # the first is enough
        # a launcher stops the others once one has ended: what that one noted, or its end, is the cause
        cause = self._begin(self._noted() or self._silent_end() or _by_signal(number))
        raise Stopped(cause.code)

    def _watch(self) -> None:
        """Runs in a thread of its own until the main thread leaves the context."""
        deadline = None
        while not self._done.wait(TICK):
            signals = self._signals()
            if self._cause is None:
                cause = self._found() or (_by_signal(signals[0]) if signals else None)
                if cause is not None:
                    with self._lock:
                        self._begin(cause)
                        if not signals and not self._ending:
                            os.kill(os.getpid(), signal.SIGTERM)  # the main thread's handler raises
            if self._cause is not None and deadline is None:
                deadline = time.monotonic() + self.grace
            if deadline is not None and time.monotonic() > deadline:  # the main thread waits in C code
                self.end_children()
                cause = self.first(self._cause or Cause(1, ""))
                if self._ours:
                    print(f"semiseg: error: {printable(cause.message)}", file=sys.stderr, flush=True)
                os._exit(cause.code)

    def _signals(self) -> list[int]:
        """Numbers of the signals that have arrived, also while the main thread is in C code."""
        with suppress(BlockingIOError):
            return [number for number in os.read(self._read, 64) if number in SIGNALS and self._handled(number)]
        return []

    def _handled(self, number: int) -> bool:
        return self._before.get(signal.Signals(number)) != signal.SIG_IGN

    def _found(self) -> Cause | None:
        """What has happened to the other processes of the run."""
        if (noted := self._noted()) is not None:
            return noted
        for rank, child in enumerate(self.children, start=1):
            if code := child.poll():
                time.sleep(0.5)  # it may have said why
                return self._noted() or Cause(*_how(f"process {rank} of the run", code))
        if self._launched and os.getppid() != self._parent:
            return self._silent_end() or Cause(1, f"the process that launched this one has ended; {GO_ON}")
        return None

    def _silent_end(self) -> Cause | None:
        """Another process of the run that is gone and has noted no cause."""
        for rank, process in self.others.items():
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return Cause(1, f"process {rank} of the run was killed or ran out of memory; {GO_ON}")
            except PermissionError:
                pass
        return None

    def _noted(self) -> Cause | None:
        """The first cause, as another process of the run has noted it."""
        if self.note is None:
            return None
        try:
            content = read_json(self.note)
            return Cause(int(content["code"]), str(content["message"]))
        except (FileNotFoundError, UserError, ValueError, KeyError, TypeError):  # not there, or being written
            return None

    def _begin(self, cause: Cause) -> Cause:
        with self._lock:
            self._cause = self._cause or cause
        return self._cause

    def first(self, cause: Cause) -> Cause:
        """The run's first cause: this one, unless another process has noted one before.

        The process that is first writes the note and reports it.
        """
        with self._lock:
            if self._ours:
                return self._cause or cause
            self._ours = self.note is not None or os.environ.get("LOCAL_RANK", "0") in "01"  # without a note, few speak
            if self.note is not None:
                try:
                    handle = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                except FileExistsError:
                    self._ours = False
                except OSError:  # a full disk: every process then reports for itself
                    pass
                else:
                    with os.fdopen(handle, "w", encoding="utf-8") as file:
                        json.dump(asdict(cause), file)
            if self._ours:
                self._cause = cause
                with suppress(UserError, OSError):  # the disk may be full
                    self.report(cause)
                return cause
        for _ in range(10):
            if (noted := self._noted()) is not None:
                return noted
            time.sleep(0.1)
        return cause

    def end(self, error: BaseException) -> Ended:
        """What ended training, as all processes of the run agree on it; the first of them reports it."""
        with self._lock:
            self._ending = True
        if isinstance(error, Stopped) and self._cause is not None:
            cause = self._cause
        elif self.note is not None and of_a_peer(error):  # else there is no other process
            cause = self._end_of_a_peer()
        elif (message := self.describe(error)) is not None:
            cause = Cause(2, message)
        else:
            cause = Cause(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        cause = self.first(cause)
        self.end_children()
        return Ended(cause, self._ours)

    def _end_of_a_peer(self) -> Cause:
        """The cause that another process notes or shows, if it does so soon."""
        deadline = time.monotonic() + PEERS
        while time.monotonic() < deadline:
            if (found := self._cause or self._found()) is not None:
                return found
            time.sleep(0.1)
        return Cause(1, f"another process of the run ended, killed or out of memory; {GO_ON}")

    def wait_for_children(self, seconds: float = 60.0) -> None:
        """Let the processes that this one launched come to their end, so that none finds its parent gone."""
        deadline = time.monotonic() + seconds
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        self.end_children()

    def end_children(self) -> None:
        """End the processes that this one launched: first by a signal, then by force."""
        running = [child for child in self.children if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + PEERS
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            child.kill()


def _by_signal(number: int) -> Cause:
    name = signal.Signals(number).name
    return Cause(128 + number, f"{'interrupted' if number == signal.SIGINT else f'stopped by {name}'}; {GO_ON}")


def _how(who: str, code: int) -> tuple[int, str]:
    """Exit code and message for a process that ended by itself."""
    if code < 0:
        hint = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
        return 1, f"{who} was ended by {signal.Signals(-code).name}{hint}; {GO_ON}"
    return code, f"{who} ended with exit code {code}; {GO_ON}"


def of_a_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone."""
    return isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None
