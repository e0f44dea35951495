"""Keeps one service running, and keeps the descriptors that it stores, on a host without systemd.

The service sends the same messages as to systemd (sd_notify(3): READY, FDSTORE, FDSTOREREMOVE, FDNAME), and is started
again with the descriptors that it stored (sd_listen_fds(3)). So its connections outlive it in the same way with and
without systemd: a connection whose descriptor is stored here stays open, in whatever way the service ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ovs_hotswap.service.sd_notify import SD_LISTEN_FDS_START
from ovs_hotswap.system import many_descriptors, pid_text
from ovs_hotswap.vhostuser.channel import ANCILLARY, OwnedFd, adopt, close_all

log = logging.getLogger(__name__)

_MESSAGE = 4096  # bytes
_DELAY_S, _DELAY_MAX_S = 0.1, 5.0  # before a service is started again that was not ready when it ended,
_BURST, _BURST_S = 20, 60.0  # or that was started more than _BURST times within _BURST_S seconds
_LOOK_S = 0.5  # between two looks for the end of a service, if its pidfd could not be opened
_STOP_S = 10.0  # for the service to end by itself
SUCCEEDED = "X_SUCCEEDED=1"  # sent by a service that another process has replaced, so it is not started again


class Store:
    """Descriptors by name, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, OwnedFd]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._kept]

    @property
    def descriptors(self) -> list[int]:
        return [descriptor.fileno() for _, descriptor in self._kept]

    def take(self, said: Mapping[str, str], descriptors: Sequence[OwnedFd]) -> None:
        """Carry out what a message with ``descriptors`` asks for, and close the descriptors that are not kept."""
        name = said.get("FDNAME", "stored")
        if said.get("FDSTORE") == "1":
            self._kept += [(name, descriptor) for descriptor in descriptors]
            return
        close_all(descriptors)
        if said.get("FDSTOREREMOVE") == "1":
            close_all(descriptor for kept, descriptor in self._kept if kept == name)
            self._kept = [kept for kept in self._kept if kept[0] != name]

    def close(self) -> None:
        close_all(descriptor for _, descriptor in self._kept)
        self._kept = []


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


class BackOff:
    """The delay before a service that has ended is started again. There is none if the service was ready. The delay
    grows each time if the service was not ready, or if it becomes ready and ends too often."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_BURST)
        self._delay = 0.0

    def after(self, *, ready: bool, now: float) -> float:
        """The delay in seconds after an end at ``now``, in monotonic seconds."""
        hasty = len(self._ends) == _BURST and now - self._ends[0] < _BURST_S
        self._ends.append(now)
        self._delay = 0.0 if ready and not hasty else min(max(2 * self._delay, _DELAY_S), _DELAY_MAX_S)
        return self._delay


class Supervisor:
    """Runs ``argv`` until a signal asks for its end. ``directory`` has the supervisor's socket and its pid file,
    ``NAME.pid``.

    ``once`` are additional arguments for the first start only.
    """

    def __init__(self, name: str, argv: Sequence[str], directory: Path, once: Sequence[str] = ()) -> None:
        self._argv, self._once = list(argv), list(once)
        self._path = directory / f"{name}.{os.getpid()}.notify"
        self._pid_file = directory / f"{name}.pid"
        self._store = Store()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._child: int | None = None
        self._pidfd: int | None = None  # the child's; None if it could not be opened
        self._due, self._back_off = 0.0, BackOff()
        self._ready = self._ever_ready = self._succeeded = False
        self._signals: list[int] = []

    def run(self) -> int:
        """Run the service. Returns 0 after SIGTERM or SIGINT, or once another process has replaced the service; returns
        the service's own exit status if it ended before it was ever ready. SIGHUP is passed on to the service. Raises
        OSError if the directory cannot be written."""
        many_descriptors()
        with contextlib.ExitStack() as stack:
            stack.callback(self._socket.close)
            self._path.unlink(missing_ok=True)  # left by a killed supervisor that had the same pid
            self._socket.bind(str(self._path))
            stack.callback(self._path.unlink, missing_ok=True)
            self._path.chmod(0o600)
            stack.callback(self._store.close)
            stack.callback(self._remove_pid_file)
            wakeup = stack.enter_context(self._signalled())
            return self._serve(wakeup)

    def _serve(self, wakeup: socket.socket) -> int:
        self._start(self._once)
        while True:
            self._wait(wakeup)
            self._receive_all()
            ended = self._reap()
            if self._told_to_end():
                self._end()
                return 0
            if ended is not None:
                if self._succeeded:
                    return 0
                if not self._ever_ready and (ended >= 0 or not self._store.names):
                    return ended if ended > 0 else 1
                self._later(f"the service ended with status {ended}")
            if self._child is None and time.monotonic() >= self._due:
                self._start()

    def _later(self, why: str) -> None:
        """Start the service again, at once or after a while."""
        now = time.monotonic()
        delay = self._back_off.after(ready=self._ready, now=now)
        self._due = now + delay
        log.error("%s: it is started again in %.1f s", why, delay)

    def _told_to_end(self) -> bool:
        taken, self._signals = self._signals, []
        if signal.SIGHUP in taken and self._ready:  # an earlier SIGHUP would end it: it has no handler yet
            self._pass_on(signal.SIGHUP)
        return bool({signal.SIGTERM, signal.SIGINT} & set(taken))

    # -- the service

    def _start(self, more: Sequence[str] = ()) -> None:
        self._ready = False
        try:
            pid = os.fork()
        except OSError as error:  # the stored descriptors must outlive a shortage
            self._later(f"the service cannot be started: {error}")
            return
        if pid == 0:
            self._become([*self._argv, *more])
        self._child, self._pidfd = pid, _pidfd(pid)

    def _become(self, argv: list[str]) -> NoReturn:
        """Become the service in the new process. It has the stored descriptors from descriptor 3 on, and no others."""
        try:
            signal.set_wakeup_fd(-1)
            given = self._store.descriptors
            environment = dict(os.environ, NOTIFY_SOCKET=str(self._path), LISTEN_PID=str(os.getpid()),
                               LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=":".join(self._store.names))  # fmt: skip
            apart = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START + len(given)) for each in given]
            for place, descriptor in enumerate(apart, SD_LISTEN_FDS_START):
                os.dup2(descriptor, place)
            os.execve(argv[0], argv, environment)
        except BaseException:  # no code of the parent may continue in the child
            log.exception("%s cannot be started", argv[0])
            os._exit(127)

    def _reap(self) -> int | None:
        """The exit status of the service if it has just ended, negative for a signal; otherwise ``None``."""
        if self._child is None:
            return None
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid == 0:
            return None
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._child = None
        self._receive_all()  # its last messages
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: signal.Signals) -> None:
        if self._child is not None:
            os.kill(self._child, number)

    def _end(self) -> None:
        """End the service for good. Only a service that ends by itself has cleaned up what it stored. If none runs, or
        it was killed, another one is started to do so."""
        while self._child is not None or (self._store.names and not self._succeeded):
            if self._child is None:
                time.sleep(max(0.0, self._due - time.monotonic()))
                self._start()
            ended = self._end_service()
            if ended == 0:
                return
            self._ready = False  # so that there is a delay before the next attempt
            self._later(f"the service ended with status {ended}, and has not cleaned up what it stored")

    def _end_service(self) -> int | None:
        """End the service by SIGINT, and by SIGKILL if it does not end in time; return its exit status. SIGTERM would
        mean that another process continues with what the service leaves."""
        ended = self._await_service(lambda: self._ready)  # before that it has no handler
        for number in (signal.SIGINT, signal.SIGKILL):
            if self._child is not None:
                self._pass_on(number)
                ended = self._await_service(lambda: False)
        return ended

    def _await_service(self, true: Callable[[], bool]) -> int | None:
        """Wait until the service ends, until ``true``, or for ``_STOP_S`` seconds. Returns the exit status if the
        service has ended."""
        end, ended = time.monotonic() + _STOP_S, None
        while self._child is not None and not true() and time.monotonic() < end:
            self._select(None, end - time.monotonic())
            self._receive_all()
            ended = self._reap()
        return ended

    # -- what comes in

    def _wait(self, wakeup: socket.socket) -> None:
        self._select(wakeup, None if self._child is not None else self._due - time.monotonic())
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(4096)

    def _select(self, wakeup: socket.socket | None, seconds: float | None) -> None:
        """Wait until a message or a signal comes in, or the child ends, for at most ``seconds``. This needs no new
        descriptor. If the child has no pidfd, its end is looked for from time to time."""
        poller = select.poll()
        for each in (self._socket, wakeup, None if self._child is None else self._pidfd):
            if each is not None:
                poller.register(each, select.POLLIN)
        if self._child is not None and self._pidfd is None:
            seconds = _LOOK_S if seconds is None else min(seconds, _LOOK_S)
        poller.poll(None if seconds is None else max(0.0, seconds) * 1e3)

    def _receive_all(self) -> None:
        while self._receive():
            pass

    def _receive(self) -> bool:
        """Take one message; return whether there was one."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        lines = data.decode(errors="replace").split("\n")
        self._store.take(dict(line.split("=", 1) for line in lines if "=" in line), adopt(ancillary))
        if "READY=1" in lines:
            self._ready = True
        if self._ready and not self._ever_ready:
            self._ever_ready = True
            try:
                self._pid_file.write_text(pid_text(os.getpid()))
            except OSError as error:
                log.error("%s: %s", self._pid_file, error)
        self._succeeded = self._succeeded or SUCCEEDED in lines
        return True

    def _remove_pid_file(self) -> None:
        if self._succeeded:
            return  # the file belongs, or will belong, to another supervisor
        with contextlib.suppress(OSError):
            if self._pid_file.read_text() == pid_text(os.getpid()):
                self._pid_file.unlink()

    @contextlib.contextmanager
    def _signalled(self) -> Iterator[socket.socket]:
        """A socket that becomes readable when a signal has arrived; the signal is then in ``_signals``."""
        inside, outside = socket.socketpair()
        before = {}
        with inside, outside:
            for end in (inside, outside):
                end.setblocking(False)
            old = signal.set_wakeup_fd(outside.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                before[number] = signal.signal(number, lambda got, _frame: self._signals.append(got))
            try:
                yield inside
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(old)
