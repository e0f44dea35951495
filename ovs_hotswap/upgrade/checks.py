"""Prechecks and postchecks: pure functions from facts to findings. ``collect`` gathers the facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ovs_hotswap.errors import HotswapError, PrecheckFailed
from ovs_hotswap.host import rings
from ovs_hotswap.host.rings import Place, RingSample
from ovs_hotswap.model import Finding, Severity, Side, SwitchProcess
from ovs_hotswap.wording import ranges, summary

MAX_REGIONS = 8  # VHOST_MEMORY_MAX_NREGIONS, DPDK lib/vhost/rte_vhost.h
MAX_VHOST_DEVICES = 1024  # RTE_MAX_VHOST_DEVICE, DPDK lib/vhost/vhost.h
SWITCH_DESCRIPTORS = 128  # what an ovs-vswitchd with DPDK holds before its first VM, with room to spare


def verdict(findings: Iterable[Finding], failure: type[HotswapError] = PrecheckFailed) -> list[Finding]:
    """Return the findings for display. Raises ``failure`` if there are errors; its message summarizes errors that many
    VMs or flows share."""
    findings = list(findings)
    errors = summary([finding for finding in findings if finding.severity is Severity.ERROR])
    if errors:
        hints = list(dict.fromkeys(finding.hint for finding in errors if finding.hint))
        raise failure("\n".join(f"{finding.check}: {finding.text}" for finding in errors),
                      hint="\n".join(hints) or None)  # fmt: skip
    return findings


def _ok(check: str, text: str) -> list[Finding]:
    return [Finding(check, Severity.OK, text)]


def _warning(check: str, text: str, hint: str | None = None, item: str | None = None) -> Finding:
    return Finding(check, Severity.WARNING, text, hint, item)


def _error(check: str, text: str, hint: str | None = None, item: str | None = None) -> Finding:
    return Finding(check, Severity.ERROR, text, hint, item)


# ---------------------------------------------------------------------------------------------------------- the host


def cpu_set(present: Collection[int], cores: Mapping[Side, Collection[int]]) -> list[Finding]:
    """Check that the PMD cores exist, that the two instances do not share any, and that one core is left without PMD
    threads for the threads that move VMs."""
    name = "PMD cores"
    findings = [
        _error(name, f"instance {side}: no core {', '.join(map(str, sorted(absent)))} on this host",
               f"correct instances.{side}.pmd_cores; this host has {ranges(present)}")
        for side, wanted in cores.items()
        if (absent := set(wanted) - set(present))
    ]  # fmt: skip
    shared = set(cores[Side.A]) & set(cores[Side.B])
    if shared:
        findings.append(
            _warning(name, f"both instances poll on core {', '.join(map(str, sorted(shared)))}: packets wait "
                     "for up to upgrade.pmd_sleep_us while both live", "give each instance cores of its own")
        )  # fmt: skip
    if set(present) <= set(cores[Side.A]) | set(cores[Side.B]):
        findings.append(
            _warning(name, "there are PMD threads on every core: handovers take longer, with a long tail",
                     "leave one core without PMD threads")
        )  # fmt: skip
    return findings or _ok(name, "each instance has its own")


def conflicting_processes(
    running: Iterable[SwitchProcess], own_pids: Collection[int], run_dir: str, file_prefix: str
) -> list[Finding]:
    """Check that no ovs-vswitchd other than our ``own_pids`` has the standby's run directory or DPDK file prefix."""
    name = "other switches"
    findings = []
    for process in running:
        if process.pid in own_pids:
            continue
        if process.run_dir == run_dir:
            findings.append(_error(name, f"process {process.pid} already runs in {run_dir}",
                                   "`ovs-hotswap status`; end it if nothing uses it"))  # fmt: skip
        elif process.dpdk and process.file_prefix == file_prefix:
            hint = "give that process another --file-prefix, or end it: `ps -fC ovs-vswitchd`"
            text = f"process {process.pid} ({process.run_dir}) has file prefix {file_prefix}"
            findings.append(_error(name, text, hint))
        elif process.dpdk:
            findings.append(_warning(name, f"process {process.pid} ({process.run_dir}) is another ovs-vswitchd with "
                                     "DPDK on this host: it shares cores and huge pages"))  # fmt: skip
    return findings or _ok(name, "none in the way")


def descriptors(soft_limit: int, regions_and_queues: Iterable[tuple[int, int]]) -> list[Finding]:
    """Check that an ovs-vswitchd may open as many descriptors as its VMs need. ``regions_and_queues`` has each VM's
    numbers of memory regions and queue pairs.

    A VM needs its socket, one descriptor for each region, one for the scratch rings, and for each queue pair the kick
    and the call of two rings.
    """
    name = "descriptor limit"
    vms = list(regions_and_queues)
    needed = SWITCH_DESCRIPTORS + sum(2 + regions + 4 * pairs for regions, pairs in vms)
    if len(vms) > MAX_VHOST_DEVICES:
        return [_error(name, f"{len(vms)} VMs: DPDK serves at most {MAX_VHOST_DEVICES} in one process")]
    if needed > soft_limit:
        return [_error(name, f"ovs-vswitchd needs about {needed} for {len(vms)} VMs, the limit is {soft_limit}",
                       f"ulimit -n {2 * needed} (LimitNOFILE= of the unit)")]  # fmt: skip
    return _ok(name, f"{soft_limit}, about {needed} needed")


# ----------------------------------------------------------------------------------------------------------- the VMs


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What the broker knows of a VM. ``acked``: the feature bits that its guest acknowledged. ``regions``: the number
    of its memory regions. ``uncaught``: the number of receive rings without a capture ring, on which frames that arrive
    during the move may be lost. ``absent``: why its QEMU is not connected."""

    name: str
    connected: bool
    acked: int
    regions: int
    queue_pairs: int
    uncaught: int = 0
    absent: str | None = None


def vms_connected(vms: Iterable[VmFacts], qemu_socket: Callable[[str], str]) -> list[Finding]:
    """Check that each VM's QEMU is connected to the broker. A missing one is only a warning: there is nothing to
    move."""
    name = "QEMU"
    vms = list(vms)
    findings = [
        _warning(name, f"VM {vm.name}: its QEMU is not connected and will find the new instance when it comes: "
                 f"{vm.absent or 'it is not there'}",
                 f"look for its QEMU at {qemu_socket(vm.name)}", f"VM {vm.name}")
        for vm in vms
        if not vm.connected
    ]  # fmt: skip
    return findings or _ok(name, f"{len(vms)} VMs connected")


def queue_pairs(vms: Iterable[VmFacts], intended: Mapping[str, int]) -> list[Finding]:
    """Check that no VM has more queue pairs than the overlay intent gives it, which may have changed since the VM was
    started. Such a VM is still served, but it is refused when its QEMU connects again."""
    return [
        _warning("queue pairs", f"VM {vm.name} has {vm.queue_pairs}, and the overlay intent gives it {most}: "
                 "it is refused when its QEMU starts again", "correct its `queues` in the overlay", f"VM {vm.name}")
        for vm in vms
        if vm.connected and vm.queue_pairs > (most := intended.get(vm.name, vm.queue_pairs))
    ]  # fmt: skip


def memory_regions(
    vms: Iterable[VmFacts], without: Callable[[str], str] = "ovs-hotswap upgrade ... --leave-out {}".format
) -> list[Finding]:
    """Check that each VM's memory table has room for one more region, which holds the scratch rings. ``without`` makes
    the command that leaves a VM out."""
    name = "memory regions"
    findings = [
        _error(name, f"VM {vm.name} has {vm.regions} memory regions of at most {MAX_REGIONS}: none is left for parking",
               f"take a memory device from the VM; or leave the VM out: `{without(vm.name)}`", f"VM {vm.name}")
        for vm in vms
        if vm.connected and vm.regions >= MAX_REGIONS
    ]  # fmt: skip
    return findings or _ok(name, "each VM has one to spare")


def uncaught_rings(vms: Iterable[VmFacts]) -> list[Finding]:
    """Check that each receive ring has a capture ring (``vhostuser.capture``), so that a move loses no frames."""
    name = "capture rings"
    findings = [
        _warning(name, f"VM {vm.name}: a frame that comes while it is moved may be lost on {vm.uncaught} of its "
                 f"{vm.queue_pairs} queue pairs", "capture rings are for 8 pairs of up to 4096 entries: give it fewer "
                 "queues if that matters; an instance uses more than 8 only with more than 8 PMD threads",
                 f"VM {vm.name}")
        for vm in vms
        if vm.uncaught
    ]  # fmt: skip
    return findings or _ok(name, "for all receive rings")


def left_out(names: Collection[str], known: Collection[str]) -> list[Finding]:
    """Report what happens to VMs that are not moved, and names that are not VMs."""
    name = "left out"
    return [
        _warning(name, f"VM {vm} is not moved: it is without network from the end of the window until the old instance "
                 "has ended, and then meets the new one as after a restart of the switch", None, f"VM {vm}")
        if vm in known else _error(name, f"there is no VM {vm}", "`ovs-hotswap vm list`", f"VM {vm}")
        for vm in names
    ]  # fmt: skip


def known_vms(intent: Collection[str], broker: Collection[str]) -> list[Finding]:
    """Check that the overlay intent and the broker have the same VMs."""
    name = "VMs"
    findings = [
        _error(name, f"the broker serves VM {vm}, which the overlay does not have: it would lose its port",
               "add it to the overlay intent, then `ovs-hotswap overlay apply`", f"VM {vm}")
        for vm in sorted(set(broker) - set(intent))
    ] + [
        _error(name, f"the overlay has VM {vm}, which the broker does not serve",
               "`ovs-hotswap broker reload`, or take the VM out of the intent",
               f"VM {vm}")
        for vm in sorted(set(intent) - set(broker))
    ]  # fmt: skip
    return findings or _ok(name, f"{len(intent)} in the overlay and in the broker")


def broker(version: str, own_version: str, *, supervised: bool) -> list[Finding]:
    """Check that the broker has this program's version, and that a supervisor keeps its connections if it dies."""
    name = "broker"
    if version != own_version:
        return [_error(name, f"version {version} is running, this program is {own_version}",
                       "`ovs-hotswap broker take-over`")]  # fmt: skip
    if not supervised:
        return [_warning(name, "no supervisor keeps its connections: if it is killed, every VM loses its network for "
                         "seconds", "`ovs-hotswap broker take-over`")]  # fmt: skip
    return _ok(name, f"answers, version {version}")


def database(side: Side, answers: bool) -> list[Finding]:
    """Check that an instance's ovsdb-server answers. Without it the instance forwards packets, but cannot be
    programmed."""
    name = "database"
    if answers:
        return _ok(name, f"instance {side}'s answers")
    return [_error(name, f"the ovsdb-server of instance {side} does not answer", "start it, or continue it")]


def priority(side: Side, low: Mapping[int, Collection[str]]) -> list[Finding]:
    """Check that an instance that serves VMs has no threads at ``low`` priority, which are named by process. It has
    them while it is started beside another instance. Only a warning: the watchdog ends it, and so does an upgrade."""
    name = "priority"
    if not low:
        return _ok(name, f"instance {side}'s threads have normal priority")
    threads = [f"process {pid} ({', '.join(names)})" for pid, names in sorted(low.items())]
    text = f"instance {side} serves VMs at low priority: {', '.join(threads)}"
    return [_warning(name, text, "start the watchdog, which ends this: `ovs-hotswap watch run`")]


def window_flows(incapable: Sequence[str]) -> list[Finding]:
    """Check that all flows work on two instances at once. ``incapable``: for each flow of the active instance that does
    not, a text ``FLOW: REASON; WAY OUT``."""
    name = "flows"
    findings = []
    for text in incapable:
        flow, _, rest = text.partition(": ")
        reason, _, way_out = rest.rpartition("; ")
        hint = f"{way_out or 'leave it out'}; `ovs-hotswap overlay show` has a stateless form"
        why = f"{reason}: " if reason else ""
        findings.append(_error(name, f"cannot be on two instances at once: {why}{flow}", hint, flow))
    return findings or _ok(name, "all work on two instances at once")


# -------------------------------------------------------------------------------------------------------- postchecks


def ring_progress(
    before: Iterable[RingSample], after: Iterable[RingSample], known: Collection[Place] = ()
) -> list[Finding]:
    """Check that every ring was served between two samples; the time between these must be much longer than a PMD
    thread sleeps. The rings in ``known`` are not judged."""
    name = "rings"
    earlier = {sample.place: sample for sample in before}
    findings, advanced, idle = [], 0, 0
    for now in after:
        then = earlier.get(now.place)
        if now.place in known or not now.enabled:
            continue
        if why := rings.fault(then, now):
            findings.append(_error(name, rings.text(now.place, why),
                                   f"`ovs-hotswap vm show {now.vm}`; restart the VM's network device",
                                   rings.text(now.place, why)))  # fmt: skip
        elif then is not None and then.enabled and now.used != then.used:
            advanced += 1
        else:
            idle += 1
    return findings or _ok(name, f"{advanced} advanced, {idle} idle")


def rings_before(wedged: Mapping[Place, str], unread: Collection[str]) -> list[Finding]:
    """Report the rings that cannot be judged. ``wedged``: rings that already look unserved, each with the reason.
    ``unread``: VMs whose rings cannot be read."""
    name = "rings"
    findings = [
        _warning(name, f"{rings.text(place, why)}: it stands still already, so whether it is served is not judged",
                 f"`ovs-hotswap vm show {place[0]}`; restart the VM's network device", rings.text(place, why))
        for place, why in wedged.items()
    ] + [
        _warning(name, f"VM {vm}: its rings cannot be read, so whether it is served is not judged",
                 f"`ovs-hotswap vm show {vm}`; memory-backend-memfd, huge pages and a local disk can be read",
                 f"VM {vm}")
        for vm in unread
    ]  # fmt: skip
    return findings or _ok(name, "all that have something to send are served")


def as_warnings(findings: Iterable[Finding]) -> list[Finding]:
    """Turn errors into warnings, for findings that are no reason to give up."""
    return [
        replace(finding, severity=Severity.WARNING) if finding.severity is Severity.ERROR else finding
        for finding in findings
    ]


def polling(side: Side, goes_on: bool) -> list[Finding]:
    """Check that an instance's PMD threads make progress."""
    name = "PMD threads"
    if goes_on:
        return _ok(name, f"instance {side}'s make progress")
    return [_error(name, f"a PMD thread of instance {side} that has queues to poll stands still",
                   "see the instance's ovs-vswitchd.log")]  # fmt: skip


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port as the columns ``error`` and ``link_state`` of OVSDB's Interface table report it."""

    name: str
    link_up: bool
    error: str | None = None


def ports(
    wanted: Collection[str],
    found: Iterable[PortFacts],
    may_be_down: Collection[str] = (),
    vms: Collection[str] = (),
    uplinks: Collection[str] = (),
) -> list[Finding]:
    """Check that each wanted port exists, has no error and is up. ``may_be_down``: the ports of VMs without a QEMU. The
    guests of the other ``vms`` may take their links down, so for these a link that is down is only a warning; and so
    it is for one of several ``uplinks`` while another is up."""
    name = "ports"
    present = {port.name: port for port in found}
    spare = any(present[port].link_up for port in uplinks if port in present)
    findings = []
    for port in sorted(wanted):
        facts = present.get(port)
        if facts is None:
            findings.append(_error(name, f"{port}: not on the bridge", "`ovs-hotswap instance list`", port))
        elif facts.error:
            findings.append(_error(name, f"{port}: {facts.error}", "see the instance's ovs-vswitchd.log", port))
        elif not facts.link_up and port not in may_be_down:
            judged = _warning if port in vms or (spare and port in uplinks) else _error
            findings.append(judged(name, f"{port}: link down", "see the instance's ovs-vswitchd.log", port))
    return findings or _ok(name, f"{len(wanted)} up")


def ports_polled(refused: Mapping[str, str], vms: Collection[str]) -> list[Finding]:
    """Check that the datapath has every port. ``refused``: the ports that it does not have as wanted, each with the
    cause; no packet passes through such a port, whatever the database says. For a port of one of ``vms`` this is only a
    warning, as only that VM is affected."""
    hint = "`ovs-hotswap overlay apply`; see the instance's ovs-vswitchd.log"
    findings = [
        (_warning if name in vms else _error)("datapath", f"port {name}: {cause}", hint)
        for name, cause in refused.items()
    ]
    return findings or _ok("datapath", "has every port, with its MTU")


def tables(side: Side, diff: Sequence[str]) -> list[Finding]:
    """Check a side's flow tables. ``diff``: the lines in which the installed flows differ from the intended ones."""
    name = "flow tables"
    if not diff:
        return _ok(name, "as intended")
    shown = "; ".join(diff[:3]) + (f"; and {len(diff) - 3} more" if len(diff) > 3 else "")
    return [_error(name, f"{len(diff)} lines differ: {shown}", f"`ovs-hotswap overlay diff --side {side}`")]


# vlog(7): TIME|SEQUENCE|MODULE(THREAD)|LEVEL|MESSAGE
_LOG_LINE = re.compile(r"^[^|]*\|\d+\|(?P<module>[^|]+)\|(?P<level>[A-Z]+)\|(?P<message>.*)$")
HARMLESS = (
    re.compile(r"mismatches.*maybe resent"),  # twice per ring and move: the index comes from used->idx
    # The broker died, or hung up because a guest ended; other checks look at the VMs (DPDK lib/vhost/socket.c,
    # vhost_user.c).
    re.compile(
        r"(recvmsg failed|sendmsg error) on fd \d+ \((Connection reset by peer|Broken pipe)\)"
        r"|vhost read message failed"
    ),
)


_CANNOT = re.compile(r"not supported|flow control|no available \(non-isolated\) pmd thread", re.IGNORECASE)
"""Messages that a healthy card, or a machine with several NUMA nodes, causes."""


def log_errors(text: str, ports: Collection[str] = (), harmless: Sequence[re.Pattern[str]] = HARMLESS) -> list[Finding]:
    """Report each different error in ``text``, which ovs-vswitchd has logged since before the upgrade. A message is an
    error if it ends the process or names one of our own ``ports``. Other messages are warnings: a guest or the machine
    may have caused them, and other checks look at what matters."""
    name = "log"
    ours = re.compile(rf"\b(?:{'|'.join(map(re.escape, ports))})\b") if ports else None
    counts: dict[tuple[Callable[..., Finding], str], int] = {}
    for line in text.splitlines():
        match = _LOG_LINE.match(line)
        if match is None or match["level"] not in {"ERR", "EMER"}:
            continue
        message = match["message"]
        if any(pattern.search(message) for pattern in harmless):
            continue
        about_us = ours is not None and ours.search(message) and not _CANNOT.search(message)
        judged = _error if match["level"] == "EMER" or about_us else _warning
        key = judged, f"{match['module']}: {message}"
        counts[key] = counts.get(key, 0) + 1
    findings = [
        judged(name, message + (f" ({count} times)" if count > 1 else ""), "see the instance's ovs-vswitchd.log")
        for (judged, message), count in counts.items()
    ]
    return findings or _ok(name, "no new error")
