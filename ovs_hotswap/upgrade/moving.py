"""Handing VMs over to an instance: the first one alone, so that a fault of the instance costs one VM its network and
not many, then all others; after each every guest is seen served."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence, Set

from ovs_hotswap.errors import BrokerError, HotswapError, SwitchError
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.pmd import pmd_iterations, pmd_rxqs
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.upgrade.host import Host
from ovs_hotswap.upgrade.plan import Run
from ovs_hotswap.upgrade.standby import Document

_SERVED_S = 2.0
Counts = Mapping[int, int] | None
_TURNS = 2048 // 32 + 2
_PASSED_S = 1.0  # a thread that has not come round by then hangs, and what it holds is lost: asleep it needs 0.7 s
_NEEDED_S = 5.0  # the same of the side that is to serve the VMs: it may be slow, nothing depends on it yet


def move_all(host: Host, to: Side, run: Run, *, back: bool = False) -> dict[str, float]:
    """Hand every VM to ``to``, one alone and then all others, and see each served there. Returns microseconds by VM.
    ``back``: to where they were served before, and whatever that is like, nothing keeps them from it.

    Frames that arrived during a move are delivered by the new owner afterwards. Raises BrokerError if a VM stayed
    where it was, StateUnknown if its owner is not known.
    """
    vms = [vm for vm in host.road.vms(read=False) if vm["owner"] != to or vm["certainty"] != "owns"]
    moves: dict[str, float] = {}
    all_names = [vm["name"] for vm in vms]
    try:
        if vms:
            _prefer(host, to)
            arm(host, all_names, to, None if back else to)
        with host.message_threads() as threads:
            for start, batch in ((0, vms[:1]), (1, vms[1:])):
                if batch:
                    _move(host, batch, to, run, moves, (start, len(vms)), threads)
    except HotswapError:
        with contextlib.suppress(BrokerError):
            host.road.disarm(all_names)  # those that were not moved
        raise
    finally:
        if moves:
            let_copies_come(host)
        _deliver(host, to, {name: host.road.undelivered(name) for name in moves})
    return moves


def _prefer(host: Host, to: Side) -> None:
    """Whoever is to run first in these moves. They are made without it too."""
    for side, rank in ((to, Rank.TAKES), (to.other, Rank.GIVES)):
        with contextlib.suppress(SwitchError):
            host.prefer_threads(side, rank)


def arm(host: Host, names: Sequence[str], to: Side, needed: Side | None) -> None:
    """Have frames for VMs caught on ``to``; those that were not caught yet have reached the VM when this returns. As
    ``let_copies_come`` for ``needed``."""
    if host.road.arm(names, to):
        let_copies_come(host, needed)


def _move(
    host: Host, batch: Sequence[Document], to: Side, run: Run, moves: dict[str, float], counts: tuple[int, int],
    threads: Mapping[Side, MessageThread],
) -> None:  # fmt: skip
    """``counts``: VMs before the batch, and all."""
    names = [vm["name"] for vm in batch]
    done, fault = host.road.move_many(names, to, threads)
    for number, each in enumerate(done, counts[0] + 1):
        text = "is there" if each["owner"] == to else "has no guest to move"
        if each["total_us"]:
            moves[each["vm"]] = each["total_us"]
            text = f"{each['total_us'] / 1000:.2f} ms"
        run.progress(text, item=each["vm"], count=number, total=counts[1])
    if fault is not None:
        raise fault
    _see_served(host, names, to)


def _see_served(host: Host, names: Sequence[str], side: Side) -> None:
    """What guests have to send must be taken: an address that does not translate is not reported otherwise."""

    def unserved() -> list[str]:
        return host.road.unserved(names)

    host.wait(lambda: not unserved(), _SERVED_S,
              lambda: f"instance {side} does not take what the guest sends of VM {', '.join(unserved())}")  # fmt: skip


def let_copies_come(host: Host, needed: Side | None = None) -> None:
    """Return when every frame that either side had taken in before, and its copy, has come where it goes.

    From a receive queue it goes to a VM or the peer link in an iteration of a PMD thread, from the peer link to the VM
    in one of the other side's; each takes 32 packets of a queue (OVS, NETDEV_MAX_BURST), which may hold 2048. A thread
    that shares its core may need a tenth of a second for that. What a side that hangs has taken in is lost; raises
    SwitchError if that is the one that is ``needed``.
    """
    patience = {side: _NEEDED_S if side is needed else _PASSED_S for side in Side}
    alive = {side: _polling(host, side, patience[side]) for side in Side}
    for _ in range(2):
        before = {
            side: _iterations(host, side, cores, patience[side]) for side, cores in alive.items() if cores is not None
        }
        alive = {
            side: alive[side]
            for side, count in before.items()
            if _come_round(host, side, alive[side], count, patience[side])
        }
        if needed is not None and needed not in alive:
            raise SwitchError(f"the PMD threads of instance {needed} do not come round: it hangs, or has no core")


def _come_round(host: Host, side: Side, cores: Set[int] | None, before: Counts, patience: float) -> bool:
    """Wait until the side's threads, which had done ``before``, have each emptied a queue; the iteration under way does
    not count."""

    def passed() -> bool:
        now = _iterations(host, side, cores, patience)
        return now is not None and all(count - (before or {}).get(core, 0) >= _TURNS for core, count in now.items())

    try:
        if before is not None:
            host.wait(passed, patience, str)
            return True
    except SwitchError:
        pass
    return False


def _polling(host: Host, side: Side, patience: float) -> Set[int] | None:
    """Cores of the side's threads that have queues to poll; none of a side that does not run, ``None`` if it does not
    answer."""
    try:
        queues = pmd_rxqs(host.control(side), timeout=patience / 2)
        return {queue.core for port in queues.values() for queue in port if queue.enabled}
    except NoAnswer:
        return None
    except SwitchError:
        return set()


def _iterations(host: Host, side: Side, cores: Set[int] | None, patience: float) -> Counts:
    """What the threads on these cores have done, by core; as ``_polling``."""
    try:
        counts = pmd_iterations(host.control(side), timeout=patience / 2) if cores else {}
        return {core: count for core, count in counts.items() if cores and core in cores}
    except NoAnswer:
        return None
    except SwitchError:
        return {}


def _deliver(host: Host, side: Side, frames: Mapping[str, Sequence[bytes]]) -> None:
    for name, caught in frames.items():
        for frame in caught:
            host.openflow(side).packet_out(frame, f"output:{host.ofport(name)}")
