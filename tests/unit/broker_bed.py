"""A VM as a broker has it, on real sockets; the tests are QEMU and the switches."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ovs_hotswap.broker.persist import recovery
from ovs_hotswap.broker.persist.snapshot import Table, VmParts, Work, encode
from ovs_hotswap.broker.persist.snapshot_reader import Received, decode
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.time_budget import Turns
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import Journal, NoJournal
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd
from ovs_hotswap.vhostuser.guest_memory import make_scratch
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import Region, Request, RingAddress
from ovs_hotswap.vhostuser.ownership import Ownership
from ovs_hotswap.vhostuser.reconcile import is_parking_address, reconcile, scratch_region

OFFER = Offer(1 << messages.Feature.PROTOCOL_FEATURES, 1 << messages.ProtocolFeature.MQ, 1)
SIZE = 1 << 20
PARKED = "SET_VRING_ADDR, parked"
NUMBERS = {"GET_FEATURES": OFFER.features, "GET_PROTOCOL_FEATURES": OFFER.protocol_features,
           "GET_QUEUE_NUM": 1}  # fmt: skip


class Peer:
    """A switch's or QEMU's end of a connection."""

    def __init__(self) -> None:
        self.broker, self.end = socket.socketpair()
        self.end.setblocking(False)
        self._stop = socket.socketpair()

    def heard(self) -> list[str]:
        """The messages that have come since this was last asked."""
        found, data = [], b""
        try:
            while more := self.end.recv(1 << 16):
                data += more
        except BlockingIOError:
            pass
        while data:
            request, _, size = messages.HEADER.unpack_from(data)
            body, data = data[messages.HEADER.size : messages.HEADER.size + size], data[messages.HEADER.size + size :]
            found.append(Request(request).name)
            if found[-1] == "SET_VRING_ADDR":
                _, flags, descriptors, used, available, log = messages.VRING_ADDR.unpack(body)
                found[-1] = (
                    PARKED if is_parking_address(RingAddress(flags, descriptors, used, available, log)) else found[-1]
                )
        return found

    def hung_up(self) -> bool:
        """Whether the broker has closed its end; what it sent before is taken."""
        self.heard()
        self.end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return self.end.recv(1) == b""
        return False

    def serve(self) -> None:
        """Answer each message that is to be answered, until the broker hangs up, or ``stop``."""
        while self._stop[0] not in select.select([self.end, self._stop[0]], [], [])[0]:
            names = self.heard()
            if not names:
                return
            self.answer(names)

    def stop(self) -> None:
        self._stop[1].send(b"x")

    def close(self) -> None:
        for each in (self.end, *self._stop):
            each.close()

    def answer(self, names: Iterable[str]) -> None:
        for name in names:
            if name in NUMBERS:
                answer = messages.build_number(Request[name], NUMBERS[name])
                request, _, size = messages.HEADER.unpack_from(answer)
                head = messages.HEADER.pack(request, messages.VERSION | messages.REPLY, size)
                self.end.send(head + answer[messages.HEADER.size :])


class Bed:
    """A VM whose guest uses one ring, and ``qemu`` and ``switches``, its peers. Each of the brokers has a ``Vm``."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.processes = Processes(self.loop, lambda _: None)
        self.qemu, self.switches = Peer(), {side: Peer() for side in Side}
        self.vms: list[Vm] = []

    def vm(self) -> Vm:
        made = Vm("vm0", self.loop, Delays(self.loop), Turns(self.loop), self.processes, make_scratch())
        self.vms.append(made)
        return made

    def served(self, ownership: Ownership, parked: Iterable[Side] = Side) -> Vm:
        """The first broker's, with nothing under way."""
        memory, vm = OwnedFd(os.memfd_create("guest")), self.vm()
        os.ftruncate(memory.fileno(), SIZE)
        ring = Ring(
            256, RingAddress(0, 0, 0x8000, 0x4000, 0), 0, VringFd(True, OwnedFd(os.eventfd(0))), VringFd(), True
        )
        state = GuestState(OFFER.features, OFFER.protocol_features, True, (Region(0, SIZE, 0, 0, memory),), (ring,))
        links = {side: SwitchConnection(side, Channel(peer.broker)) for side, peer in self.switches.items()}
        qemu = Channel(self.qemu.broker)
        vm.commit(vm.record._replace(home=Side.A, state=state, ownership=ownership, qemu=qemu, links=links))
        vm.commit(vm.record._replace(offered=OFFER, park_wanted=frozenset(parked)))
        for side, link in links.items():
            self.processes.track(link.pid)
            link.offer = OFFER
            _, link.told = reconcile(link.told, vm.state, vm.role(side), scratch_region(vm.scratch), OFFER, lambda _: 0)
        return vm

    def next(
        self, vm: Vm, work: Work | None = None, given: VmParts | None = None,
        resync_with: Request = Request.GET_PROTOCOL_FEATURES,
    ) -> Vm:  # fmt: skip
        """The VM in the next broker, which does not act on it yet; the broker before no longer does."""
        given = given or kept(vm)
        vm.pause_reading()
        made = self.vm()
        made.scratch.close()
        made.scratch = given.scratch
        made.commit(made.record._replace(quarantine=vm.quarantine))
        recovery.restore(made, given, self.processes.track, work, resync_with)
        return made

    def heard(self) -> dict[Side, list[str]]:
        return {side: peer.heard() for side, peer in self.switches.items()}

    def close(self) -> None:
        for vm in reversed(self.vms):
            vm.close()
        self.processes.close()
        for peer in (self.qemu, *self.switches.values()):
            peer.close()


@dataclass
class Listening:
    """A journal that calls ``act`` for each note, before it passes the note to ``journal``."""

    act: Callable[[], None]
    journal: Journal = field(default_factory=NoJournal)

    def start_over(self, processes: Mapping[Side, Process], qemu: Channel | None) -> None:
        self.act()
        self.journal.start_over(processes, qemu)

    def continues(self, told: Side | None, moving: bool) -> None:
        self.act()
        self.journal.continues(told, moving)


def kept(vm: Vm) -> VmParts:
    """Its state, as another process would have it."""
    table = Table()
    with recovery.parts(vm) as given:
        document = encode(given, table)
        return decode(document, Received([OwnedFd(os.dup(each.fileno())) for each in table.descriptors]))


def run(test: Callable[[Bed], Awaitable[None]]) -> None:
    async def main() -> None:
        bed = Bed()
        try:
            await test(bed)
        finally:
            bed.close()

    asyncio.run(main())


async def turns(of: int = 5) -> None:
    """Let the event loop turn, so that what has arrived is read."""
    for _ in range(of):
        await asyncio.sleep(0)
