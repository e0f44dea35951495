"""What makes the next burst a loss: load that is spread unevenly, guests that send in bursts, and slow look-ups. Pure.

None of this is a loss by itself, so all of it is a warning, and only where a thread has little time left or a port has
lost packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ovs_hotswap.bursts import advice
from ovs_hotswap.bursts.found import Advice, Cause, Finding, Found
from ovs_hotswap.bursts.losses import Loss, per_queue, to_apply
from ovs_hotswap.bursts.values import NIC, CoreLoad, Port, Window
from ovs_hotswap.model import Severity
from ovs_hotswap.wording import some

LOADED, APART = 0.7, 0.4
"""The share of the time from which on a PMD thread is loaded, and how much less another one has to have for the load
to be spread unevenly."""
_UNEVEN = 2.0  # times its fair share, that one queue of a port gets
_ENOUGH = 1000  # packets in the time, below which shares say nothing
_LOOKUPS = 100_000  # packets in the time, below which it is not worth while to speed up look-ups
_FULL = 0.75  # of a transmit ring


def judge(window: Window, losses: Iterable[Loss]) -> Iterator[Found]:
    lossy = {loss.port.name for loss in losses}
    yield from _threads(window)
    for port in window.ports.values():
        yield from _queues(window, port, lost=port.name in lossy)
    yield from _senders(window)
    yield from _cache(window)


def _warning(
    cause: Cause, text: str, evidence: tuple[str, ...], command: str, advised: Advice | None = None,
    port: Port | None = None,
) -> Found:  # fmt: skip
    name, effect = (None, None) if advised is None else (advised.name, advised.effect)
    vm, where = (None, None) if port is None else (port.vm, port.name)
    return Found(Finding(cause, Severity.WARNING, vm, where, 0, text, evidence, command, name, effect), advised)


# ------------------------------------------------------------------------------------------------------- PMD threads


def _threads(window: Window) -> Iterator[Found]:
    """Compare the threads of each NUMA node alone, because a queue stays on its node if it can (lib/dpif-netdev.c,
    sched_numa_list_schedule)."""
    alone = {queue.core for port in window.ports.values() for queue in port.queues if queue.isolated}
    shared = [load for load in window.whole.cores.values() if load.core not in alone and load.busy is not None]
    for numa in sorted({load.numa for load in shared}, key=str):
        here = sorted((load for load in shared if load.numa == numa), key=lambda load: load.busy or 0.0)
        if len(here) > 1 and (here[-1].busy or 0) >= LOADED and (here[-1].busy or 0) - (here[0].busy or 0) >= APART:
            yield _unbalanced(window, here)


def _unbalanced(window: Window, loads: list[CoreLoad]) -> Found:
    idle, loaded = loads[0], loads[-1]
    queues = [(port, queue) for port in window.ports.values() for queue in port.queues
              if queue.core == loaded.core and queue.enabled]  # fmt: skip
    seen = "; ".join(f"core {load.core}: {load.busy:.0%}" for load in loads)
    named = ", ".join(f"{port.name} queue {queue.queue}" for port, queue in queues[:4])
    most = window.other_config.get("pmd-rxq-assign", "cycles")
    advised: Advice | None = None
    if len(queues) < 2:
        port = queues[0][0] if queues else None
        advised = advice.rx_queues(port, len(loads)) if port is not None and port.type == NIC else None
        command = (
            to_apply(window, advised) if advised is not None
            else "one queue cannot be shared by threads: more queues where the packets come from"
        )  # fmt: skip
    elif most == "roundrobin":
        command = (f"by load, not in turn: `{window.vsctl('set Open_vSwitch . other_config:pmd-rxq-assign=group')}`, "
                   f"then `{window.appctl('dpif-netdev/pmd-rxq-rebalance')}`")  # fmt: skip
    elif window.other_config.get("pmd-auto-lb") == "true":
        command = (f"now: `{window.appctl('dpif-netdev/pmd-rxq-rebalance')}`; pmd-auto-lb acts only on a thread that "
                   "is loaded for a minute (pmd-auto-lb-load-threshold, 95 % unless set)")  # fmt: skip
    elif crossing := _crossing(window):
        command = (f"now: `{window.appctl('dpif-netdev/pmd-rxq-rebalance')}`; pmd-auto-lb does nothing while threads "
                   f"of another NUMA node poll {some(crossing)}: a PMD core on its node")  # fmt: skip
    else:
        advised = advice.auto_balance()
        command = f"now: `{window.appctl('dpif-netdev/pmd-rxq-rebalance')}`; from now on: {to_apply(window, advised)}"
    return _warning(
        Cause.LOAD_UNBALANCED,
        f"The PMD thread on core {loaded.core} has little time left for a burst, that on core {idle.core} has much.",
        (f"busy: {seen} (dpif-netdev/pmd-stats-show)", f"core {loaded.core} polls {named or 'no queue'}"),
        command, advised,
    )  # fmt: skip


def _crossing(window: Window) -> list[str]:
    """The ports because of which pmd-auto-lb does nothing (lib/dpif-netdev.c, pmd_rebalance_dry_run): a thread of
    another NUMA node polls them, and there are threads on several nodes."""
    nodes = {load.numa for load in window.whole.cores.values()}
    return [port.name for port in window.ports.values() if port.crosses] if len(nodes) > 1 else []


# ------------------------------------------------------------------------------------------------------------- queues


def _queues(window: Window, port: Port, *, lost: bool) -> Iterator[Found]:
    """One queue of a port that gets far more than its share: then the others, and their threads, are of no use."""
    whole = window.whole
    queues = {number: count for number, count in per_queue(whole, port.name, "rx_q").items()
              if int(number) < len(port.queues)}  # fmt: skip
    total, top = sum(queues.values()), max(queues.values(), default=0)
    cores = [whole.cores[core] for core in port.cores if core in whole.cores]
    loaded = any(load.busy is not None and load.busy >= LOADED for load in cores)
    if len(queues) < 2 or total < _ENOUGH or top < _UNEVEN * total / len(queues) or not (lost or loaded):
        return
    shares = ", ".join(f"{number}: {count / total:.0%}" for number, count in sorted(queues.items(), key=_by_number))
    if port.type == NIC:
        command = (
            "the NIC spreads by addresses and ports (RSS), so one large flow, or tunnels whose outer UDP source port "
            "does not change, stay in one queue; which queue is polled where: "
            f"`{window.appctl('dpif-netdev/pmd-rxq-show')}`"
        )
    else:
        command = f"the guest chooses the queue: in it `ethtool -L DEVICE combined {len(queues)}`, and XPS"
    yield _warning(
        Cause.QUEUES_UNBALANCED, f"One receive queue of {port.name} gets most of its packets.",
        (f"queue: {shares} (rx_qN_packets)",), command, port=port,
    )  # fmt: skip


def _by_number(item: tuple[str, int]) -> int:
    return int(item[0])


# ------------------------------------------------------------------------------------------------------------- guests


def _senders(window: Window) -> Iterator[Found]:
    """The switch records how full a VM's transmit ring is only with ``pmd-perf-metrics``, and not of which VM."""
    ring = min(window.sent_rings, default=0)
    full = _above(window.fills, ring * _FULL)
    if ring and full:
        yield _warning(
            Cause.GUEST_SENDS_BURSTS,
            "A VM sends more at once than the switch takes in a round: its transmit ring is nearly full, and then the "
            "guest waits or drops.",
            (f"{full} iterations saw {ring * _FULL:.0f} packets or more in a ring (pmd-perf-show, max vhost qlen)",
             f"the shortest transmit ring has {ring} entries"),
            "a longer ring, for which the VM has to start again: QEMU `tx_queue_size=1024`, libvirt "
            "`<driver tx_queue_size='1024'/>`, Nova `[libvirt] tx_queue_size = 1024`; or more queues",
        )  # fmt: skip


def _above(fills: Mapping[int, int], least: float) -> int:
    return sum(count for upper, count in fills.items() if upper >= least)


# ------------------------------------------------------------------------------------------------------------ look-ups


def _cache(window: Window) -> Iterator[Found]:
    if window.other_config.get("smc-enable") == "true":
        return
    for load in window.whole.cores.values():
        slow = load.busy is not None and load.busy >= LOADED and load.passes >= _LOOKUPS
        if slow and load.megaflow_hits > load.passes / 2:
            advised = advice.match_cache()
            yield _warning(
                Cause.FLOW_CACHE,
                f"The PMD thread on core {load.core} looks most packets up in the classifier: they are of more flows "
                "than its exact match cache holds.",
                (f"of {load.passes} look-ups {load.emc_hits / load.passes:.0%} were in the cache, and "
                 f"{load.megaflow_hits / load.passes:.0%} in the classifier; busy for {load.busy:.0%}",),
                to_apply(window, advised), advised,
            )  # fmt: skip
            return
