"""Starts the process that is the drivers of all simulated guests (``driver``)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from bench.guests.plan import Plan
from bench.guests.spec import FleetSpec

_END_S = 5.0


class DriversProcess:
    """The drivers of the VMs of ``spec``. ``memory``: the descriptor of each VM's memory. ``remote``: a packet socket
    at the remote host. The caller may close the descriptors inside the context, where the receive rings are filled.

    ``control`` takes the orders of ``driver``.
    """

    def __init__(self, spec: FleetSpec, memory: Sequence[int], remote: socket.socket | None = None) -> None:
        here, there = socket.socketpair()
        plan = Plan(
            shape=spec.shape, memory=tuple(memory), macs=tuple(vm.mac for vm in spec.vms), targets=spec.targets,
            remote=None if remote is None else remote.fileno(), remote_mac=spec.remote.mac if spec.remote else "",
            frame=spec.frame, header=spec.header, pause_us=spec.pause_us, nice=spec.nice,
            flows=spec.flows,
        )  # fmt: skip
        passed = [*plan.memory, there.fileno(), *([] if plan.remote is None else [plan.remote])]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.guests.driver", plan.text(), str(there.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=passed, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        there.close()
        self.control = Connection(here.detach())

    def __enter__(self) -> DriversProcess:
        try:
            self.control.recv()  # the receive rings are filled
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    def status(self) -> int | None:
        """The exit status; ``None`` while the process runs."""
        return self._child.poll()
