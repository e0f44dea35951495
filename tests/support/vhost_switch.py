"""A switch for tests: many vhost-user back ends (``vhost_device``) and the one thread that serves them.

``SwitchThread`` runs it in the test's process, ``SwitchProcess`` in one of its own that can be stopped and killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.vhost_device import Port, SwitchSpec
from tests.support.vhost_rings import Ledger, Touches

HEADER_SIZE = 12  # of a virtio_net_hdr with num_buffers (virtio 1.2, 5.1.6)


class Switch:
    """All ports of one switch and the one thread that serves them: control messages and packets in turn."""

    def __init__(self, spec: SwitchSpec, ledger: Ledger, touches: Touches) -> None:
        self.ports = [Port(vm, spec, ledger, touches) for vm in range(len(spec.sockets))]
        self._idle_s = spec.idle_s
        self._poller = select.epoll()
        for port in self.ports:
            port.closing = self._poller.unregister
        self._by_fd: dict[int, Port] = {}
        self.ending = self.deaf = False

    def run(self) -> None:
        while not self.ending:
            self._connect()
            for fd, _ in () if self.deaf else self._poller.poll(0):
                self._by_fd[fd].readable()
            if not sum(port.serve() for port in self.ports):
                time.sleep(self._idle_s)
        for port in self.ports:
            port.hang_up()
        self._poller.close()

    def _connect(self) -> None:
        now = time.monotonic()
        for port in self.ports:
            if port.socket is None and now >= port.retry_at and port.connect():
                assert port.socket is not None
                self._by_fd[port.socket.fileno()] = port
                self._poller.register(port.socket, select.EPOLLIN)


class SwitchThread:
    """A switch in the test's own process. Context manager."""

    def __init__(self, spec: SwitchSpec, ledger: Ledger) -> None:
        self.touches = Touches(1 << 16)
        self.switch = Switch(spec, ledger, self.touches)
        self._thread = threading.Thread(target=self.switch.run, daemon=True)

    def __enter__(self) -> SwitchThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.switch.ending = True
        self._thread.join(10)
        self.touches.close()


class SwitchProcess:
    """A switch in a process of its own. Context manager; ``touches`` stays readable after ``kill``.

    ``pid_file`` is written if it is given, and named in its command line, as that of an ovs-vswitchd.
    """

    def __init__(self, spec: SwitchSpec, ledger: Ledger, pid_file: Path | None = None) -> None:
        self.touches = Touches(1 << 16)
        settings = {
            "spec": asdict(spec), "ledger": [ledger.vms, ledger.packets, ledger.fd],
            "touches": [self.touches.capacity, self.touches.fd],
        }  # fmt: skip
        named = [] if pid_file is None else [f"--pidfile={pid_file}"]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.vhost_switch", json.dumps(settings), *named],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=(ledger.fd, self.touches.fd), cwd=Path(__file__).parents[2],
        )  # fmt: skip
        if pid_file is not None:
            pid_file.parent.mkdir(parents=True, exist_ok=True)
            pid_file.write_text(f"{self.pid}\n")

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def runs(self) -> bool:
        return self._child.poll() is None

    def _order(self, **order: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        self._child.stdin.flush()
        assert self._child.stdout is not None
        self._child.stdout.readline()

    def hang_up(self, vm: int) -> None:
        """Close the connection for one VM; it is opened again after ``reconnect_s``."""
        self._order(vm=vm, do="hang_up")

    def say(self, vm: int, data: bytes, descriptors: int = 0) -> None:
        """Send bytes, with so many eventfds, to the broker as they are."""
        self._order(vm=vm, do="say", data=data.hex(), descriptors=descriptors)

    def deliver(self, vm: int, frame: bytes) -> None:
        """A frame for a VM has arrived; returns when it is in the VM's first receive ring, wherever that is."""
        self._order(vm=vm, do="deliver", data=(bytes(HEADER_SIZE) + frame).hex())

    def deafen(self, *, deaf: bool) -> None:
        """Make its message thread stuck, or continue it; packets are served in either case."""
        self._order(vm=0, do="deafen", deaf=deaf)

    def fail_at_fence(self, vm: int, answered: int, number: signal.Signals) -> None:
        """Have the process stop or die, when it would answer the fence behind the next ``answered`` ones for a VM."""
        self._order(vm=vm, do="fail", answered=answered, signal=int(number))

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped: the signal alone takes effect later."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def __enter__(self) -> SwitchProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.stdout.close()
        self.touches.close()


def _obey(switch: Switch) -> None:
    """Carry out orders from standard input until its end; the end is the switch's end."""
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        port = switch.ports[order["vm"]]
        if order["do"] == "deafen":
            switch.deaf = order["deaf"]
        elif port.socket is not None:
            with contextlib.suppress(OSError):
                _carry_out(order, port, port.socket)
        print(flush=True)
    switch.ending = True


def _carry_out(order: dict[str, Any], port: Port, connection: socket.socket) -> None:
    if order["do"] == "say":
        null = [os.eventfd(0) for _ in range(order["descriptors"])]
        try:
            socket.send_fds(connection, [bytes.fromhex(order["data"])], null)
        finally:
            for fd in null:
                os.close(fd)
    elif order["do"] == "deliver":
        port.arrived.append(bytes.fromhex(order["data"]))
        while port.arrived:
            time.sleep(0.0001)
    elif order["do"] == "fail":
        port.signal, port.fences = order["signal"], order["answered"]
    else:  # the device is the serving thread's own: let that find the end of the stream
        connection.shutdown(socket.SHUT_RDWR)


def main(settings: dict[str, Any]) -> None:
    ledger, touches = Ledger(*settings["ledger"]), Touches(*settings["touches"])
    switch = Switch(SwitchSpec(**settings["spec"]), ledger, touches)
    threading.Thread(target=_obey, args=(switch,), daemon=True).start()
    switch.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
