"""Everything at once, at random, for a while: no ring is ever touched by two switches, and in the end every VM is
served. A failure prints the seed; OVS_HOTSWAP_SEED repeats it as far as the machine's timing allows."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.model import Side
from tests.support.broker_bed import PACKETS, Bed, MakeBed
from tests.support.vhost_qemu import FakeQemu, Traffic
from tests.support.vhost_switch import SwitchProcess

VMS = 3
SECONDS = 20.0


class Chaos:
    """``steps`` are what can happen; each is one call. What the broker refuses is not a fault."""

    def __init__(
        self, bed: Bed, vms: list[FakeQemu], switches: dict[Side, SwitchProcess], chance: random.Random
    ) -> None:
        self._bed = bed
        self._vms = vms
        self._switches = switches
        self._chance = chance
        self.moved = 0
        self.refused = 0
        self.done: list[str] = []
        self._steps: list[tuple[int, Callable[[], None]]] = [
            (30, self.move), (6, self.reboot), (6, self.memory), (6, self.queues), (6, self.hang_up), (4, self.pause),
            (4, self.unpark), (2, self.requit),
        ]  # fmt: skip

    def _vm(self) -> int:
        return self._chance.randrange(len(self._vms))

    def _side(self) -> Side:
        return self._chance.choice(list(Side))

    def step(self) -> None:
        (action,) = self._chance.choices([step for _, step in self._steps], [weight for weight, _ in self._steps])
        self.done.append(action.__name__)
        try:
            action()
        except HotswapError:
            self.refused += 1

    def move(self) -> None:
        self._bed.client.move(f"vm{self._vm()}", self._side())
        self.moved += 1

    def reboot(self) -> None:
        self._vms[self._vm()].reboot()

    def memory(self) -> None:
        self._vms[self._vm()].change_memory(self._chance.randint(1, 8))

    def queues(self) -> None:
        vm = self._vms[self._vm()]
        vm.set_active_pairs(self._chance.randint(1, vm.pairs))
        vm.set_active_pairs(vm.pairs)

    def hang_up(self) -> None:
        self._switches[self._side()].hang_up(self._vm())

    def pause(self) -> None:
        """A switch hangs, for longer than a fence may take in half of all cases, while a VM is to be moved."""
        switch = self._switches[self._side()]
        switch.stop()
        try:
            self.move()
        finally:
            time.sleep(self._chance.choice([0.0, 0.2]))
            switch.go_on()

    def unpark(self) -> None:
        name, side = f"vm{self._vm()}", self._side()
        self._bed.client.unpark(name, side)
        self._bed.client.park(name, side)

    def requit(self) -> None:
        vm = self._vms[self._vm()]
        with vm.lock:
            vm.running = False
        vm.drain()
        vm.quit()
        vm.listen()
        vm.boot(timeout=20)


def test_chaos(make_bed: MakeBed) -> None:
    seed = int(os.environ.get("OVS_HOTSWAP_SEED", random.randrange(1 << 32)))
    print(f"OVS_HOTSWAP_SEED={seed}")
    bed = make_bed(VMS, fence_ms=100)
    switches = {side: bed.switch(side) for side in Side}
    vms = [bed.qemu(f"vm{k}", pairs=k + 1) for k in range(VMS)]
    for k in range(VMS):
        bed.client.park(f"vm{k}", Side.B)
    chaos = Chaos(bed, vms, switches, random.Random(seed))
    end = time.monotonic() + SECONDS
    with Traffic(vms, PACKETS - 1000):
        while time.monotonic() < end:
            chaos.step()
    print(f"{chaos.moved} moves, {chaos.refused} refusals: {' '.join(chaos.done)}")
    for k, vm in enumerate(vms):
        vm.set_active_pairs(vm.pairs)
        bed.wait(lambda name=f"vm{k}": bed.owner(name) is not None, f"vm{k} has an owner")  # type: ignore[misc]
        vm.drain()
    bed.ends_well(*enumerate(vms))
    assert chaos.moved > 10
    for k, vm in enumerate(vms):
        vm.change_memory(2)
        for side in Side:
            bed.client.park(f"vm{k}", side)
            bed.client.move(f"vm{k}", side)
    bed.ends_well(*enumerate(vms))
