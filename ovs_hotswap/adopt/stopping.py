"""Stops a process for a moment, in such a way that the kernel continues it if this process ends.

Every thread is seized and interrupted (ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT). If the tracer ends, for whatever
reason, the kernel detaches it and the threads continue (kernel/ptrace.c, ``exit_ptrace``). After SIGSTOP nothing would
continue them, and the parent of the process would be told that it had stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from types import TracebackType

from ovs_hotswap.errors import StateUnknown, TryAgain

_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207  # linux/ptrace.h
_EVENT_STOP = 128  # PTRACE_EVENT_STOP, in the second byte of the status
_WALL = 0x40000000  # linux/wait.h: threads of any kind
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Stopped:
    """A context manager inside which no thread of process ``pid`` runs. One thread has to enter and leave it.

    Entering raises TryAgain if not all threads have stopped at ``deadline`` (``time.monotonic()``), and StateUnknown if
    the process may not be stopped or has ended; it then continues as before.
    """

    def __init__(self, pid: int, deadline: float) -> None:
        self.pid, self._deadline = pid, deadline
        self._seized: list[int] = []
        self._signals: dict[int, int] = {}

    def __enter__(self) -> Stopped:
        try:
            self._stop()
        except BaseException:
            self._continue()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._continue()

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
        """Wait until a thread has stopped. The status stays in the kernel, so that a signal that a thread was about to
        take is not lost even if this process ends."""
        while thread in self._seized:
            try:
                found = os.waitid(os.P_PID, thread, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
            except ChildProcessError:  # it has ended
                return
            if found is not None and found.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
                signal, event = found.si_status & 0xFF, found.si_status >> 8
                if event != _EVENT_STOP:
                    self._signals[thread] = signal
                return
            if found is not None:  # it has ended
                return
            if time.monotonic() >= self._deadline:
                raise TryAgain(f"thread {thread} of process {self.pid} did not stop in time")
            time.sleep(0.00005)

    def _continue(self) -> None:
        """Detach from every thread. A thread that was about to take a signal takes it now."""
        while self._seized:
            thread = self._seized.pop()
            self._detach(thread)

    def _detach(self, thread: int) -> None:
        end = time.monotonic() + 0.5
        while _libc.ptrace(_DETACH, thread, None, self._signals.get(thread, 0)):
            # ESRCH: it has ended, or it has not stopped yet, which is possible if stopping was given up.
            with contextlib.suppress(ChildProcessError):
                found = os.waitid(os.P_PID, thread, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
                if found is not None and found.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
                    if found.si_status >> 8 != _EVENT_STOP:
                        self._signals[thread] = found.si_status & 0xFF
                    continue
                if found is not None:
                    os.waitpid(thread, os.WNOHANG | _WALL)
                    return
                if time.monotonic() < end:
                    time.sleep(0.00005)
                    continue
            return
