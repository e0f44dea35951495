"""Why packets are lost at a port: at a device's receive queues, at its transmit queues, or at a VM's ring. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ovs_hotswap.bursts import advice
from ovs_hotswap.bursts.found import Advice, Cause, Finding, Found
from ovs_hotswap.bursts.values import NIC, VM_PORT, Interval, Port, Window, busiest
from ovs_hotswap.model import Severity

MISSED, FULL = "rx_missed_errors", "ovs_tx_failure_drops"
OVERLOADED = 0.9
"""The share of the time in which a PMD thread has packets, from which on it has no time left for a burst."""
PREEMPTED = 0.02
"""The share of the time for which a PMD thread may wait for its core before a loss is put down to that: at 10 Gbit/s a
ring of 2048 fills in some hundred microseconds, so 2 ms in a tenth of a second are many bursts."""
WAKES = 0.25
"""The same of a thread that sleeps when it is idle: it waits for its core each time that it wakes up, and that alone
was 13 % of the time where it slept for 0.1 ms each time."""
STEADY = 0.8  # of all intervals: packets that are lost in so many of them are not lost in bursts
MANY_UPCALLS = 100  # in the intervals with losses: each one keeps the thread for some hundred microseconds
SERIOUS = 1e-4
"""The share of a port's packets from which on their loss is an error. What is lost more rarely is a warning."""
_RING_MOST = 1024  # entries of a ring that QEMU can give a guest (include/hw/virtio/virtio.h, VIRTQUEUE_MAX_SIZE)
_FULL = 0.5
"""The share of looks from which on a guest's ring is not full in moments alone. A slow guest differs by this from
bursts that come more often than the looks at counters."""
_RETRIED = 1 / 8
"""Retries for each lost packet from which on it helps to try for longer: that is four for a batch of 32 packets, of
eight that are made unless set. Where a ring takes nothing, the switch does not try again (lib/netdev-dpdk.c,
netdev_dpdk_vhost_send)."""
_ONE_QUEUE = 0.9  # of the packets
_CPU = "`ovs-hotswap doctor --section cpu`"


@dataclass(frozen=True, slots=True)
class Loss:
    """What a port has lost by one counter. ``offered``: the packets that it should have passed, with the lost ones.
    ``lossy``: the intervals in which some were lost; ``worst``: the most in one of them."""

    port: Port
    counter: str
    lost: int
    offered: int
    lossy: tuple[Interval, ...]
    worst: int
    intervals: int
    seconds: float

    @property
    def severity(self) -> Severity:
        return Severity.ERROR if self.lost >= self.offered * SERIOUS else Severity.WARNING

    @property
    def seen(self) -> str:
        each = self.seconds / max(self.intervals, 1)
        return (f"{self.lost} packets in {self.seconds:.1f} s, in {len(self.lossy)} of {self.intervals} intervals of "
                f"{each:.2f} s ({self.counter})")  # fmt: skip

    @property
    def steady(self) -> bool:
        """Whether packets were lost nearly all the time, and not in bursts."""
        return len(self.lossy) >= STEADY * self.intervals


def losses(window: Window) -> Iterator[Loss]:
    """Yield what each port has lost. Copies for a VM that another switch serves are no loss."""
    intervals = window.intervals
    for port in window.ports.values():
        counters = [(FULL, "tx_packets")] if port.type == VM_PORT else [(MISSED, "rx_packets"), (FULL, "tx_packets")]
        for counter, passed in counters if not port.elsewhere else []:
            grown = [each.grown(port.name, counter) for each in intervals]
            if (lost := sum(grown)) > 0:
                offered = lost + sum(each.grown(port.name, passed) for each in intervals)
                lossy = tuple(each for each, count in zip(intervals, grown, strict=True) if count)
                yield Loss(port, counter, lost, offered, lossy, max(grown), len(intervals), window.seconds)


def judge(window: Window) -> Iterator[Found]:
    for loss in losses(window):
        if loss.counter == MISSED:
            yield _missed(window, loss)
        elif loss.port.type == NIC:
            yield _not_sent(window, loss)
        else:
            yield _not_taken(window, loss)


def _found(
    loss: Loss, cause: Cause, text: str, evidence: tuple[str, ...], command: str, advised: Advice | None = None
) -> Found:
    finding = Finding(
        cause, loss.severity, loss.port.vm, loss.port.name, loss.lost, text, (loss.seen, *evidence), command,
        None if advised is None else advised.name, None if advised is None else advised.effect,
    )  # fmt: skip
    return Found(finding, advised)


def to_apply(window: Window, advised: Advice) -> str:
    """The command that applies an advice, and what that is as a command of Open vSwitch."""
    words = " ".join(word for setting in advised.settings for word in setting.words)
    return f"`ovs-hotswap bursts --apply {advised.name}`, or `{window.vsctl(words)}`"


# ------------------------------------------------------------------------------------------------ a device's receiving


def _missed(window: Window, loss: Loss) -> Found:
    """The thread that had no core, the one that had no time, what took its time, and at last the ring."""
    port, whole = loss.port, window.whole
    cores = [core for core in port.cores if core in whole.cores]
    loads = [whole.cores[core] for core in cores]
    in_loss = [each.cores[core] for each in loss.lossy for core in cores if core in each.cores]
    busy, peak = busiest(loads), busiest(in_loss)
    names = " and ".join(str(core) for core in cores) or "none"
    load = "its load is not known" if busy is None or peak is None else (
        f"busy for {busy:.0%} of the time, and for {peak:.0%} in the worst interval with losses"
    )  # fmt: skip
    seen = f"PMD thread on core {names}: {load} (dpif-netdev/pmd-stats-show)"
    waits = max((each.waits for each in [*in_loss, *loads]), default=0.0)
    slept = sum(window.sleeps.get(core, 0) for core in cores) if window.may_sleep else 0
    if waits >= (WAKES if slept else PREEMPTED):
        return _found(
            loss, Cause.PMD_PREEMPTED,
            f"{port.name} misses packets because its PMD thread does not have its core all the time: while another "
            "thread has it, the receive queue fills.",
            (f"it waited for its core for {waits:.0%} of the time (/proc/PID/task/TID/schedstat)", seen),
            f"keep others off core {names}: {_CPU}",
        )  # fmt: skip
    if peak is not None and peak >= OVERLOADED:
        return _overloaded(window, loss, names, seen)
    upcalls = sum(each.upcalls for each in in_loss)
    if upcalls >= MANY_UPCALLS:
        return _found(
            loss, Cause.NEW_FLOWS,
            f"{port.name} misses packets while its PMD thread learns new flows: each of them keeps it from the queue.",
            (f"{upcalls} packets needed a new flow in the intervals with losses", seen),
            f"`{window.appctl('upcall/show')}`; which flows: `{window.appctl('dpctl/dump-flows netdev@ovs-netdev')}`",
        )  # fmt: skip
    if slept:
        advised = advice.no_sleep(window)
        return _found(
            loss, Cause.PMD_SLEEPS,
            f"{port.name} misses packets because its PMD thread sleeps when it is idle: a burst fills the receive "
            "queue before the thread wakes up.",
            (f"{window.sleep_key}={window.other_config[window.sleep_key]}, and it slept in {slept} iterations", seen),
            to_apply(window, advised), advised,
        )  # fmt: skip
    return _short(window, loss, seen, known=peak is not None)


def _overloaded(window: Window, loss: Loss, names: str, seen: str) -> Found:
    """What helps is another thread for a part of the packets. One that has time is there, or needs a core."""
    port = loss.port
    advised = advice.rx_queues(port, len(window.whole.cores))
    idle = [core for core, load in window.whole.cores.items()
            if core not in port.cores and load.busy is not None and load.busy < OVERLOADED / 2]  # fmt: skip
    if idle and advised is not None:
        command = to_apply(window, advised)
        more = f"the PMD thread on core {idle[0]} has time"
    elif idle:
        advised, more = None, f"the PMD thread on core {idle[0]} has time"
        command = f"spread the queues again: `{window.appctl('dpif-netdev/pmd-rxq-rebalance')}`"
    else:
        advised, more = None, "no other PMD thread has time"
        command = ("more PMD cores: `pmd_cores` in the configuration, or where ovs-hotswap does not start the switch "
                   f"`{window.vsctl('set Open_vSwitch . other_config:pmd-cpu-mask=MASK')}`; {_CPU}")  # fmt: skip
    return _found(
        loss, Cause.PMD_OVERLOADED,
        f"{port.name} misses packets because its PMD thread has no time left: a longer queue would only delay that.",
        (seen, more), command, advised,
    )  # fmt: skip


def _short(window: Window, loss: Loss, seen: str, *, known: bool) -> Found:
    """The thread had time, so the queue was too short for what came before the thread looked at it again."""
    port = loss.port
    length, queues = advice.ring_of(port, "n_rxq_desc"), max(len(port.queues), 1)
    rates = [each.grown(port.name, "rx_packets") + each.grown(port.name, MISSED) for each in loss.lossy]
    peak = max(rate / each.seconds for rate, each in zip(rates, loss.lossy, strict=True))
    ring = f"{queues} receive queue{'s' if queues > 1 else ''} with {length} descriptors (options:n_rxq_desc)"
    rate = f"{peak:.0f} packets/s arrived in the worst interval, and in a burst more than that"
    cause = Cause.RX_RING_SHORT if known else Cause.RX_MISSED
    text = f"{port.name} misses packets in bursts, though its PMD thread has time: its receive queue is too short."
    if not known:
        text = f"{port.name} misses packets, and whether its PMD thread has time is not known."
    if (other := advice.OTHER_RINGS.get(port.driver or "")) is not None:
        command = f"the driver {port.driver} has another ring than `n_rxq_desc`: {other}"
        return _found(loss, cause, text, (seen, rate), command)
    if not known:
        command = f"`{window.appctl('dpif-netdev/pmd-perf-show', '-nh')}`"
        return _found(loss, cause, text, (seen, ring, rate), command)
    advised = advice.rx_ring(port, -(-loss.worst // queues))
    wanted = 0 if advised is None else int(advised.settings[0].value or 0)
    if advised is not None and not advice.room_for(window, port, wanted - length):
        advised, command = None, "longer queues need more packet buffers than are free: more memory_mb, docs/sizing.md"
    elif advised is not None:
        command = to_apply(window, advised)
    else:
        advised = advice.rx_queues(port, len(window.whole.cores))
        command = ("its queues cannot be longer; find who sends such bursts" if advised is None
                   else to_apply(window, advised))  # fmt: skip
    return _found(loss, cause, text, (seen, ring, rate), command, advised)


# ------------------------------------------------------------------------------------------------- a device's sending


def _not_sent(window: Window, loss: Loss) -> Found:
    port = loss.port
    length = advice.ring_of(port, "n_txq_desc")
    advised = advice.tx_ring(port, 0) or advice.tx_steering(port)
    if port.driver in advice.OTHER_RINGS:
        advised = None
    command = (f"who sends so much: `{window.appctl('dpif-netdev/pmd-rxq-show')}`" if advised is None
               else to_apply(window, advised))  # fmt: skip
    what = "is given more than it can send, all the time" if loss.steady else "has no room for what comes at once"
    return _found(
        loss, Cause.TX_RING_SHORT, f"{port.name} drops packets that it should send: its transmit queue {what}.",
        (f"its transmit queues have {length} descriptors (options:n_txq_desc)",), command, advised,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- a VM's ring


def _not_taken(window: Window, loss: Loss) -> Found:
    port, name, whole = loss.port, loss.port.name, window.whole
    delivered = whole.grown(name, "tx_packets")
    if not delivered:
        return _found(
            loss, Cause.GUEST_TAKES_NOTHING, f"{name} takes no packet at all: this is no burst.", (),
            f"`ovs-hotswap diagnose {name}`",
        )  # fmt: skip
    queues = per_queue(whole, name, "tx_q")
    pairs, top = sum(queue.enabled for queue in port.queues), max(queues.values(), default=0)
    steering = advice.tx_steering(port)
    if pairs > 1 and top >= _ONE_QUEUE * sum(queues.values()) and steering is not None:
        return _found(
            loss, Cause.GUEST_QUEUES_UNUSED,
            f"{name} has {pairs} receive queues, and nearly all of its packets are put into one, which is full.",
            (f"{top} of {sum(queues.values())} packets went into one queue (tx_qN_good_packets)",),
            to_apply(window, steering), steering,
        )  # fmt: skip
    if port.full >= _FULL if port.full is not None else loss.steady:
        ring = "its rings were not looked at" if port.full is None else f"its ring was full in {port.full:.0%} of looks"
        return _found(
            loss, Cause.GUEST_SLOW,
            f"{name} takes packets more slowly than they come, all the time: a longer ring would only delay the loss.",
            (f"it took {delivered / window.seconds:.0f} packets/s", ring),
            "more queues for the VM (`queues=` of its interface), or more time for its processors: "
            f"`ovs-hotswap vm show {name}`",
        )  # fmt: skip
    return _guest_ring(window, loss)


def _guest_ring(window: Window, loss: Loss) -> Found:
    port, name = loss.port, loss.port.name
    retries = window.whole.grown(name, "ovs_tx_retries")
    advised = advice.tx_retries(port) if retries >= loss.lost * _RETRIED else None
    known = "not known" if port.ring is None else f"{port.ring} entries"
    known += "" if port.full is None else f", full in {port.full:.0%} of looks"
    if port.ring is not None and port.ring >= _RING_MOST:
        ring = "its ring is as long as QEMU can make it: more queues for the VM (`queues=` of its interface)"
    else:
        ring = (
            "a longer ring, for which the VM has to start again: QEMU `-device virtio-net-pci,rx_queue_size=1024,...`; "
            "libvirt `<driver rx_queue_size='1024' tx_queue_size='1024'/>`; Nova `[libvirt] rx_queue_size = 1024`"
        )
    command = ring if advised is None else f"{ring}. Without a restart: {to_apply(window, advised)}"
    return _found(
        loss, Cause.GUEST_RING_SHORT,
        f"{name} gets more packets at once than its receive ring holds, though on average it takes them all.",
        (f"its receive rings: {known}; at most {loss.worst} packets were lost in one interval",
         f"the switch tried again {retries} times (ovs_tx_retries), which it does while the ring takes something"),
        command, advised,
    )  # fmt: skip


def per_queue(interval: Interval, port: str, prefix: str) -> dict[str, int]:
    """Return the packets of each queue, by its number: ``rx_q0_packets`` of a device (lib/netdev-dpdk.c,
    is_queue_stat), ``rx_q0_good_packets`` of a VM's port (DPDK lib/vhost/vhost.c, vhost_vq_stat_strings)."""
    grown = interval.ports.get(port, {})
    kinds = ("_good_packets", "_packets")
    found = {}
    for name, count in grown.items():
        for kind in kinds:
            number = name.removeprefix(prefix).removesuffix(kind)
            if name.startswith(prefix) and name.endswith(kind) and number.isdecimal():
                found[number] = count
    return found
