"""The process in which a fleet's front ends live, and which starts that of its drivers.

It is not the benchmark's own: each ring has four descriptors here, and the Python bindings of Open vSwitch, which a
benchmark uses, wait with select(2), which knows 1024.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection

from pyroute2 import netns

from bench.guests.drivers_process import DriversProcess
from bench.guests.front import Acceptor
from bench.guests.rings import HUGE_PAGE, Shape
from bench.guests.spec import FleetSpec, RemoteHost
from tests.support.vhost_qemu import FrontEnd
from tests.support.vhost_rings import Shared

_MFD_HUGE_2MB = 21 << 26  # memfd_create(2), linux/memfd.h


class House:
    """Memory, front ends and drivers of the VMs of ``spec``. Context manager."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self._stack = ExitStack()
        self._fronts: list[FrontEnd] = []
        self._drivers: DriversProcess
        self._doorman: Acceptor

    def __enter__(self) -> House:
        spec, shape = self.spec, self.spec.shape
        try:
            for vm in spec.vms:
                memory = _memory(vm.name, shape)
                self._stack.callback(memory.close)
                self._fronts.append(FrontEnd(vm.socket, memory, shape.layouts, shape.memory, features=spec.features))
            self._start_drivers()
            self._doorman = Acceptor(self._fronts)
            self._stack.callback(self._doorman.close)
            self._doorman.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_drivers(self) -> None:
        spec = self.spec
        remote = _remote_socket(spec.remote) if spec.remote is not None and spec.remote_vms else None
        try:
            self._drivers = self._stack.enter_context(
                DriversProcess(spec, [front.memory.fd for front in self._fronts], remote)
            )
        finally:
            if remote is not None:
                remote.close()

    @property
    def drivers_pid(self) -> int:
        return self._drivers.pid

    def obey(self, order: str, *arguments: object) -> object:
        """Carry out one order; most are the drivers'. Raises EOFError or OSError if those have ended."""
        match order, *arguments:
            case "served", float(timeout):
                return self._doorman.wait_up(timeout), list(self._doorman.faults)
            case "boots", *_:
                return tuple(self._doorman.boots)
            case "pairs", int(vm), int(pairs):
                self._fronts[vm].set_active_pairs(pairs)
                return None
        self._drivers.control.send((order, *arguments))
        return self._drivers.control.recv()


def _memory(name: str, shape: Shape) -> Shared:
    huge = shape.page == HUGE_PAGE
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | _MFD_HUGE_2MB if huge else 0)
    descriptor = os.memfd_create(f"guest-{name}", flags)
    os.ftruncate(descriptor, shape.memory)
    return Shared(name, shape.memory, descriptor)


def _remote_socket(remote: RemoteHost) -> socket.socket:
    """A packet socket on the device. A thread of its own enters the namespace; the socket stays in it."""
    made: list[socket.socket] = []
    faults: list[OSError] = []

    def make() -> None:
        try:
            netns.setns(remote.namespace, flags=0)
            protocol = 0x0800
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(protocol))
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            one.bind((remote.device, protocol))
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if faults:
        for one in made:
            one.close()
        raise RuntimeError(f"{remote.device} in network namespace {remote.namespace}: {faults[0]}") from faults[0]
    return made[0]


def main() -> None:
    """Argument: the descriptor of the connection to the fleet, which sends the ``FleetSpec`` and then its orders."""
    control = Connection(int(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with House(control.recv()) as house:
            control.send(house.drivers_pid)
            while True:
                control.send(house.obey(*control.recv()))
    except (EOFError, BrokenPipeError):
        return  # the fleet has ended, or the drivers: it will see this connection end


if __name__ == "__main__":
    main()
