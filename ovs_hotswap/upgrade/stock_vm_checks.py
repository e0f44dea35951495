"""Checks whether each VM of a host that others program can be taken over: pure functions from facts to findings.

A VM is taken over without a disconnect if its state can be learnt from safe sources and the new instance can carry all
that its guest uses. For the others each finding names the alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.stock.facts import Confinement, PortKind, StockLog, StockSwitch, StockVm
from ovs_hotswap.upgrade.checks import MAX_REGIONS
from ovs_hotswap.vhostuser.messages import CARRIED_FEATURES, Feature
from ovs_hotswap.wording import ranges

QEMU_NEEDED = "7.2"  # the first one with x-query-virtio-vhost-queue-status (QEMU qapi/virtio.json)
RECONNECT_MS = 12
SCRATCH_REGIONS = 1  # of the broker, in each memory table that it sends
MIB = 1 << 20
STILL_MS_PER_MIB = 0.2
"""For so long a switch that locks its memory maps each MiB of small pages (docs/design-notes/entering-a-connection.md).
"""
LONGEST_STILL_MS = 100
RING_REGIONS = 1  # of the new instance's memory, beside the scratch memory, if the VM is wired by its rings
_NAMES = {33: "ACCESS_PLATFORM (a virtual IOMMU)", 34: "RING_PACKED (packed rings)", 38: "NOTIFICATION_DATA",
          40: "RING_RESET"}  # fmt: skip
# virtio 1.2, 6: bits that are no features of the device, but of vhost-user itself.
_OF_VHOST = 1 << Feature.PROTOCOL_FEATURES
_NO_ATTACH = 3  # Yama: no process may attach to another (Documentation/admin-guide/LSM/Yama.rst)

Leave = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Makes texts about what can be done with a VM that is not taken over without a disconnect. ``leave_out`` makes the
    command that leaves a VM out."""

    leave_out: Leave

    def reconnect(self, vm: str) -> str:
        return (f"or leave the VM out, so that its QEMU connects again (about {RECONNECT_MS} ms without network): "
                f"`{self.leave_out(vm)}`; or migrate it to another host")  # fmt: skip

    def restart(self, vm: str) -> str:
        return f"migrate the VM to another host, or restart it; the others: `{self.leave_out(vm)}`"


def _finding(severity: Severity, check: str, vm: StockVm, text: str, hint: str | None) -> Finding:
    return Finding(check, severity, f"VM {vm.name}: {text}", hint, f"VM {vm.name}")


def _error(check: str, vm: StockVm, text: str, hint: str | None) -> Finding:
    return _finding(Severity.ERROR, check, vm, text, hint)


def _warning(check: str, vm: StockVm, text: str, hint: str | None) -> Finding:
    return _finding(Severity.WARNING, check, vm, text, hint)


def _ok(findings: list[Finding], check: str, text: str) -> list[Finding]:
    return findings or [Finding(check, Severity.OK, text)]


def _taken(vms: Iterable[StockVm]) -> list[StockVm]:
    """The VMs whose connection is to be entered."""
    return [vm for vm in vms if vm.kind is PortKind.CLIENT and vm.connected and not vm.adopted]


def vm_sockets(vms: Iterable[StockVm], others: Alternatives) -> list[Finding]:
    """Check that each VM's port is a client, to which the broker can be what QEMU is now. QEMU connects to a server
    port and keeps that connection for itself; a VDUSE device has no QEMU behind it."""
    name = "VM ports"
    vms = list(vms)
    findings = []
    for vm in vms:
        if vm.kind is PortKind.SERVER:
            hint = ("give it a port of type dpdkvhostuserclient, and its QEMU a chardev with server=on, at its next "
                    f"start; now {others.restart(vm.name)}")  # fmt: skip
            findings.append(_error(name, vm, "its port is a server (dpdkvhostuser), which cannot be taken over", hint))
        elif vm.kind is PortKind.VDUSE:
            text = f"its port is the VDUSE device {vm.socket}, which the kernel gives to one process alone"
            findings.append(_error(name, vm, text, f"stop what uses the device; {others.restart(vm.name)}"))
        elif vm.fault is not None:
            hint = f"`ovs-vsctl get interface {vm.name} error`"
            findings.append(_warning(name, vm, f"the switch could not make its port: {vm.fault}", hint))
        elif not vm.socket.startswith("/"):
            hint = f"`ovs-vsctl get interface {vm.name} options`"
            findings.append(_error(name, vm, f"its socket {vm.socket!r} is no absolute path", hint))
        elif not vm.connected and vm.qemu is not None:
            text = ("its QEMU is connected, and the switch's database says that no guest is served: its driver does "
                    "not run, or the database is behind, as it may be after a restart of the switch")  # fmt: skip
            hint = f"if it has its network: take its link down and up, as with `virsh domif-setlink`, for {vm.socket}"
            findings.append(_warning(name, vm, text, hint))
        elif not vm.connected:
            findings.append(_warning(name, vm, "its QEMU is not connected: there is nothing to take over, and the "
                                     "broker waits for it", f"look for its QEMU at {vm.socket}"))  # fmt: skip
    return _ok(findings, name, f"{len(vms)} VMs, each with a client port")


def shared_sockets(vms: Iterable[StockVm]) -> list[Finding]:
    """Check that no two ports have one socket: the broker could not say whose connection arrives."""
    places: dict[str, list[str]] = {}
    for vm in vms:
        places.setdefault(vm.socket, []).append(vm.name)
    return [
        Finding("VM ports", Severity.ERROR, f"ports {', '.join(names)} have one socket: {socket}",
                f"`ovs-vsctl del-port` of those that no VM uses: {', '.join(names)}")
        for socket, names in places.items()
        if len(names) > 1
    ]  # fmt: skip


def qemus(vms: Iterable[StockVm], others: Alternatives) -> list[Finding]:
    """Check that each VM's QEMU is seen, is new enough and has a QMP socket that can be asked."""
    name = "QEMU"
    taken = _taken(vms)
    findings = []
    for vm in taken:
        qemu, or_else = vm.qemu, others.reconnect(vm.name)
        if qemu is None:
            findings.append(_error(name, vm, f"the process at the other end of {vm.socket} is not seen",
                                   f"run it as root, in the pid namespace of its QEMU; {or_else}"))  # fmt: skip
            continue
        if not any(each.path for each in qemu.monitors):
            findings.append(_error(name, vm, f"QEMU {qemu.pid} has no QMP socket to be asked for its rings",
                                   "give it one at its next start (-qmp unix:PATH,server=on,wait=off); "
                                   f"{or_else}"))  # fmt: skip
        elif not qemu.libvirt and all(each.client for each in qemu.monitors if each.path):
            clients = ", ".join(sorted({each.client for each in qemu.monitors if each.client}))
            findings.append(_error(name, vm, f"the QMP socket of QEMU {qemu.pid} has room for one client, and has one: "
                                   f"{clients}", f"end that client for the takeover; {or_else}"))  # fmt: skip
        if qemu.version is None:
            findings.append(_error(name, vm, f"the version of QEMU {qemu.pid} cannot be found out",
                                   f"`/proc/{qemu.pid}/exe --version`: it must belong to root; {or_else}"))  # fmt: skip
        elif _numbers(qemu.version) < _numbers(QEMU_NEEDED):
            findings.append(_error(name, vm, f"QEMU {qemu.version} cannot say where its rings are; {QEMU_NEEDED} can",
                                   f"upgrade QEMU and restart or migrate the VM; {or_else}"))  # fmt: skip
    return _ok(findings, name, f"{len(taken)} can be asked")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def libvirt_domains(vms: Iterable[StockVm]) -> list[Finding]:
    """Report the VMs whose QMP socket belongs to libvirt. A query through libvirt marks the domain as tainted
    (``custom-monitor``), which only shows in its log."""
    return [
        _warning("libvirt", vm, f"is the libvirt domain {vm.qemu.guest}: it is asked through libvirt, which marks it "
                 "as tainted by a custom monitor command", f"`virsh dominfo {vm.qemu.guest}`")
        for vm in _taken(vms)
        if vm.qemu is not None and vm.qemu.libvirt and all(each.client for each in vm.qemu.monitors)
    ]  # fmt: skip


def confined(vms: Iterable[StockVm], confinement: Confinement, others: Alternatives) -> list[Finding]:
    """Check that the kernel's security modules let this program duplicate descriptors of the QEMUs and the switch."""
    name = "confinement"
    if confinement.ptrace_scope == _NO_ATTACH:
        return [Finding(name, Severity.ERROR, "Yama lets no process attach to another (kernel.yama.ptrace_scope is 3): "
                        "the descriptors of a connection cannot be duplicated", "set kernel.yama.ptrace_scope to 1 "
                        "in /etc/sysctl.d and restart the host: 3 cannot be changed while it runs")]  # fmt: skip
    findings = []
    for vm in _taken(vms):
        if vm.qemu is not None and not vm.qemu.traceable:
            why = f"its label is {vm.qemu.label!r}, ours is {confinement.own_label!r}"
            hint = f"run it as root, with CAP_SYS_PTRACE; {others.reconnect(vm.name)}"
            if confinement.selinux:
                hint = f"`ausearch -m avc -ts recent` names the rule; {others.reconnect(vm.name)}"
            findings.append(_error(name, vm, f"the kernel keeps us from QEMU {vm.qemu.pid}: {why}", hint))
    return _ok(findings, name, "the connections can be entered")


def features(vms: Iterable[StockVm], offer: int | None, others: Alternatives) -> list[Finding]:
    """Check that the broker carries each feature that a guest has acknowledged, and that the new release has it.
    ``offer``: what the new release offers; ``None`` if that is not known yet."""
    name = "features"
    taken = _taken(vms)
    findings = []
    for vm in taken:
        acked = (vm.acked or 0) & ~_OF_VHOST
        if vm.acked is None:
            findings.append(_error(name, vm, "the features that its guest uses are not known",
                                   f"`ovs-vsctl get interface {vm.name} status`"))  # fmt: skip
        elif beyond := acked & ~CARRIED_FEATURES:
            findings.append(_error(name, vm, f"its guest uses {names_of(beyond)}, which the broker does not carry",
                                   f"turn it off in the VM's virtio device; {others.restart(vm.name)}"))  # fmt: skip
        elif offer is not None and (lacking := acked & ~offer):
            findings.append(_error(name, vm, f"its guest uses {names_of(lacking)}, which the new release does not have",
                                   f"upgrade to another release; {others.restart(vm.name)}"))  # fmt: skip
    return _ok(findings, name, "all that guests use can be carried")


def names_of(bits: int) -> str:
    """Return the names of features; a bit without a name here is called ``bit 40``."""
    known = {**_NAMES, **{int(each): each.name for each in Feature}}
    return ", ".join(known.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1)


def regions(vms: Iterable[StockVm], others: Alternatives) -> list[Finding]:
    """Check that each VM's memory table has room for the scratch memory, and for the new instance's memory, which the
    old switch is given too if the VM is wired by its rings. DPDK takes ``MAX_REGIONS`` (lib/vhost/rte_vhost.h,
    VHOST_MEMORY_MAX_NREGIONS)."""
    name = "memory regions"
    findings = []
    for vm in _taken(vms):
        count = vm.log.regions or 0
        if count + SCRATCH_REGIONS > MAX_REGIONS:
            findings.append(_error(name, vm, f"has {count} memory regions of at most {MAX_REGIONS}: none is left for "
                                   "parking", f"take a memory device from it; {others.restart(vm.name)}"))  # fmt: skip
        elif count + SCRATCH_REGIONS + RING_REGIONS > MAX_REGIONS:
            findings.append(_warning(name, vm, f"has {count} memory regions of at most {MAX_REGIONS}: it can be wired "
                                     "by a mirror only, not by its rings", "take a memory device from it"))  # fmt: skip
    return _ok(findings, name, "each VM has room for ours")


def pages(vms: Iterable[StockVm], switch: StockSwitch, others: Alternatives) -> list[Finding]:
    """Check for how long each VM is without network because the old switch maps the guest's memory again while QEMU
    stands still. A switch that locks its memory (--mlockall) touches each page of it then."""
    name = "memory pages"
    findings = []
    for vm in _taken(vms) if switch.locks_memory else ():
        size = vm.log.small_pages / MIB
        if (still_ms := size * STILL_MS_PER_MIB) < 1:
            continue
        text = (f"has {size:.0f} MiB of memory in small pages, and the switch locks its memory (--mlockall): its QEMU "
                f"stands still for about {still_ms:.0f} ms longer, and frames of the other VMs wait")  # fmt: skip
        make, hint = _warning, ""
        if still_ms > LONGEST_STILL_MS:
            make, hint = _error, f"; {others.reconnect(vm.name)}"
        findings.append(make(name, vm, text, f"give it huge pages when it starts the next time{hint}"))
    return _ok(findings, name, "no VM's memory takes long to map again")


def logs(vms: Iterable[StockVm], log: StockLog, others: Alternatives) -> list[Finding]:
    """Check that the log of ovs-vswitchd has each VM's connection from its beginning, without a gap (a rotation, or the
    rate limit): the numbers of its kick and call descriptors and its memory table stand nowhere else. While a VM is
    taken over, the log also shows that its QEMU is silent, so it must be written now."""
    name = "log"
    taken = _taken(vms)
    findings = [Finding(name, Severity.ERROR, *each) for each in _log_as_a_whole(log)] if taken else []
    for vm in taken if log.file is not None else ():
        if vm.log.fault is not None:
            hint = f"{vm.log.hint}; {others.reconnect(vm.name)}" if vm.log.hint else others.reconnect(vm.name)
            findings.append(_error(name, vm, vm.log.fault, hint))
    return _ok(findings, name, "has every connection")


def _log_as_a_whole(log: StockLog) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the log for all VMs, each with what helps."""
    if log.file is None:
        yield ("ovs-vswitchd writes no log file, from which connections are read",
               "`ovs-appctl vlog/reopen`, or start it with --log-file")  # fmt: skip
    elif log.file.endswith(" (deleted)"):
        yield (f"ovs-vswitchd writes to {log.file}, which nothing can read",
               "`ovs-appctl vlog/reopen`, which the rotation of the log has left out")  # fmt: skip
    if log.level not in ("INFO", "DBG", None):
        yield (f"messages of DPDK are logged at level {log.level} and above, so vhost-user messages are not",
               "`ovs-appctl vlog/set dpdk:file:info`")  # fmt: skip
    if log.vhost_level not in ("info", "debug", None):
        yield (f"DPDK's vhost library logs at level {log.vhost_level} and above: its messages are not logged",
               "`ovs-appctl dpdk/log-set lib.vhost.config:info`")  # fmt: skip


def tags(vms: Iterable[StockVm]) -> list[Finding]:
    """Report the VMs on access ports and other ports with VLANs. In the window the same VLAN is set on the ports that
    carry their frames to the old pipeline, and follows changes."""
    findings = []
    for vm in vms:
        if vm.tag is not None or vm.trunks or vm.vlan_mode is not None:
            parts = [f"tag {vm.tag}"] if vm.tag is not None else []
            parts += [f"trunks {ranges(vm.trunks)}"] if vm.trunks else []
            parts += [f"vlan_mode {vm.vlan_mode}"] if vm.vlan_mode else []
            text = f"its port has {', '.join(parts)}: in the window the ports that wire it have the same"
            findings.append(_warning("VLANs", vm, text, "change no VLAN of a VM while the upgrade runs"))
    return findings


def left_out_as_warnings(findings: Iterable[Finding], left_out: Collection[str]) -> list[Finding]:
    """Return the findings, with the errors about VMs that are left out as warnings."""
    items = {f"VM {vm}" for vm in left_out}
    return [
        Finding(each.check, Severity.WARNING, each.text, each.hint, each.item)
        if each.severity is Severity.ERROR and each.item in items else each
        for each in findings
    ]  # fmt: skip
