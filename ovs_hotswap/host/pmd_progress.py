"""The progress of both instances' PMD threads, which shows when a frame that was under way has arrived."""

from __future__ import annotations

from collections.abc import Mapping, Set

from ovs_hotswap.config import Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.pmd import pmd_iterations, pmd_rxqs
from ovs_hotswap.switch.rpc import NoAnswer

Counts = Mapping[int, int] | None
_TURNS = 2048 // 32 + 2
# A thread that has not completed its rounds by then hangs, and what it holds is lost. One that sleeps needs 0.7 s.
_PASSED_S = 1.0
_NEEDED_S = 5.0  # for the side that is to serve the VMs: it may be slow, because nothing depends on it yet


def drain_pmd_queues(host: Host, needed: Side | None = None) -> None:
    """Wait until every frame that either side has taken in, and every copy of it, has arrived.

    One iteration of a PMD thread passes a frame from a receive queue to a VM or to the peer link; one iteration on the
    other side passes it from the peer link to the VM. In wire mode a frame may pass the link twice: from the uplink of
    the wired side to the other's pipeline, and back to a VM of the wired side. An iteration takes 32 packets of a queue
    (OVS, NETDEV_MAX_BURST), and a queue may hold 2048. A thread that shares its core may need a tenth of a second for
    all of them. Frames in a side that hangs are lost. Raises SwitchError if the side that hangs is the one that is
    ``needed``.
    """
    patience = {side: _NEEDED_S if side is needed else _PASSED_S for side in Side}
    alive = {side: _polling(host, side, patience[side]) for side in Side}
    for _ in range(3 if host.config.program is Program.CLONE else 2):
        before = {
            side: _iterations(host, side, cores, patience[side]) for side, cores in alive.items() if cores is not None
        }
        alive = {
            side: alive[side]
            for side, count in before.items()
            if _pmd_iterations_passed(host, side, alive[side], count, patience[side])
        }
        if needed is not None and needed not in alive:
            raise SwitchError(f"the PMD threads of instance {needed} do not progress: it hangs, or has no core")


def _pmd_iterations_passed(host: Host, side: Side, cores: Set[int] | None, before: Counts, patience: float) -> bool:
    """Wait until each of the side's threads has made enough iterations since ``before`` to empty a queue. The iteration
    that was under way does not count. Returns whether they have."""

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
    """Whether every PMD thread of the side that has queues to poll makes progress. No guest can influence this."""
    cores = _polling(host, side, _NEEDED_S)
    before = None if cores is None else _iterations(host, side, cores, _NEEDED_S)
    return _pmd_iterations_passed(host, side, cores, before, _NEEDED_S)


def _polling(host: Host, side: Side, patience: float) -> Set[int] | None:
    """The cores of the side's threads that have queues to poll; empty if the side does not run, and ``None`` if it does
    not answer."""
    try:
        queues = pmd_rxqs(host.control(side), timeout=patience / 2)
        return {queue.core for port in queues.values() for queue in port if queue.enabled}
    except NoAnswer:
        return None
    except SwitchError:
        return set()


def _iterations(host: Host, side: Side, cores: Set[int] | None, patience: float) -> Counts:
    """How many iterations the threads on these cores have made, by core; empty and ``None`` as in ``_polling``."""
    try:
        counts = pmd_iterations(host.control(side), timeout=patience / 2) if cores else {}
        return {core: count for core, count in counts.items() if cores and core in cores}
    except NoAnswer:
        return None
    except SwitchError:
        return {}
