"""Faults of a whole host: broker, instance, PMD threads, memory, and whether a standby could take over. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ovs_hotswap.counters.drops import EVENTS, Reason
from ovs_hotswap.diagnose.facts import Facts, Switch
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.model import Life
from ovs_hotswap.wording import some

STARVED = 0.5
"""The share of the time for which a PMD thread may wait for its core before that is a fault. A thread that sleeps when
it is idle, or shares its core in a window, waits for less."""
_NEARLY = 0.02  # of a packet pool: each PMD thread keeps some hundreds of free buffers that others cannot get
_LOST = "the watchdog moves the VMs to its standby if this lasts: `ovs-hotswap watch status`; the reason may be in "


def judge(facts: Facts) -> Iterator[Found]:
    if facts.broker_fault is not None:
        yield Found(
            Cause.BROKER_GONE,
            "The broker does not answer: no VM can be moved, and a VM that starts waits. If its supervisor was killed "
            "with it, VMs have no network.",
            (facts.broker_fault,),
            "systemd, or its supervisor, starts it again in some seconds: `ovs-hotswap broker status`; if not, "
            "`systemctl start ovs-hotswap-broker`, or `ovs-hotswap broker start`",
        )  # fmt: skip
    if facts.active is None:
        if facts.wanted.overlay or facts.wanted.vms:  # before a host is taken over, its own switch is none of ours
            yield Found(
                Cause.NO_ACTIVE, "No instance is active, so no VM has a network.", ("no side is recorded as active",),
                "`ovs-hotswap instance start a`" if facts.wanted.overlay else "`ovs-hotswap status`",
            )  # fmt: skip
    elif facts.switch is not None:
        yield from _instance(facts.switch)
    yield from _unfinished(facts)
    for text in facts.traces:
        yield Found(
            Cause.TRACE_LEFT,
            "Packets of a VM are still copied for a trace that has ended, which takes time from its core.",
            (text,), "`ovs-hotswap trace --clean`",
        )  # fmt: skip
    yield from _standby(facts)


def _instance(switch: Switch) -> Iterator[Found]:
    side = switch.side
    if switch.life is Life.DEAD:
        yield Found(
            Cause.INSTANCE_DEAD, f"Instance {side}, which is active, has ended. No VM has a network.",
            ("its ovs-vswitchd does not run",),
            f"the watchdog starts it again; without one: `ovs-hotswap instance start {side}`",
        )  # fmt: skip
        return
    if switch.life is Life.STOPPED:
        yield Found(
            Cause.INSTANCE_STOPPED,
            f"Instance {side}, which is active, is stopped: it lives and forwards nothing.",
            ("its ovs-vswitchd is in state T (proc_pid_stat(5))",),
            f"`kill -CONT $(cat {switch.directory}/ovs-vswitchd.pid)`",
        )  # fmt: skip
        return
    if switch.silent is not None:
        yield Found(
            Cause.INSTANCE_SILENT,
            f"Instance {side} does not answer: its main thread is blocked or has no core. Packets of known flows may "
            "pass, and nothing new does.",
            (switch.silent,), _LOST + switch.log,
        )  # fmt: skip
    yield from _threads(switch)
    yield from _pools(switch)
    yield from _upcalls(switch)
    if not switch.database:
        yield Found(
            Cause.DATABASE_GONE,
            f"Instance {side} has no ovsdb-server: it forwards, and takes no new flows and no ports.",
            ("its ovsdb-server does not run",),
            "the watchdog starts it again: `ovs-hotswap watch status`; without one: `ovs-hotswap watch run`",
        )  # fmt: skip


def _threads(switch: Switch) -> Iterator[Found]:
    starved = {each.core for each in switch.cores or () if each.waits >= STARVED}
    for each in switch.cores or ():
        if each.core in starved:
            who = f"; {each.others[0]}" if each.others else ""
            yield Found(
                Cause.PMD_STARVED,
                f"The PMD thread on core {each.core} waits for its core most of the time, so packets wait, or are lost "
                "in full rings.",
                (f"it waited for {each.waits:.0%} of the time (/proc/PID/task/TID/schedstat){who}", *each.others[1:]),
                f"keep others off core {each.core}: `ps -eLo psr,pid,comm,pcpu --sort=-pcpu | awk '$1 == {each.core}'`,"
                " then `ovs-hotswap doctor --section cpu`",
            )  # fmt: skip
    standing = [core for core in switch.standing if core not in starved]
    if standing:
        yield Found(
            Cause.PMD_STANDS,
            f"The PMD thread on core {some([str(core) for core in standing])} makes no progress: what it polls is not "
            "forwarded.",
            ("its number of iterations stands still (dpif-netdev/pmd-perf-show)",), _LOST + switch.log,
        )  # fmt: skip


def _pools(switch: Switch) -> Iterator[Found]:
    counters = switch.after
    for pool in (counters.pools if counters else None) or ():
        free = pool.buffers - pool.in_use
        if pool.buffers and free <= pool.buffers * _NEARLY:
            yield Found(
                Cause.POOL_EMPTY,
                f"The packet pool of instance {switch.side} on NUMA node {pool.node} is used up: packets are dropped "
                "because no buffer is free.",
                (f"{pool.in_use} of {pool.buffers} buffers are in use (netdev-dpdk/get-mempool-info)",),
                "`ovs-hotswap doctor --section memory`; more memory_mb for the instance, or fewer or shorter rings of "
                "its NIC (`n_rxq`, `n_rxq_desc`): docs/sizing.md",
            )  # fmt: skip


def _upcalls(switch: Switch) -> Iterator[Found]:
    before, after = switch.before, switch.after
    if before is None or after is None or before.coverage is None or after.coverage is None:
        return
    events = [name for name, reason in EVENTS.items() if reason is Reason.UPCALL]
    lost = sum(after.coverage.get(name, 0) - before.coverage.get(name, 0) for name in events)
    if lost > 0:
        yield Found(
            Cause.UPCALL_LOST,
            "New flows are not learned fast enough: packets that need one are dropped.",
            (f"{lost} failed upcalls while we looked (coverage/show)",),
            f"`{switch.appctl('upcall/show')}`",
        )  # fmt: skip


def _unfinished(facts: Facts) -> Iterator[Found]:
    if facts.unfinished is not None:
        yield Found(
            Cause.UNFINISHED,
            "An upgrade runs, or was interrupted. Until it is finished, VMs may be on either instance, and flows are "
            "those of the window.",
            (f"the journal's phase is {facts.unfinished}",),
            "`ovs-hotswap status` shows it; if it does not run: `ovs-hotswap resume` or `ovs-hotswap rollback`",
        )  # fmt: skip


def _standby(facts: Facts) -> Iterator[Found]:
    """Whether another instance could take over. While an upgrade is unfinished, no standby is kept on purpose."""
    standby = facts.standby
    if standby is None or not facts.wanted.watched or not facts.settled:
        return
    if not standby.running:
        yield Found(
            Cause.NOT_PROTECTED, "No watchdog runs, so nothing takes over if the active instance fails.",
            ("there is no process of `watch run`",),
            "`systemctl restart ovs-hotswap-watch`, or `ovs-hotswap watch run`",
        )  # fmt: skip
    elif standby.side is None:
        yield Found(
            Cause.NOT_PROTECTED, "No standby is ready, so nothing takes over if the active instance fails.",
            (f"the watchdog's state is {standby.keeping or 'not known yet'}",), "`ovs-hotswap watch status`",
        )  # fmt: skip
    else:
        for vm in standby.unprotected:
            yield Found(
                Cause.NOT_PROTECTED,
                f"{vm} is not parked on the standby {standby.side}: it would lose its network if the active instance "
                "failed.",
                ("the watchdog names it as not protected",), "`ovs-hotswap watch status` has the cause", vm,
            )  # fmt: skip
