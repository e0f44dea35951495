"""How far the PMD threads of both instances have come: by that is known what they have done with a frame."""

from __future__ import annotations

from collections.abc import Mapping, Set

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.pmd import pmd_iterations, pmd_rxqs
from ovs_hotswap.switch.rpc import NoAnswer

Counts = Mapping[int, int] | None
_TURNS = 2048 // 32 + 2
_PASSED_S = 1.0  # a thread that has not come round by then hangs, and what it holds is lost: asleep it needs 0.7 s
_NEEDED_S = 5.0  # the same of the side that is to serve the VMs: it may be slow, nothing depends on it yet


def drain_pmd_queues(host: Host, needed: Side | None = None) -> None:
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


def comes_round(host: Host, side: Side) -> bool:
    """Whether each PMD thread of the side that has queues to poll goes on: nothing that a guest does decides that."""
    cores = _polling(host, side, _NEEDED_S)
    before = None if cores is None else _iterations(host, side, cores, _NEEDED_S)
    return _come_round(host, side, cores, before, _NEEDED_S)


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
