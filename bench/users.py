"""DPDK's virtio_user guests, of every kind, through a whole upgrade and back. Frames must flow before each, after each,
and while the VMs are parked on the standby; what is lost cannot be told of frames that go round (``kinds`` counts it).
"""

from __future__ import annotations

import contextlib
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.bed import Bed
from bench.testpmd import Guests
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

_PARKED = "park"
_NICE = 19  # the upgrade has the core, too


@dataclass(frozen=True, slots=True)
class User:
    """``properties``: of the device, as DPDK's virtio PMD has them. ``acks``: features that the guest must have acked
    for the kind to be what its name says; ``not_acks``: those it must not have."""

    name: str
    properties: str
    queues: int = 1
    acks: frozenset[str] = frozenset()
    not_acks: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


USERS = (
    User("virtio_user", "queues=1,in_order=0", not_acks=frozenset({"IN_ORDER"})),
    User("virtio_user, in_order", "queues=1", acks=frozenset({"IN_ORDER"})),
    User("virtio_user, in_order, no mergeable buffers", "queues=1,mrg_rxbuf=0",
         acks=frozenset({"IN_ORDER"}), not_acks=frozenset({"NET_MRG_RXBUF"})),
    User("virtio_user, asks for packed rings, is given split ones", "queues=1,packed_vq=1",
         not_acks=frozenset({"RING_PACKED"})),
    User("virtio_user, 4 queue pairs", "queues=4", queues=4, acks=frozenset({"NET_MQ"})),
)  # fmt: skip


@dataclass(slots=True)
class UserResult:
    """``rates``: frames a second before, when parked, after the upgrade and after the way back."""

    kind: str
    rates: list[int] = field(default_factory=list)
    moves_us: list[float] = field(default_factory=list)
    fault: str | None = None


def run_user(user: User, system: System) -> UserResult:
    result = UserResult(user.name)
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-us-")), 2, system, GuestOptions(queues=user.queues))
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        bed.start()
        guests = stack.enter_context(contextlib.closing(Guests(bed, user.properties, nice=_NICE)))
        try:
            _there_and_back(bed, user, guests, result)
        except HotswapError as error:
            result.fault = error.message
    return result


def _there_and_back(bed: Bed, user: User, guests: Guests, result: UserResult) -> None:
    def flows() -> None:
        guests.wait_flowing(bed)
        result.rates.append(guests.rates()[-1])

    def observe(event: Event) -> None:
        if event.kind is EventKind.DONE and event.step == _PARKED and len(result.rates) == 1:
            flows()

    flows()
    for vm in bed.host.backends.vms():
        names = set(vm.feature_names)
        if wrong := (user.acks - names) | (user.not_acks & names):
            result.fault = f"is another kind: {', '.join(sorted(wrong))}"
            return
    for _ in range(2):
        report = Upgrader(bed.host).upgrade("host", observe, force=True)
        result.moves_us += report.moves.values()
        flows()
