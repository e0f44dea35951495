"""Stops a process for a moment, in such a way that the kernel continues it if this process ends.

Every thread is seized and interrupted (ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT). If the tracer ends, for whatever
reason, the kernel detaches it and the threads continue (kernel/ptrace.c, ``exit_ptrace``). After SIGSTOP nothing would
continue them, and the parent of the process would be told that it had stopped.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType

from ovs_hotswap.errors import StateUnknown, TryAgain

_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207  # linux/ptrace.h
_EVENT_STOP = 128  # PTRACE_EVENT_STOP, in the second byte of the status
_WALL = 0x40000000  # linux/wait.h: threads of any kind
log = logging.getLogger(__name__)

LIMIT_S = 5.0
_STOPPED = (os.CLD_TRAPPED, os.CLD_STOPPED)
_LOOK_S = 0.00005
_RELEASE_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Stopped:
    """A context manager inside which no thread of process ``pid`` runs.

    The process continues after ``limit_s`` at the latest, even if the block has not ended then; ``overrun`` says that
    this has happened. A thread of its own does the stopping, because only the thread that has stopped another can
    continue it.

    Entering raises TryAgain if not all threads have stopped at ``deadline`` (``time.monotonic()``), and StateUnknown if
    the process may not be stopped or has ended; it then continues as before.
    """

    def __init__(self, pid: int, deadline: float, limit_s: float = LIMIT_S) -> None:
        self.pid, self._deadline, self._limit_s = pid, deadline, limit_s
        self.overrun = False
        self._seized: list[int] = []
        self._ours = _parent(pid) == os.getpid()
        self._signals: dict[int, int] = {}
        self._fault: BaseException | None = None
        self._stopped, self._leaving = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, name=f"stops {pid}", daemon=True)

    def __enter__(self) -> Stopped:
        self._thread.start()
        try:
            self._stopped.wait()
        except BaseException:  # Ctrl-C
            self._leaving.set()
            raise
        if self._fault is not None:
            self._thread.join()
            raise self._fault
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leaving.set()
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _hold(self) -> None:
        try:
            try:
                self._stop()
                self._stopped.set()
                self.overrun = not self._leaving.wait(self._limit_s)
                if self.overrun:
                    log.error("process %d continues, because it has been stopped for %g s", self.pid, self._limit_s)
            finally:
                self._continue()
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._fault = error
        finally:
            self._stopped.set()

    def _stop(self) -> None:
        """Seize threads until there are none that were not seized, because those that ran may have started others."""
        while new := [thread for thread in self._threads() if thread not in self._seized]:
            for thread in new:
                self._seize(thread)
            for thread in new:
                self._await(thread)

    def _threads(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))
        except OSError as error:
            raise StateUnknown(f"process {self.pid} has ended") from error

    def _seize(self, thread: int) -> None:
        for request in (_SEIZE, _INTERRUPT):
            if _libc.ptrace(request, thread, None, None):
                number = ctypes.get_errno()
                if number == errno.ESRCH:  # the thread has ended
                    return
                raise StateUnknown(
                    f"thread {thread} of process {self.pid} cannot be stopped: {os.strerror(number)}",
                    hint="no debugger may be attached (TracerPid in /proc/PID/status), and CAP_SYS_PTRACE is needed",
                )
            if request == _SEIZE:
                self._seized.append(thread)

    def _await(self, thread: int) -> None:
        """Wait until a thread has stopped or ended."""
        while thread in self._seized:
            try:
                found = self._look(thread)
            except ChildProcessError:
                return
            if found is not None:
                if found.si_code in _STOPPED:
                    self._note(thread, found)
                return
            if time.monotonic() >= self._deadline:
                raise TryAgain(f"thread {thread} of process {self.pid} did not stop in time")
            time.sleep(_LOOK_S)

    def _continue(self) -> None:
        """Detach from every thread. A thread that was about to take a signal takes it now.

        A thread that has not stopped yet, because stopping was given up, is released when it does; the others do not
        wait for it. Raises StateUnknown if one has not stopped after a long time.
        """
        end = time.monotonic() + _RELEASE_S
        while self._seized:
            self._seized = [thread for thread in self._seized if not self._detached(thread)]
            if self._seized and time.monotonic() >= end:
                raise StateUnknown(
                    f"process {self.pid}: threads {', '.join(map(str, self._seized))} will stop when what they wait for"
                    f" in the kernel comes, and stay so until process {os.getpid()} ends",
                    hint=f"end process {os.getpid()}",
                )
            if self._seized:
                time.sleep(_LOOK_S)

    def _detached(self, thread: int) -> bool:
        """Detach from a thread that has stopped or ended; return false if it runs."""
        if not _libc.ptrace(_DETACH, thread, None, self._signals.get(thread, 0)):
            return True
        try:
            found = self._look(thread)
            if found is None:
                return False
            if found.si_code not in _STOPPED:
                if thread != self.pid or not self._ours:  # otherwise its parent would not be told that it has ended
                    os.waitpid(thread, os.WNOHANG | _WALL)
                return True
        except ChildProcessError:  # it has ended, and nothing of it is left
            return True
        self._note(thread, found)
        return not _libc.ptrace(_DETACH, thread, None, self._signals.get(thread, 0))

    @staticmethod
    def _look(thread: int) -> os.waitid_result | None:
        """Return the status of a thread that has stopped or ended, and leave it in the kernel, so that a signal that
        the thread was about to take is not lost even if this process ends. Raises ChildProcessError."""
        return os.waitid(os.P_PID, thread, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)

    def _note(self, thread: int, found: os.waitid_result) -> None:
        """Note the signal that a thread was about to take when it stopped, if there was one."""
        if found.si_status >> 8 != _EVENT_STOP:
            self._signals[thread] = found.si_status & 0xFF


def _parent(pid: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
