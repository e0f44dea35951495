"""Checks of a host whose bridges others program, before its switch is taken over: pure functions from facts to
findings. Each names the thing, the cause, and the command or the way that helps. ``stock.survey`` reads the facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from ovs_hotswap.model import MAX_MIRRORS, Finding, Severity, Side
from ovs_hotswap.stock.facts import (
    Confinement,
    DeviceKind,
    Facts,
    KernelPort,
    Pipeline,
    PortKind,
    StockBridge,
    StockSwitch,
    StockUplink,
    StockVm,
)
from ovs_hotswap.upgrade import stock_vm_checks as of_vms
from ovs_hotswap.wire.mirror_flows import COPIES, DELIVER, ENTERS, MOST_OVER_VETH, RECEIVED
from ovs_hotswap.wording import short, some

WIRE_MARKS = frozenset({DELIVER, RECEIVED, ENTERS})  # the values of pkt_mark by which wire mode knows its frames
EXPIRY_S = 30  # after this time without a packet the old switch has forgotten a connection that is not TCP
INTERNAL_MS, KERNEL_MS = 50, 150  # how long an internal port, and one of another device, is without network
BUSY_MS = 500  # and where guests take all cores, with several ports
# The first versions without the assertion (OVS commits 6753b1086, a8c3f3447, ad92b0da1 and 1116459b3, "conntrack:
# Remove nat_conn introducing key directionality"); 3.3.0 and all before 2.17 follow from them.
_FIXED = {(2, 17): 8, (3, 0): 5, (3, 1): 3, (3, 2): 3}
_BIFURCATED = frozenset({"mlx4_core", "mlx5_core", "mana"})


@dataclass(frozen=True, slots=True)
class Terms:
    """What is planned. ``offer``: the features that the new release offers; ``None`` if that is not known yet.
    ``devices``: the ports of type dpdk for which the new instance has a device of its own. ``left_out``: VMs that are
    not taken over. ``database`` and ``log``: the files that the configuration names, if any. ``leave_out`` makes
    the command that leaves a VM out."""

    offer: int | None = None
    devices: Collection[str] = ()
    left_out: Collection[str] = ()
    database: str | None = None
    log: str | None = None
    leave_out: Callable[[str], str] = "ovs-hotswap upgrade ... --leave-out {}".format


@dataclass(frozen=True, slots=True)
class StockReport:
    """What `check --json` prints of a host that others program. ``ready``: no finding is an error."""

    switch: StockSwitch
    vms: tuple[StockVm, ...]
    pipeline: Pipeline
    confinement: Confinement
    unreadable: tuple[str, ...]
    findings: tuple[Finding, ...]
    ready: bool

    @staticmethod
    def of(facts: Facts, findings: Sequence[Finding]) -> StockReport:
        ready = all(each.severity is not Severity.ERROR for each in findings)
        return StockReport(facts.switch, facts.vms, facts.pipeline, facts.confinement, facts.unreadable,
                           tuple(findings), ready)  # fmt: skip


def judge(facts: Facts, terms: Terms | None = None) -> list[Finding]:
    """Return the findings about the host, then those about its VMs."""
    terms = terms or Terms()
    vms, pipeline = [vm for vm in facts.vms if vm.name not in terms.left_out], facts.pipeline
    others = of_vms.Alternatives(terms.leave_out)
    findings = [
        *unreadable(facts.unreadable),
        *switch(facts.switch, terms),
        *link(facts.switch, vms),
        *datapaths(pipeline.bridges),
        *conntrack(facts.switch, pipeline),
        *uplinks(pipeline.uplinks, terms.devices),
        *lacp(pipeline.lacp),
        *detection(pipeline.bfd, pipeline.cfm),
        *spanning_tree(pipeline.bridges),
        *wired(pipeline.bridges, vms),
        *mirrors(pipeline.bridges),
        *marks(pipeline.bridges),
        *overlaps(pipeline.bridges),
        *reports(pipeline.bridges),
        *controllers(pipeline),
        *kernel_ports(pipeline.kernel_ports),
        *of_vms.vm_sockets(facts.vms, others),
        *of_vms.shared_sockets(facts.vms),
        *of_vms.qemus(facts.vms, others),
        *of_vms.libvirt_domains(vms),
        *of_vms.confined(facts.vms, facts.confinement, others),
        *of_vms.features(facts.vms, terms.offer, others),
        *of_vms.regions(facts.vms, others),
        *of_vms.pages(facts.vms, facts.switch, others),
        *of_vms.logs(facts.vms, facts.switch.log, others),
        *of_vms.tags(vms),
    ]
    return of_vms.left_out_as_warnings(findings, terms.left_out)


def _ok(findings: list[Finding], check: str, text: str) -> list[Finding]:
    return findings or [Finding(check, Severity.OK, text)]


def _error(check: str, text: str, hint: str, item: str | None = None) -> Finding:
    return Finding(check, Severity.ERROR, text, hint, item)


def _warning(check: str, text: str, hint: str | None, item: str | None = None) -> Finding:
    return Finding(check, Severity.WARNING, text, hint, item)


# ---------------------------------------------------------------------------------------------------------- the switch


def unreadable(texts: Iterable[str]) -> list[Finding]:
    """Report what could not be read. Nothing is assumed about it, so it is a reason not to begin."""
    return [_error("facts", f"cannot be read: {text}", "run it as root, while the switch runs") for text in texts]


def switch(found: StockSwitch, terms: Terms) -> list[Finding]:
    """Check that the switch runs, with DPDK, and is the one that the configuration describes."""
    name = "switch"
    findings = []
    for process, pid in (("ovs-vswitchd", found.vswitchd_pid), ("ovsdb-server", found.ovsdb_pid)):
        if pid is None:
            findings.append(_error(name, f"no {process} runs in the run directory of the distribution's switch",
                                   "correct stock.run_dir, or `systemctl start openvswitch-switch`"))  # fmt: skip
    if found.vswitchd_pid is not None and not found.dpdk_ready:
        findings.append(_error(name, f"ovs-vswitchd {found.vswitchd_pid} runs without DPDK: there are no vhost-user "
                               "ports to take over", "`ovs-vsctl get open_vswitch . dpdk_initialized`"))  # fmt: skip
    if terms.database is not None and found.database not in (None, terms.database):
        findings.append(_error(name, f"ovsdb-server serves {found.database}, and stock.database is {terms.database}",
                               f'set stock.database = "{found.database}"'))  # fmt: skip
    written = found.log.file
    if terms.log is not None and written is not None and written.removesuffix(" (deleted)") != terms.log:
        findings.append(_error(name, f"ovs-vswitchd logs to {written}, and stock.log is {terms.log}",
                               f'set stock.log = "{written}"; after a rotation: `ovs-appctl vlog/reopen`'))  # fmt: skip
    label = f"OVS {found.ovs_version}, DPDK {found.dpdk_version}, process {found.vswitchd_pid}"
    return _ok(findings, name, label)


def link(found: StockSwitch, vms: Collection[StockVm]) -> list[Finding]:
    """Check by what the switch can exchange frames with the new instance: over a memif, or a pair of veth devices."""
    if not found.lacks_memif:
        return []
    hint = "install it (Debian 12: `apt install librte-net-memif23`); a switch loads it when it starts the next time"
    text = "it has not loaded DPDK's driver memif"
    if found.lacks_af_packet:
        return [_error("link", f"{text}, nor af_packet: one of them is needed to exchange frames", hint)]
    if large := sorted(vm.name for vm in vms if (vm.mtu or 0) > MOST_OVER_VETH):
        text += f", without which the instances exchange no frames of an MTU above {MOST_OVER_VETH}: VM {some(large)}"
        return [_error("link", text, hint)]
    text += ": the instances exchange frames over a pair of veth devices, which carry less, and take the kernel's time"
    return [_warning("link", text, hint)]


def datapaths(bridges: Collection[StockBridge]) -> list[Finding]:
    """Check that every bridge has its datapath in user space: two switches cannot share the kernel's datapath."""
    name = "datapath"
    findings = [
        _error(name, f"bridge {bridge.name} has the kernel's datapath, which belongs to one ovs-vswitchd",
               f"`ovs-vsctl set bridge {bridge.name} datapath_type=netdev`, or `ovs-vsctl del-br {bridge.name}`",
               f"bridge {bridge.name}")
        for bridge in bridges
        if not bridge.in_user_space
    ]  # fmt: skip
    return _ok(findings, name, f"{len(bridges)} bridges in user space")


def asserts_on_expired_nat(version: str | None) -> bool:
    """Whether this version of Open vSwitch ends when a packet meets the reverse entry of a connection that has expired
    (lib/conntrack.c, conn_update_state: ``conn->conn_type == CT_CONN_TYPE_DEFAULT``)."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    if numbers is None:
        return False
    major, minor, patch = map(int, numbers.groups())
    fixed = _FIXED.get((major, minor))
    return patch < fixed if fixed is not None else (major, minor) < min(_FIXED)


def conntrack(found: StockSwitch, pipeline: Pipeline) -> list[Finding]:
    """Check for the known end of old versions under identity NAT, as OVN commits connections: ``nat(src)``."""
    name = "conntrack"
    if not pipeline.identity_nat or not asserts_on_expired_nat(found.ovs_version):
        return []
    text = (f"OVS {found.ovs_version} ends by itself when a packet comes for a connection that was silent for "
            f"{EXPIRY_S} s, because flows commit with nat(src) without an address; the upgrade cures it")  # fmt: skip
    hint = (f"do not go back to it more than {EXPIRY_S} s after the cut: it would end then; without an upgrade: "
            "2.17.8, 3.0.5, 3.1.3 and 3.2.3 have the cure")  # fmt: skip
    return [_warning(name, text, hint)]


def conntrack_of(version: str | None, pipeline: Pipeline) -> list[Finding]:
    """Check a release to which the host is to go for the same end."""
    if not pipeline.identity_nat or not asserts_on_expired_nat(version):
        return []
    text = (f"OVS {version}, to which the host is to go, ends by itself when a packet comes for a connection that was "
            f"silent for {EXPIRY_S} s, because flows commit with nat(src) without an address")  # fmt: skip
    return [_warning("conntrack", text, "a release that has the cure: 2.17.8, 3.0.5, 3.1.3, 3.2.3 or later")]


# --------------------------------------------------------------------------------------------------------- the uplinks


def uplinks(found: Collection[StockUplink], devices: Collection[str]) -> list[Finding]:
    """Check that a second process can have a device of the same NIC at the same time, and that it has one. ``devices``:
    the ports for which the new instance has a device."""
    name = "uplink"
    findings = []
    for port in found:
        item = f"port {port.name}"
        if port.kind is DeviceKind.PF and port.driver not in _BIFURCATED:
            text = (f"port {port.name} has the whole NIC ({port.devargs}), which belongs to one process: the new "
                    "instance could open it only when the old one has ended")  # fmt: skip
            hint = ("make virtual functions, and give each instance one of them: `echo 2 > "
                    f"/sys/bus/pci/devices/{port.devargs.partition(',')[0]}/sriov_numvfs`; or stop the switch for the "
                    "upgrade: that is a restart")  # fmt: skip
            findings.append(_error(name, text, hint, item))
        elif port.kind is DeviceKind.ABSENT:
            text = f"port {port.name}: no device {port.devargs!r} is seen on this host"
            findings.append(_warning(name, text, f"`ovs-vsctl get interface {port.name} error`", item))
        elif port.name not in devices:
            text = f"port {port.name}: the new instance has no device of its own beside {port.devargs}"
            hint = f"name one, such as a second virtual function, in instances.b.port_devices: {port.name} = ..."
            findings.append(_error(name, text, hint, item))
    return _ok(findings, name, some([f"{port.name}: {port.kind}" for port in found]) or "no port of DPDK")


def lacp(ports: Collection[str]) -> list[Finding]:
    """Check for link aggregation, whose partner accepts one system on a link. The new instance's virtual function gets
    no frames of LACP, which the NIC keeps for the physical function."""
    return [
        _error("LACP", f"port {port} uses LACP, which the new instance cannot use at the same time, nor on a virtual "
               "function", f"`ovs-vsctl set port {port} lacp=off bond_mode=active-backup`, and no link aggregation on "
               "the network's switch", f"port {port}")
        for port in ports
    ]  # fmt: skip


def detection(bfd: Collection[str], cfm: Collection[str]) -> list[Finding]:
    """Report sessions whose state the new instance begins again, so that the other end sees them go down."""
    return [
        _warning("BFD", f"port {port} has {kind}: its session begins again with the new instance, and the other end "
                 "may take the host for dead for that time", f"move gateways that depend on it away; or `{undo}`",
                 f"port {port}")
        for kind, ports, form in (("BFD", bfd, "ovs-vsctl set interface {} bfd:enable=false"),
                                  ("CFM", cfm, "ovs-vsctl clear interface {} cfm_mpid"))
        for port in ports
        for undo in [form.format(port)]
    ]  # fmt: skip


def spanning_tree(bridges: Iterable[StockBridge]) -> list[Finding]:
    """Check for spanning trees: the ports of a new instance forward nothing until their states have passed listening
    and learning (IEEE 802.1D: 15 s each; 802.1w: a few seconds)."""
    findings = []
    for bridge in bridges:
        if bridge.stp or bridge.rstp:
            kind, column = ("STP", "stp_enable") if bridge.stp else ("RSTP", "rstp_enable")
            text = f"bridge {bridge.name} uses {kind}: the new instance's ports would forward nothing for up to 30 s"
            hint = f"if the network has no loop: `ovs-vsctl set bridge {bridge.name} {column}=false`"
            findings.append(_error("spanning tree", text, hint, f"bridge {bridge.name}"))
    return findings


# -------------------------------------------------------------------------------------------------------- the pipeline


def wired(bridges: Iterable[StockBridge], vms: Collection[StockVm]) -> list[Finding]:
    """Check that each bridge has mirrors for its VMs, on one of the two switches (``wire_turns``). VMs that have the
    broker already can do without, for a moment."""
    name = "wire mode"
    findings = []
    for bridge in bridges:
        own = [vm for vm in vms if vm.bridge == bridge.name and vm.kind is PortKind.CLIENT]
        most = len(Side) * (MAX_MIRRORS - len(bridge.mirrors))
        if len(own) <= most:
            continue
        slow = [vm.name for vm in own if not vm.adopted and (vm.connected or vm.qemu is not None)]
        has = f"{len(own)} VMs" + (f" and {len(bridge.mirrors)} mirrors" if bridge.mirrors else "")
        text = (f"bridge {bridge.name} has {has}, and wire mode has mirrors for {most} VMs: the others are without "
                "network after the cut, until the host's own ports have passed and they have moved")  # fmt: skip
        if (missing := len(slow) - most) > 0:
            hint = (f"these must have the broker already: `ovs-hotswap adopt {' '.join(slow[:missing])}` costs each "
                    "its network for 40 to 80 ms; or remove mirrors for the upgrade")  # fmt: skip
            findings.append(_error(name, text, hint, f"bridge {bridge.name}"))
        else:
            hint = "remove mirrors for the upgrade, if that is too long: `ovs-vsctl list mirror`"
            findings.append(_warning(name, text, hint, f"bridge {bridge.name}"))
    return _ok(findings, name, "a mirror is free for each VM")


def mirrors(bridges: Iterable[StockBridge]) -> list[Finding]:
    """Report mirrors of others. In the window frames of VMs cross the bridge on more ports than usual, so a mirror that
    selects all ports copies some twice."""
    return [
        _warning("mirrors", f"bridge {bridge.name} has mirrors ({some(bridge.mirrors)}): those that select all ports "
                 "copy frames of VMs twice during the window", "`ovs-vsctl list mirror`; clear their select_all",
                 f"bridge {bridge.name}")
        for bridge in bridges
        if bridge.mirrors
    ]  # fmt: skip


def marks(bridges: Iterable[StockBridge]) -> list[Finding]:
    """Check that no flow uses the values of ``pkt_mark`` by which wire mode knows its frames."""
    findings = []
    for bridge in bridges:
        for use in bridge.marks:
            values = " and ".join(f"{mark:#x}" for mark in sorted(WIRE_MARKS))
            text = f"a flow of bridge {bridge.name} uses pkt_mark, of which wire mode needs {values}: {short(use.flow)}"
            if use.sets in WIRE_MARKS:
                hint = f"have its controller use another value than {use.sets:#x}"
                findings.append(_error("pkt_mark", text, hint, short(use.flow)))
            else:
                hint = "make sure that it takes no such value" if use.computed else "any other value is left alone"
                findings.append(_warning("pkt_mark", text, hint, short(use.flow)))
    return findings


def overlaps(bridges: Iterable[StockBridge]) -> list[Finding]:
    """Check that no flow takes the frames of wire mode, or gets others to its ports."""
    found = [
        (bridge, short(flow), text, hint)
        for bridge in bridges
        for flows, text, hint in (
            (bridge.to_all, "outputs to ALL, and so to the ports of wire mode", "have its controller use FLOOD"),
            (bridge.highest, "has the highest priority, which wire mode needs", "have its controller use a lower one"),
            ([f"table={COPIES}"] if COPIES in bridge.tables else [], "is in the table that wire mode needs",
             f"have its controller use another table than {COPIES}"),
        )
        for flow in flows
    ]  # fmt: skip
    return [
        _error("wire mode", f"a flow of bridge {bridge.name} {text}: {flow}", hint, flow)
        for bridge, flow, text, hint in found
    ]


def reports(bridges: Iterable[StockBridge]) -> list[Finding]:
    """Report what observes or learns from the traffic and sees the window itself."""
    findings = []
    for bridge in bridges:
        item = f"bridge {bridge.name}"
        if bridge.exports:
            text = (
                f"bridge {bridge.name} exports {some(bridge.exports)}: in the window some frames are reported for ports"
            )
            findings.append(_warning("flow export", f"{text} of ours, and some twice", None, item))
        if bridge.snooping:
            text = f"bridge {bridge.name} snoops multicast groups, which the new instance learns again: until the next "
            findings.append(_warning("multicast", f"{text}query, groups are flooded or not delivered",
                                     f"lower the querier's interval, or `ovs-vsctl set bridge {bridge.name} "
                                     "mcast_snooping_enable=false`", item))  # fmt: skip
    return findings


def controllers(pipeline: Pipeline) -> list[Finding]:
    """Say who programs the bridges, and check that OVN's controller runs (``controllers.ovn`` checks more).

    Neutron's agent sees no other switch, but its connections to the database end. To it the bridges of physical
    networks were made again, and its ``ovsdb-client monitor`` starts again after a time (neutron: ovs_neutron_agent.py,
    _reconfigure_physical_bridges; agent/common/async_process.py)."""
    ovn = pipeline.ovn
    findings = []
    if ovn is not None and ovn.pid is None:
        text = f"this host belongs to OVN ({ovn.remote}), and no ovn-controller runs"
        findings.append(_warning("controllers", text, "`systemctl start ovn-controller`"))
    findings += [
        _warning("controllers", f"Neutron's agent {pid} looks at all ports again when the database passes to the new "
                 "instance; a port that is plugged then has its network up to 30 s later",
                 "keep drop_flows_on_start = false, its default: otherwise it deletes the flows of physical networks' "
                 "bridges then; the 30 s are ovsdb_monitor_respawn_interval")
        for pid in pipeline.agents
    ]  # fmt: skip
    who = [f"ovn-controller {ovn.pid}"] if ovn is not None and ovn.pid is not None else []
    who += [f"Neutron's agent {pid}" for pid in pipeline.agents]
    targets = sorted({target for bridge in pipeline.bridges for target in bridge.controllers} | {*pipeline.managers})
    return _ok(findings, "controllers", some([*who, *targets]) or "none")


def kernel_ports(ports: Iterable[KernelPort]) -> list[Finding]:
    """Report what it costs to give the kernel's ports to the new instance: internal ports with addresses, and other
    devices. An internal port that is not used by the host costs nothing."""
    findings = []
    for port in ports:
        item, uses = f"port {port.name}", list(port.addresses)
        uses += [f"{port.routes} routes"] if port.routes else []
        uses += list(port.daemons)
        if port.kind == "internal" and uses:
            text = (
                f"port {port.name} of bridge {port.bridge} is used by the host ({some(uses)}) and is without network "
            )
            findings.append(_warning("host ports", f"{text}for {INTERNAL_MS} to {BUSY_MS} ms", None, item))
        elif port.kind != "internal":
            text = f"port {port.name} of bridge {port.bridge} is a device of the kernel ({port.kind}) and is without "
            findings.append(_warning("host ports", f"{text}network for {KERNEL_MS} to {BUSY_MS} ms", None, item))
    return findings
