"""Gathers from the host the facts from which ``checks`` makes findings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ovs_hotswap import __version__
from ovs_hotswap.backends import AbsenceCause, BackendMode, VmStatus
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import (
    flow_tables,
    memory_checks,
    package_manager,
    rings,
    settings_transfer,
    traces,
    uplink_ports,
)
from ovs_hotswap.host import scheduling as beside_vms
from ovs_hotswap.host.culprit import ON_TRIAL
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.machine import cores, descriptor_limit, running_switches
from ovs_hotswap.host.pmd_progress import comes_round
from ovs_hotswap.host.rings import Place, RingSample
from ovs_hotswap.host.standby import read_record, usable
from ovs_hotswap.model import Finding, Release, Severity, Side
from ovs_hotswap.overlay import path_mtu
from ovs_hotswap.overlay.next_hops import judge as judge_next_hops
from ovs_hotswap.overlay.ports import VXLAN
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.datapath import ports_with_mtus, refused
from ovs_hotswap.switch.machine_parts import numa_nodes
from ovs_hotswap.switch.memory import Reservation, reserve
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.openflow import window_incapable
from ovs_hotswap.switch.paths import log_in_use, older
from ovs_hotswap.switch.pools import huge_page_pools, page_mib
from ovs_hotswap.switch.release import HOST
from ovs_hotswap.system import files, host_error
from ovs_hotswap.upgrade import baseline, checks, device_checks, uplink_proof
from ovs_hotswap.upgrade.situation import command_without
from ovs_hotswap.vhostuser.capture import can_capture


def precheck(host: Host, old: Side, new: Side, release: str, leave_out: Collection[str] = ()) -> list[Finding]:
    """Check everything that can be known before anything is changed. A fault of the host is a finding and never raises.
    A reason why a VM of ``leave_out`` cannot be moved is only a warning."""
    begun = None
    with contextlib.suppress(HotswapError):
        begun = uplink_proof.counters(host, old)
    return gathered(
        lambda: release_checks(host, old, release),
        lambda: beside(host, new, release),
        lambda: _machine(host, new),
        lambda: _memory(host, old, new, release),
        lambda: device_checks.precheck(host, new),
        lambda: active(host, old),
        lambda: broker(host),
        lambda: vms(host, old, new, release, leave_out),
        lambda: rings_before(host),
        lambda: settings_transfer.check(host, old, new, release, goes_on=usable(host, new, host.releases.get(release))),
        lambda: mtus(host, old),
        lambda: upgraded_next_hops(host),
        lambda: uplink_proof.check(host, old, begun),
        lambda: _steered(host, old),
        lambda: traces.check(host),
    )


def gathered(*parts: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of all parts, each once. A part that raises is a finding."""
    once: dict[tuple[str, str], Finding] = {}
    for part in parts:
        for each in _tried(part):  # the MTU of a device, for example, is judged with the path and with the uplink
            once.setdefault((each.check, each.text), each)
    return list(once.values())


def _tried(part: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(part())
    except (HotswapError, OSError) as fault:
        error = host_error(fault) if isinstance(fault, OSError) else fault
        return [Finding(type(error).__name__, Severity.ERROR, error.message, error.hint)]


def release_checks(host: Host, old: Side, name: str) -> list[Finding]:
    wanted = host.releases.get(name)
    found = [Finding("release", Severity.OK, wanted.label)]
    if (same := runs_already(host, old, wanted)) is not None:
        found.append(same)
    elif name == getattr(host.instances[old].release(), "name", None) and host.instances[old].outdated():
        text = f"instance {old} runs files of it that were replaced since: the upgrade goes to the newer ones"
        found.append(Finding("release", Severity.OK, text, f"`ovs-hotswap upgrade --release {name}`"))
    if name == HOST and package_manager.at_work():
        text = "apt or dpkg is at work, so the files of release host may be of two versions"
        hint = "when it has ended, try again: `fuser -v /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock`"
        found.append(Finding("release", Severity.ERROR, text, hint))
    return found


def up_to_date(host: Host, active: Side, wanted: Release) -> bool:
    """Whether the active instance runs just this release, from files that have not been replaced since it started. One
    that has died still has the record of its start, and runs nothing."""
    instance = host.instances[active]
    return host.running(active) and instance.release() == wanted and not instance.outdated()


def runs_already(host: Host, active: Side, wanted: Release) -> Finding | None:
    """The finding that the active instance runs just this release, so that an upgrade to it changes nothing."""
    if not up_to_date(host, active, wanted):
        return None
    text = f"instance {active} already runs it, from the present files: `upgrade` changes nothing"
    return Finding("release", Severity.OK, text, "`--force` upgrades again")


def beside(host: Host, new: Side, wanted: str) -> list[Finding]:
    """Report what an upgrade will do with an instance that runs beside the active one. It must say what
    ``standby.release_for_upgrade`` does."""
    name, found = "standby", host.instances[new].release() if host.running(new) else None
    if found is None:
        return []
    if usable(host, new, host.releases.get(wanted)):
        return [
            Finding(name, Severity.OK, f"instance {new} runs release {wanted} already: the upgrade continues with it")
        ]
    files = ", from files that were replaced since" if host.instances[new].outdated() else ""
    text = f"instance {new} runs release {found.label}{files}: the upgrade ends it and starts its own"
    record = read_record(host)
    kept = record is not None and record.side is new
    return [Finding(name, Severity.OK if kept else Severity.WARNING, text)]


def _machine(host: Host, new: Side) -> list[Finding]:
    config = host.config
    unit = host.instances[new].unit()
    found = checks.cpu_set(
        cores(None if unit is None else unit.control_group()), {side: config.instance(side).pmd_cores for side in Side}
    )
    own = [status.vswitchd_pid for status in (host.instances[side].status() for side in Side)]
    run_dir = os.path.realpath(config.side_dir(new))
    found += checks.conflicting_processes(
        running_switches(host.system), [pid for pid in own if pid], run_dir, config.namespace(new)
    )
    found += checks.descriptors(descriptor_limit(host, new), [(2, vm.queues) for vm in host.vm_ports])
    return found


def _memory(host: Host, old: Side, new: Side, release: str) -> list[Finding]:
    """Check the memory of the new instance. If the upgrade continues with one that runs, its packet pool is checked; if
    it will start one, the free huge pages. An instance that is ended first frees enough of them: it was started for the
    same VMs."""
    limit = host.config.instance(new).memory_mb
    if host.pool_for_each_port(new):
        nodes = numa_nodes(host.config.instance(new).pmd_cores)
        return [] if host.running(new) else memory_checks.huge_pages(huge_page_pools(), limit, nodes)
    demand = host.demand(new)
    wanted = reserve(demand, page_mib())
    if not host.running(new):
        found = memory_checks.allowed(new, demand, wanted, limit)
        found += memory_checks.huge_pages(
            huge_page_pools(), wanted.mib, numa_nodes(host.config.instance(new).pmd_cores)
        )
    elif not usable(host, new, host.releases.get(release)):
        found = memory_checks.allowed(new, demand, wanted, limit)
    else:
        fault = memory_checks.too_small(host.packet_pools(new), demand.buffers)
        hint = f"`ovs-hotswap instance stop {new}`: the upgrade starts its own"
        found = [Finding(memory_checks.POOL, Severity.ERROR, f"instance {new}: {fault}", hint)] if fault else []
    return found + (pool_in_use(host, old, wanted) if host.running(old) else [])


def pool_in_use(host: Host, active: Side, wanted: Reservation) -> list[Finding]:
    """Check that an instance with the memory ``wanted`` has room for what the active one holds. Raises SwitchError."""
    return memory_checks.in_use(active, host.packet_pools(active), wanted)


def active(host: Host, old: Side) -> list[Finding]:
    """Check the instance that is active: its database, threads, ports and flows. Raises SwitchError."""
    if not host.running(old):
        return [not_running(old)]
    found = checks.database(old, host.instances[old].status().dpdk_initialized is not None)
    found += checks.priority(old, beside_vms.low(host, old))
    intent = host.intent
    found += checks.ports_polled(
        refused(ports_with_mtus(host.instances[old].paths), host.bridge_spec(old).ports), [vm.name for vm in intent.vms]
    )
    flows = host.openflow(old)
    found += checks.window_flows(window_incapable(flows.dump()))
    return found + checks.tables(old, flow_tables.differences(host, old, Form.FINAL))


def not_running(side: Side) -> Finding:
    text = f"instance {side}, which is active, does not run"
    return Finding("active", Severity.ERROR, text, f"`ovs-hotswap instance start {side}`")


def broker(host: Host) -> list[Finding]:
    """Check the broker, if there is one in the configured back-end mode. Raises BrokerError."""
    if host.config.backend is not BackendMode.BROKER:
        return []
    status = host.broker.status()
    return checks.broker(status.version, __version__, supervised=status.supervised)


def vms(host: Host, old: Side, new: Side, release: str, leave_out: Collection[str] = ()) -> list[Finding]:
    """Check the VMs that ``old`` serves, for an upgrade to ``release`` on ``new``. Raises BrokerError, ReleaseError."""
    found: list[Finding] = []
    offered = usable(host, new, host.releases.get(release))  # otherwise another instance will serve the VMs
    vms = host.backends.vms()
    facts = [replace(vm_facts(vm), absent=_absent(host, vm)) for vm in vms]
    found += checks.known_vms([vm.name for vm in host.vm_ports], [vm.name for vm in facts])
    found += checks.vms_connected(facts, lambda name: str(host.config.front_end(name)))
    found += checks.left_out(leave_out, [vm.name for vm in facts])
    moved = [vm for vm in facts if vm.name not in leave_out]
    found += checks.memory_regions(moved, lambda name: command_without(release, {*leave_out, name}))
    found += checks.queue_pairs(facts, {vm.name: vm.queues for vm in host.vm_ports})
    if host.config.backend is BackendMode.BROKER:
        found += checks.uncaught_rings(moved)
    for vm in vms:
        item, found_of = f"VM {vm.name}", Severity.WARNING if vm.name in leave_out else Severity.ERROR
        if vm.quarantine:
            found.append(quarantined(vm, item))
        elif vm.astray(old):
            found.append(astray(vm, old, found_of))
        if (missing := vm.switches[new].missing) and offered:
            without = command_without(release, {*leave_out, vm.name})
            found.append(not_offered(item, missing, new, f"`{without}`", found_of))
    return found


def astray(vm: VmStatus, active: Side, severity: Severity) -> Finding:
    """The finding for a VM that another side than the active one owns."""
    item = f"VM {vm.name}"
    text = f"{item} is owned by {vm.owner or 'neither side'} ({vm.certainty}), not by {active}"
    return Finding("owner", severity, text, f"`ovs-hotswap vm show {vm.name}`", item)


def not_offered(item: str, missing: Iterable[str], new: Side, without: str, severity: Severity) -> Finding:
    """The finding for a VM that uses features which the new instance does not offer. ``without``: the command that
    leaves the VM out."""
    text = f"{item} uses {', '.join(missing)}, which instance {new} does not offer"
    hint = f"upgrade to a release that offers it; or leave the VM without network until it is restarted: {without}"
    return Finding("features", severity, text, hint, item)


def quarantined(vm: VmStatus, item: str) -> Finding:
    """The finding for a VM in quarantine, which an upgrade leaves out. It is an error if the watchdog only holds the VM
    back during a search: an upgrade interrupts the search, so the VM would have no network until the upgrade ends."""
    text, end = f"{item} is served by no instance: {vm.quarantine}", f"`ovs-hotswap vm release {vm.name}`"
    if vm.quarantine == ON_TRIAL:
        hint = f"wait until the search has ended: `ovs-hotswap watch status`; if no watchdog runs: {end}"
        return Finding("quarantine", Severity.ERROR, text, hint, item)
    return Finding("quarantine", Severity.WARNING, text, end, item)


def mtus(host: Host, active: Side | None = None) -> list[Finding]:
    """Check the MTUs on the way of the VMs' packets, as far as they can be seen."""
    return path_mtu.judge(host.intent, replace(path_seen(host), devices=_devices(host)), active)


def path_seen(host: Host) -> path_mtu.Seen:
    """The MTUs on the way, without the kernel's devices."""
    ports = {}
    for side in Side:
        with contextlib.suppress(SwitchError):  # that it does not answer is a finding of its own
            ports[side] = {name: port.mtu for name, port in host.datapath_ports(side).items() if port.mtu}
    return path_mtu.Seen(ports=ports, devargs={side: host.config.instance(side).devices for side in Side})


def _devices(host: Host) -> list[path_mtu.Device]:
    """The kernel's devices on the underlay's way. A running instance has its own in its network namespace. A device
    that is not there is no finding here."""
    config, place = host.config, host.config.uplink.namespace
    where = [(name, place) for nic in config.uplink.nics
             for name in (nic.device, nic.representor_a, nic.representor_b)]  # fmt: skip
    for side, instance in host.instances.items():
        own = config.instance(side)
        inside = place if instance.pid() is None else instance.paths.netns
        where += [(own.uplink_device, inside), (own.second_device, inside)]
    found = []
    for name, namespace in where:
        with contextlib.suppress(SwitchError):
            if name is not None and (mtu := Namespaces().mtu(name, namespace)) is not None:
                found.append(path_mtu.Device(name, *mtu, namespace))
    return found


def next_hops(host: Host) -> list[Finding]:
    """Ask the underlay's next hops that are followed. Raises UplinkError."""
    underlay = host.underlay
    return judge_next_hops(host.intent, underlay.answers(), underlay.in_use()) if underlay.asks else []


def upgraded_next_hops(host: Host) -> list[Finding]:
    """Ask the next hops. A silent one keeps no upgrade: nothing is sent to it now either. Raises UplinkError."""
    return checks.as_warnings(next_hops(host))


def _steered(host: Host, old: Side) -> list[Finding]:
    owner = host.uplink.owner()
    if owner not in (None, old):
        return [Finding("uplink", Severity.ERROR, f"it is steered to {owner}, not to {old}", "`ovs-hotswap status`")]
    if owner is None and not host.config.uplink.both_open:
        text = f"instance {old} does not have it open"
        return [Finding("uplink", Severity.ERROR, text, "`ovs-hotswap overlay apply` opens it")]
    return []


def _absent(host: Host, vm: VmStatus) -> str | None:
    """Why a VM's QEMU is not connected, as far as the broker and this process can find out together. ``None`` if it is
    connected."""
    why = vm.absent
    if why is None:
        return None
    if why.cause is not AbsenceCause.NO_SOCKET:
        return why.text
    path = str(host.config.front_end(vm.name))
    if os.path.exists(path):
        return "its socket is there, but not for the broker: its unit does not see that directory (PrivateTmp=)"
    clients = [pid for pid in host.system.pids() if calls(host.system.cmdline(pid), path)]
    if clients:
        return "its QEMU connects to the socket and does not listen on it: start it with server=on"
    return why.text


def calls(argv: Sequence[str], path: str) -> bool:
    """Whether a QEMU with the command line ``argv`` connects to the socket ``path`` and does not listen on it."""
    chardevs = [each.split(",") for each in argv if f"path={path}" in each.split(",")]
    return any(not {"server=on", "server"} & set(options) for options in chardevs)


def vm_facts(vm: VmStatus) -> checks.VmFacts:
    receiving = [ring for ring in vm.rings if ring.started and not ring.transmits]
    uncaught = sum(ring.size is None or not can_capture(ring.index, ring.size) for ring in receiving)
    return checks.VmFacts(vm.name, vm.has_guest, vm.features_used, vm.memory_regions, len(vm.rings) // 2, uncaught)


def rings_before(host: Host) -> list[Finding]:
    """Check the guests' rings. Raises BrokerError."""
    found = baseline.look(host)
    return checks.rings_before(found.wedged, found.unread)


def ring_samples(host: Host) -> list[RingSample]:
    """The present indices of every ring of the VMs that are to be served."""
    return rings.samples(vm for vm in host.backends.vms() if vm.to_serve)


def postcheck(host: Host, new: Side, apart_s: float, end: LogEnd, known: Collection[Place]) -> list[Finding]:
    """Check the new instance after the commit. ``apart_s``: seconds between the two samples of the rings. ``end``:
    where the log ended before. ``known``: rings that are not judged. Any other ring that stands still now is only a
    warning, as long as the instance's threads make progress: it was served in the soak, or had nothing to send."""
    before = ring_samples(host)
    host.system.sleep(apart_s)
    found = checks.as_warnings(checks.ring_progress(before, ring_samples(host), known))
    found += checks.polling(new, comes_round(host, new)) + checks.priority(new, beside_vms.low(host, new))
    with host.instances[new].database() as database:
        interfaces = database.interfaces()
    facts = [checks.PortFacts(name, status.link_state == "up", status.error) for name, status in interfaces.items()]
    absent = [vm.name for vm in host.backends.vms(read=False) if not any(ring.started for ring in vm.rings)]
    vms = [vm.name for vm in host.intent.vms]
    uplinks = uplink_ports.names(host.config)
    found += checks.ports([*uplinks, VXLAN, *vms], facts, absent, vms, uplinks)
    found += checks.ports_polled(refused(ports_with_mtus(host.instances[new].paths), host.bridge_spec(new).ports), vms)
    found += checks.tables(new, flow_tables.differences(host, new, Form.FINAL))
    return found + checks.log_errors(log_since(host, new, end), [*uplinks, VXLAN])


class LogEnd(NamedTuple):
    """The end of a log: its length in bytes, and the inode number of its file (0: not known). The file is renamed when
    it has become too long."""

    offset: int = 0
    file: int = 0


def log_end(host: Host, side: Side) -> LogEnd:
    """Where the side's log ends now; ``LogEnd()`` if there is no log. Raises HostError."""
    path = log_in_use(host.instances[side].paths.log)
    with files(path):
        try:
            found = path.stat()
        except FileNotFoundError:
            return LogEnd()
    return LogEnd(found.st_size, found.st_ino)


def log_since(host: Host, side: Side, end: LogEnd) -> str:
    """The side's log since ``end``, with the part that is in a file that has been renamed since. A file that has been
    cut or replaced since is read from its beginning; if there is none, the text is empty. Raises HostError."""
    log = host.instances[side].paths.log
    text, same = _log_from(log, end)
    return text if same or not end.file else _log_from(older(log), end)[0] + text


def _log_from(path: Path, end: LogEnd) -> tuple[str, bool]:
    """The text of the file ``path`` since ``end``, and whether it is the file of ``end``."""
    with files(path):
        try:
            with path.open("rb") as log:
                found = os.fstat(log.fileno())
                same = found.st_ino == end.file
                log.seek(end.offset if (same or not end.file) and end.offset <= found.st_size else 0)
                return log.read().decode(errors="replace"), same
        except FileNotFoundError:
            return "", False
