"""One command on several hosts side by side."""

from __future__ import annotations

import contextlib
import enum
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.remote.frames import Kind, Size, harmless

INTERRUPTED = 130
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LEAVES_S = 2.0  # after the second Ctrl-C, for the hosts at work to be left in order
_TEXT_MAX = 4 << 20  # bytes that are kept of one host's output


class Stage(enum.StrEnum):
    """Where a host stands. LEFT_OUT: Ctrl-C came before its turn."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"


@dataclass
class HostRun:
    """The command on one host. A thread of its own writes it. ``error``: why it was not begun, or was lost."""

    host: str
    stage: Stage = Stage.WAITING
    exit_code: int | None = None
    job: str | None = None
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    error: HotswapError | None = None

    @property
    def text(self) -> str:
        """What is to be seen of the host at a glance: its error, or the last line that it printed."""
        if self.error is not None:
            return harmless(self.error.message)
        lines = (bytes(self.err[-2000:]) + b"\n" + bytes(self.out[-2000:])).decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return _COLOUR.sub("", harmless(last))


class HostScreen:
    """Keeps what a host prints. Nothing is typed, and ``interrupts`` counts Ctrl-C for all hosts."""

    def __init__(self, run: HostRun, interrupts: Callable[[], int]) -> None:
        self._run = run
        self.interrupts = interrupts

    def show(self, kind: Kind, data: bytes) -> None:
        self._run.stage = Stage.RUNNING
        kept = self._run.out if kind is Kind.OUT else self._run.err
        if len(kept) < _TEXT_MAX < len(kept) + len(data):
            self.say(f"what it prints after {_TEXT_MAX >> 20} MiB is left out")
        kept += data[: max(0, _TEXT_MAX - len(kept))]

    def say(self, text: str) -> None:
        self._run.err += f"warning: {text}\n".encode()

    def job(self, name: str) -> None:
        self._run.stage = Stage.RUNNING
        self._run.job = name

    def keyboard(self) -> int | None:
        return None

    def typed(self) -> bytes:
        return b""

    def size(self) -> Size:
        return Size()


class Fleet:
    """Runs ``on_host`` for each host, at most ``parallel`` at a time, in threads. ``left``: the words about a job that
    is left to itself. A thread that waits for a host which does not answer keeps this process from nothing."""

    def __init__(
        self, hosts: Sequence[str], on_host: Callable[[str, HostScreen], int], parallel: int,
        left: Callable[[str, str], str],
    ) -> None:  # fmt: skip
        self.runs: Mapping[str, HostRun] = {host: HostRun(host) for host in hosts}
        self._on_host, self._left_to_itself = on_host, left
        self._parallel = parallel
        self._waiting: queue.SimpleQueue[HostRun] = queue.SimpleQueue()
        self._interrupts, self._leaves = 0, 0.0
        self._left = len(hosts)
        self._end = threading.Condition()

    def start(self) -> None:
        for run in self.runs.values():
            self._waiting.put(run)
        for _ in range(min(self._parallel, len(self.runs))):
            threading.Thread(target=self._work_off, name="host", daemon=True).start()

    def interrupt(self) -> None:
        """Ask every command to stop, as Ctrl-C does; at the second call, leave them."""
        self._interrupts += 1
        if self._interrupts == 2:
            self._leaves = time.monotonic() + _LEAVES_S

    def wait(self, seconds: float) -> bool:
        """Whether all hosts have ended, or are left, after at most so many seconds."""
        with self._end:
            return self._end.wait_for(lambda: self._left == 0 or self._abandoned(), seconds)

    def _abandoned(self) -> bool:
        """Whether it is time to leave the hosts that do not even connect."""
        if self._interrupts < 2 or time.monotonic() < self._leaves:
            return False
        for run in self.runs.values():
            if run.exit_code is None:
                run.stage, run.exit_code = Stage.LEFT_OUT, INTERRUPTED
        return True

    def _work_off(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._work(self._waiting.get_nowait())

    def _work(self, run: HostRun) -> None:
        try:
            self._one(run)
        except HotswapError as error:
            run.error, run.exit_code = error, error.exit_code
        except KeyboardInterrupt:
            run.exit_code = INTERRUPTED
            if run.job is not None:
                run.err += f"warning: {self._left_to_itself(run.host, run.job)}\n".encode()
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            run.error, run.exit_code = HotswapError(f"{run.host}: {type(error).__name__}: {error}"), 1
        finally:
            if run.stage is not Stage.LEFT_OUT:
                run.stage = Stage.DONE if run.exit_code == 0 else Stage.FAILED
            with self._end:
                self._left -= 1
                self._end.notify_all()

    def _one(self, run: HostRun) -> None:
        if self._interrupts:
            run.stage, run.exit_code = Stage.LEFT_OUT, INTERRUPTED
            return
        run.stage = Stage.CONNECTING
        run.exit_code = self._on_host(run.host, HostScreen(run, lambda: self._interrupts))
