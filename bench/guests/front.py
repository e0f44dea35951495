"""The front ends of many VMs: each listens as its QEMU would, and is served whenever a switch or broker connects.

As QEMU with ``server=on`` and ``reconnect``: when the connection ends the rings stay as they are, and the next one goes
on behind their used indices (QEMU 7.2, ``virtio_queue_restore_last_avail_idx``).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence

from tests.support.vhost_qemu import FrontEnd, HungUp


class Acceptor:
    """Serves ``fronts`` from ``start`` to ``close``. ``bases(k)``: the used indices of front end ``k``'s rings now.

    A handshake runs in a thread of its own, since a switch may take half a second to answer it.
    """

    def __init__(self, fronts: Sequence[FrontEnd]) -> None:
        self._fronts = list(fronts)
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._by_fd: dict[int, int] = {}
        self._up = [False] * len(fronts)
        self._changed = threading.Condition(self._lock)
        self._handshakes: set[threading.Thread] = set()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="doorman", daemon=True)
        self.boots = [0] * len(fronts)
        self.faults: list[str] = []

    def start(self) -> None:
        self._epoll.register(self._wake, select.EPOLLIN)
        for number, front in enumerate(self._fronts):
            front.listen()
            self._await_connection(number)
        self._thread.start()

    def wait_up(self, timeout: float, numbers: Sequence[int] | None = None) -> list[int]:
        """Wait until the rings of all (of ``numbers``) have been started; the numbers of those that were not."""
        wanted = range(len(self._fronts)) if numbers is None else numbers
        with self._changed:
            self._changed.wait_for(lambda: all(self._up[number] for number in wanted), timeout)
            return [number for number in wanted if not self._up[number]]

    def close(self) -> None:
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for front in self._fronts:
            front.close()  # ends the handshakes
        for thread in list(self._handshakes):
            thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _await_connection(self, number: int) -> None:
        listener, _ = self._fronts[number].filenos()
        with self._lock:
            self._by_fd[listener] = number
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLONESHOT)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if self._ending:
                    return
                with self._lock:
                    number = self._by_fd.pop(fd)
                self._epoll.unregister(fd)
                if fd == self._fronts[number].filenos()[0]:
                    thread = threading.Thread(target=self._handshake, args=(number,), daemon=True)
                    self._handshakes.add(thread)
                    thread.start()
                else:
                    self._gone(number)

    def _gone(self, number: int) -> None:
        with self._changed:
            self._up[number] = False
        self._fronts[number].drop()
        self._await_connection(number)

    def _handshake(self, number: int) -> None:
        front = self._fronts[number]
        try:
            front.accept()
            front.initialise()
            front.start_rings(front.used_indices())
        except HungUp:
            if not self._ending:
                self._gone(number)
        except (OSError, AssertionError) as error:
            if not self._ending:
                self.faults.append(f"{front.path.name}: {error!r}")
        else:
            self._settled(number)
        finally:
            self._handshakes.discard(threading.current_thread())

    def _settled(self, number: int) -> None:
        _, connection = self._fronts[number].filenos()
        if connection is None or self._ending:
            return
        with self._changed:
            self._by_fd[connection] = number
            self._up[number] = True
            self.boots[number] += 1
            self._changed.notify_all()
        self._epoll.register(connection, select.EPOLLRDHUP)
