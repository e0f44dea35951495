"""The old switch gives its guest up and claims it, or its port is removed and added, again and again, while the guest
sends or hangs up.

Prints each time; raises what is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.old.bed import READY_S, echoes, fence, one_vm
from tests.old.switch import OldSwitch, OldSwitchError
from tests.support.ending import end_on_sigterm
from tests.support.vhost_qemu import FakeQemu, HungUp, Traffic
from tests.support.waiting import eventually

_PORT, _OTHER = "vm0", "other"
_LIMIT = 1 << 30
# When the front end goes: from before a command is begun to after it, in an order that few turns are spread by, too.
_MOMENTS = 40
_MOMENT_S = 0.001
_STRIDE = 7


def _maps(switch: OldSwitch) -> int:
    """How often the switch maps the guest's memory."""
    return Path(f"/proc/{switch.pid}/maps").read_text().count("/memfd:guest")


def _state(switch: OldSwitch, port: str = _PORT) -> str:
    return switch.appctl("netdev-dpdk/vhost-state", port).splitlines()[0]


def give_up(switch: OldSwitch, vm: FakeQemu) -> None:
    """When the front end sees the end of the stream, the switch is off the guest's memory."""
    said: list[str] = []
    with Traffic([vm], _LIMIT, burst=64, pause_s=0.0):
        thread = threading.Thread(target=lambda: said.append(switch.appctl("netdev-dpdk/vhost-yield", _PORT)))
        thread.start()
        vm.wait_hung_up(READY_S)
        mapped = _maps(switch)
        thread.join()
    assert mapped == 0, "hung up with the guest's memory mapped"
    assert said == ["OK\n"], said
    assert _state(switch) == "state: yielded"


@contextlib.contextmanager
def _hanging_up(vm: FakeQemu, after: float) -> Iterator[None]:
    """The front end closes the connection ``after`` seconds."""
    timer = threading.Timer(after, vm.drop)
    timer.start()
    yield
    timer.join()


def hang_up(switch: OldSwitch, vm: FakeQemu, after: float) -> None:
    """The front end goes at about the moment at which the switch gives the guest up."""
    with _hanging_up(vm, after):
        answer = switch.appctl("netdev-dpdk/vhost-yield", _PORT)
    assert answer == "OK\n", answer
    assert _maps(switch) == 0


def remove(switch: OldSwitch, vm: FakeQemu, after: float) -> None:
    """The front end goes at about the moment at which its port is removed."""
    with _hanging_up(vm, after):
        switch.vsctl("del-port", "br0", _PORT)
    eventually(lambda: _maps(switch) == 0, "the guest's memory is mapped without its port")


def claim(switch: OldSwitch, vm: FakeQemu) -> None:
    assert switch.appctl("netdev-dpdk/vhost-claim", _PORT) == "OK\n"
    connect(switch, vm)


def take(switch: OldSwitch, vm: FakeQemu) -> None:
    """A port whose socket was given to another one is not claimed, and the other one keeps the guest."""
    assert switch.appctl("netdev-dpdk/vhost-yield", _PORT) == "OK\n"
    vm.wait_hung_up(READY_S)
    path = f"options:vhost-server-path={switch.sockets[0]}"
    switch.vsctl("add-port", "br0", _OTHER, "--", "set", "Interface", _OTHER, "type=dpdkvhostuserclient", path)
    connect(switch, vm, _OTHER)
    with contextlib.suppress(OldSwitchError):
        raise AssertionError("claimed: " + switch.appctl("netdev-dpdk/vhost-claim", _PORT))
    assert _state(switch) == "state: yielded"
    echoes(vm)
    switch.vsctl("del-port", "br0", _OTHER)
    vm.wait_hung_up(READY_S)
    claim(switch, vm)


def connect(switch: OldSwitch, vm: FakeQemu, port: str = _PORT) -> None:
    """The switch serves the guest again."""
    while True:
        vm.accept(READY_S)
        try:
            vm.initialise()
            break
        except HungUp:  # it had connected again before it gave the guest up
            vm.drop()
    vm.start_driver(vm.used_indices())
    fence(vm)
    eventually(lambda: _state(switch, port) == "state: active", "not active again")
    echoes(vm)


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.old.yields", description=__doc__)
    parser.add_argument("tree", type=Path, help="where Open vSwitch 2.9.0 was built")
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    with one_vm(arguments.tree) as (switch, vm):
        take(switch, vm)
        for turn in range(arguments.turns):
            after = turn * _STRIDE % _MOMENTS * _MOMENT_S
            give_up(switch, vm)
            claim(switch, vm)
            hang_up(switch, vm, after)
            claim(switch, vm)
            remove(switch, vm, after)
            switch.add_port(0)
            connect(switch, vm)
            print(f"{turn + 1} of {arguments.turns}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
