"""What each patch to DPDK 17.11's vhost library is for, asked of an instance of its own for each question.

Prints a line for each; the exit status is 1 if an answer is not that of a patched instance.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request, RingAddress
from tests.old.bed import echoes, fence, one_vm
from tests.old.switch import OldSwitchError
from tests.support.ending import end_on_sigterm
from tests.support.vhost_qemu import FakeQemu, HungUp, Traffic

_TX = 1
_NOWHERE = 1 << 45  # no region has this user address
_LIMIT = 1 << 30  # packets
_TURNS = 300
_OTHER = 0x5A5A  # no flags of a ring


def _placed(vm: FakeQemu, address: RingAddress) -> int:
    """What the switch answers to new addresses of the transmit ring."""
    data = messages.build_ring_address(_TX, address, messages.VERSION | messages.NEED_REPLY)
    return int(messages.U64.unpack(vm.ask(Request.SET_VRING_ADDR, data))[0])


def _enable(vm: FakeQemu, value: int) -> None:
    vm.say(messages.build_ring_value(Request.SET_VRING_ENABLE, _TX, value))


def disabled_is_quiet(vm: FakeQemu) -> None:
    """Patch 1: when the switch has handled SET_VRING_ENABLE 0, nothing moves in the ring."""
    at = vm.layouts[_TX].used
    with Traffic([vm], _LIMIT, burst=64, pause_s=0.0):
        for _ in range(_TURNS):
            _enable(vm, 0)
            fence(vm)
            used = vm.memory.view[at + 2 : at + 4].cast("H")
            before = used[0]
            time.sleep(0.001)
            assert used[0] == before, "a disabled ring moves"
            used.release()
            _enable(vm, 1)


def placed_under_traffic(vm: FakeQemu) -> None:
    """Patch 1: addresses of an enabled ring are set while it is in use."""
    with Traffic([vm], _LIMIT, burst=64, pause_s=0.0):
        for _ in range(_TURNS):
            vm.say(messages.build_ring_address(_TX, vm.address(_TX)))
            fence(vm)


def enabled_is_placed(vm: FakeQemu) -> None:
    """Patch 2: a ring that was placed while it was disabled works when it is enabled."""
    _enable(vm, 0)
    vm.say(messages.build_ring_address(_TX, vm.address(_TX)))
    fence(vm)
    _enable(vm, 1)
    fence(vm)


def memory_is_changed(vm: FakeQemu) -> None:
    """Patch 3: memory is plugged and unplugged while the guest sends."""
    with Traffic([vm], _LIMIT, burst=64, pause_s=0.0):
        for turn in range(_TURNS):
            vm.change_memory(1 + turn % 4)
            fence(vm)


def memory_is_lost(vm: FakeQemu) -> None:
    """Patch 3: a memory table that cannot be mapped does no harm, nor does a kick, and the next table repairs it."""
    vm.say(messages.build(Request.SET_MEM_TABLE, vm.memory_table()), [vm.kicks[_TX]] * vm.regions)
    fence(vm)
    vm.say(messages.build_ring_descriptor(Request.SET_VRING_KICK, _TX, present=True), [vm.kicks[_TX]])
    fence(vm)
    vm.share_memory()
    fence(vm)


def stopped_is_left_alone(vm: FakeQemu) -> None:
    """Patches 3 and 5: a new memory table is not searched for a ring that was stopped, and nothing is written there."""
    vm.drain()
    vm.stop_driver()
    at = vm.layouts[_TX].used
    flags = vm.memory.view[at : at + 2].cast("H")
    flags[0] = _OTHER
    vm.share_memory()
    fence(vm)
    assert flags[0] == _OTHER, "memory that was a ring is written"
    flags.release()
    vm.start_driver()


def answer_is_true(vm: FakeQemu) -> None:
    """Patch 4: addresses that lie nowhere are refused, and do no harm."""
    good = vm.address(_TX)
    assert _placed(vm, replace(good, descriptors=_NOWHERE)) == 1, "an address that lies nowhere was accepted"
    assert _placed(vm, good) == 0, "a good address was refused"


def kicks_stay_off(vm: FakeQemu) -> None:
    """Patch 5: a ring says at its new place that it wants no kicks."""
    at = vm.layouts[_TX].used
    flags = vm.memory.view[at : at + 2].cast("H")
    assert flags[0] == 1, "kicks are on from the beginning"
    flags[0] = 0
    vm.say(messages.build_ring_address(_TX, vm.address(_TX)))
    fence(vm)
    assert flags[0] == 1, "kicks are on at the new place"
    flags.release()


QUESTIONS: tuple[Callable[[FakeQemu], None], ...] = (
    disabled_is_quiet, placed_under_traffic, enabled_is_placed, memory_is_changed, memory_is_lost,
    stopped_is_left_alone, answer_is_true, kicks_stay_off,
)  # fmt: skip


def ask(tree: Path, question: Callable[[FakeQemu], None]) -> str | None:
    """Why the answer is wrong, or ``None``."""
    try:
        with one_vm(tree) as (switch, vm):
            try:
                question(vm)
                echoes(vm)
            except (HungUp, AssertionError):
                time.sleep(0.5)
                switch.check()  # a death tells more
                raise
    except OldSwitchError as error:
        return str(error).partition("\n")[0]
    except HungUp:
        return "the switch hung up"
    except AssertionError as error:
        return str(error)
    return None


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.old.probe", description=__doc__)
    parser.add_argument("tree", type=Path, help="where Open vSwitch 2.9.0 was built")
    parser.add_argument("names", nargs="*", help="of the questions; all without")
    arguments = parser.parse_args()
    bad = 0
    for question in QUESTIONS:
        if arguments.names and question.__name__ not in arguments.names:
            continue
        wrong = ask(arguments.tree, question)
        bad += wrong is not None
        print(f"{question.__name__}: {wrong or 'ok'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
