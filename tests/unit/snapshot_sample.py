"""One VM as a broker has it, always the same: what is recorded of it in tests/unit/snapshots must stay readable."""

from __future__ import annotations

from dataclasses import replace

from ovs_hotswap.broker.persist.snapshot import LinkParts, VmParts
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import DirtyLog, Region, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import Role, SentState, reconcile, scratch_region

OFFER = Offer(0x1_7060_83FF, 0x1_001F, 2)
MEMORY = 1 << 30


class Handle:
    """A descriptor that is only a number."""

    def __init__(self, serial: int) -> None:
        self.serial = serial

    def fileno(self) -> int:
        return self.serial

    def detach(self) -> int:
        return self.serial

    def close(self) -> None:
        pass


def sample() -> VmParts:
    """Two queue pairs, of which the guest uses one; a migration is under way; side a owns the rings, b is parked."""
    memory = (
        Region(0, 3 * MEMORY, 0x7F00_0000_0000, 0, Handle(11)),
        Region(4 * MEMORY, MEMORY, 0x7F00_C000_0000, 3 * MEMORY, Handle(12)),
    )
    rings = tuple(
        Ring(
            256 << index, RingAddress(1, at := 0x7F00_0010_0000 + 0x10_0000 * index, at + 0x8000, at + 0x4000, 64), 7,
            VringFd(True, Handle(20 + index)), VringFd(True, Handle(30 + index) if index else None), True,
        )
        for index in range(2)
    )  # fmt: skip
    unused = (Ring(call=VringFd(True, Handle(32)), enabled=False), Ring(call=VringFd(True, Handle(33)), enabled=False))
    state = GuestState(
        0x1_7060_83FF, 0x1_001F, True, memory, rings + unused, 0xF, 1500, DirtyLog(1 << 17, 4096, Handle(13))
    )
    scratch = Handle(10)
    links = {
        side: LinkParts(
            Handle(40 + number), 4711 + number, 123456 + number, OFFER,
            reconcile(SentState(), state, role, scratch_region(scratch), OFFER, lambda _: 7)[1],
        )
        for number, (side, role) in enumerate({Side.A: Role.OWNER, Side.B: Role.PARKED}.items())
    }  # fmt: skip
    return VmParts(
        name="vm0", home=Side.A, state=state, ownership=Ownership(Side.A, Certainty.OWNS), scratch=scratch,
        qemu=Handle(42), offered=OFFER, links=links, park_wanted=frozenset({Side.B}), suspects={}, cut_pid=0, moves=3,
    )  # fmt: skip


def newest_sample() -> VmParts:
    """This is the same VM in a moment that only the newest format can describe."""
    vm = sample()
    stopped = replace(vm.state.rings[3], base=None, life=2)
    return replace(
        vm,
        state=replace(vm.state, rings=(*vm.state.rings[:3], stopped)),
        links={side: replace(link, due=side is Side.B, born=None) for side, link in vm.links.items()},
        suspects={Side.B: 4699},
        born={4699: 123400},
        half=(bytes.fromhex("050000000100000048000000"), (Handle(43),)),
    )
