"""The checks of a host that others program: a healthy host has no finding, and each fault has its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.stock.facts import (
    Confinement,
    DeviceKind,
    Facts,
    KernelPort,
    MarkUse,
    Monitor,
    PortKind,
    StockBridge,
    StockLog,
    StockUplink,
    VmLog,
)
from ovs_hotswap.upgrade.stock_checks import WIRE_MARKS, StockReport, Terms, asserts_on_expired_nat, conntrack_of, judge
from ovs_hotswap.vhostuser.messages import Feature
from tests.unit.stock_sample import ACKED, DATABASE, HEALTHY, LOG, QEMU, vm

ERROR, WARNING = Severity.ERROR, Severity.WARNING
TERMS = Terms(database=DATABASE, log=LOG, devices=["up"])
PACKED, PLATFORM = 1 << 34, 1 << 33


def bad(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.severity is not Severity.OK]


def of_switch(**changes: Any) -> Facts:
    return replace(HEALTHY, switch=replace(HEALTHY.switch, **changes))


def of_log(**changes: Any) -> Facts:
    return of_switch(log=replace(HEALTHY.switch.log, **changes))


def of_pipeline(**changes: Any) -> Facts:
    return replace(HEALTHY, pipeline=replace(HEALTHY.pipeline, **changes))


def of_bridge(**changes: Any) -> Facts:
    return of_pipeline(bridges=(replace(HEALTHY.pipeline.bridges[0], **changes),))


def of_vm(**changes: Any) -> Facts:
    """The second VM is changed."""
    return replace(HEALTHY, vms=(HEALTHY.vms[0], vm("vm2", **changes)))


def locked(small_pages: int) -> Facts:
    """The switch locks its memory, and the second VM has small pages."""
    log = VmLog(1, small_pages=small_pages)
    return replace(of_vm(log=log), switch=replace(HEALTHY.switch, locks_memory=True))


def of_qemu(**changes: Any) -> Facts:
    return of_vm(qemu=replace(QEMU, **changes))


def test_a_healthy_host_has_no_finding() -> None:
    findings = judge(HEALTHY, TERMS)
    assert bad(findings) == []
    assert StockReport.of(HEALTHY, findings).ready
    assert {each.check for each in findings} >= {"switch", "uplink", "VM ports", "QEMU", "features", "log", "wire mode"}


@dataclass(frozen=True)
class Fault:
    """A fault, and the one finding that it has: its check, how bad it is, and words of its text and of its hint."""

    facts: Facts
    check: str
    severity: Severity
    text: str
    hint: str | None
    terms: Terms = TERMS


MIRRORED = tuple(f"span{number}" for number in range(32))
MANY = tuple(vm(f"vm{number}") for number in range(65))
MARK = min(WIRE_MARKS)

FAULTS = {
    # Issue 17, point 8.
    "a crash of the running version": Fault(
        of_switch(ovs_version="3.1.0"), "conntrack", WARNING, "OVS 3.1.0 ends by itself", "more than 30 s after the cut"
    ),
    "a PF of the old process": Fault(
        of_pipeline(uplinks=(StockUplink("up", "br-ex", "0000:03:00.0", DeviceKind.PF, "vfio-pci"),)),
        "uplink", ERROR, "port up has the whole NIC", "0000:03:00.0/sriov_numvfs`; or stop the switch",
    ),
    "no second device": Fault(
        HEALTHY, "uplink", ERROR, "port up: the new instance has no device", "instances.b.port_devices: up = ",
        replace(TERMS, devices=()),
    ),
    "an uplink that is not there": Fault(
        of_pipeline(uplinks=(StockUplink("up", "br-ex", "0000:09:00.0", DeviceKind.ABSENT),)),
        "uplink", WARNING, "no device '0000:09:00.0'", "ovs-vsctl get interface up error",
    ),
    "a VDUSE port": Fault(
        of_vm(kind=PortKind.VDUSE, socket="/dev/vduse/vm2"), "VM ports", ERROR, "VDUSE device /dev/vduse/vm2",
        "--leave-out vm2",
    ),
    "a server port": Fault(
        of_vm(kind=PortKind.SERVER), "VM ports", ERROR, "VM vm2: its port is a server (dpdkvhostuser)", "server=on"
    ),
    "mirrors of others": Fault(of_bridge(mirrors=("span",)), "mirrors", WARNING, "mirrors (span)", "select_all"),
    "a flow that takes a mark of ours": Fault(
        of_bridge(marks=(MarkUse("a flow", MARK),)), "pkt_mark", ERROR, "a flow", f"another value than {MARK:#x}"
    ),
    "a flow with a mark of its own": Fault(
        of_bridge(marks=(MarkUse("a flow", 5),)), "pkt_mark", WARNING, "a flow", "left alone"
    ),
    "a flow that computes a mark": Fault(
        of_bridge(marks=(MarkUse("a flow", computed=True),)), "pkt_mark", WARNING, "a flow", "takes no such value"
    ),
    "a flow that outputs to all ports": Fault(
        of_bridge(to_all=("a flow",)), "wire mode", ERROR, "br-int outputs to ALL, and so to the ports", "use FLOOD"
    ),
    "a flow of the highest priority": Fault(
        of_bridge(highest=("a flow",)), "wire mode", ERROR, "has the highest priority", "use a lower one"
    ),
    "a table of ours": Fault(
        of_bridge(tables=(0, 252)), "wire mode", ERROR, "table that wire mode needs", "another table than 252"
    ),
    "an access port": Fault(of_vm(tag=5), "VLANs", WARNING, "VM vm2: its port has tag 5:", "change no VLAN"),
    "a trunk": Fault(
        of_vm(trunks=(7, 8), vlan_mode="native-tagged"), "VLANs", WARNING, "trunks 7-8, vlan_mode native-tagged",
        "change no VLAN",
    ),
    "more VMs than mirrors": Fault(
        replace(HEALTHY, vms=MANY), "wire mode", ERROR, "has 65 VMs, and wire mode has mirrors for 64 VMs",
        "ovs-hotswap adopt vm0",
    ),
    "LACP": Fault(of_pipeline(lacp=("bond0",)), "LACP", ERROR, "port bond0 uses LACP", "lacp=off"),
    "BFD": Fault(of_pipeline(bfd=("ovn-h2",)), "BFD", WARNING, "port ovn-h2 has BFD", "bfd:enable=false"),
    "CFM": Fault(of_pipeline(cfm=("tun",)), "BFD", WARNING, "port tun has CFM", "clear interface tun cfm_mpid"),
    "the level of the log": Fault(
        of_log(level="WARN"), "log", ERROR, "logged at level WARN and above", "vlog/set dpdk:file:info"
    ),
    "the level of DPDK's log": Fault(
        of_log(vhost_level="error"), "log", ERROR, "logs at level error and above", "dpdk/log-set lib.vhost.config:info"
    ),
    "a log that does not have the connection": Fault(
        of_vm(log=VmLog(fault="the log lacks lines", hint="`ovs-appctl vlog/disable-rate-limit dpdk`")), "log", ERROR,
        "VM vm2: the log lacks lines", "vlog/disable-rate-limit dpdk`; or leave the VM out",
    ),
    "a log that was rotated away": Fault(
        of_vm(log=VmLog(fault="the log does not have the beginning")), "log", ERROR, "VM vm2: the log does not have",
        "--leave-out vm2",
    ),
    "Yama": Fault(
        replace(HEALTHY, confinement=Confinement(3)), "confinement", ERROR, "ptrace_scope is 3", "restart the host"
    ),
    "a confined QEMU": Fault(
        of_qemu(traceable=False, label="libvirt-1 (enforce)"), "confinement", ERROR,
        "QEMU 300: its label is 'libvirt-1 (enforce)'", "CAP_SYS_PTRACE",
    ),
    "a QEMU that SELinux confines": Fault(
        replace(of_qemu(traceable=False), confinement=Confinement(0, "sysadm_t", True)), "confinement", ERROR,
        "ours is 'sysadm_t'", "ausearch",
    ),
    # Issue 17, point 4.
    "no QMP": Fault(of_qemu(monitors=()), "QEMU", ERROR, "VM vm2: QEMU 300 has no QMP socket", "-qmp unix:PATH"),
    "QMP that is no Unix socket": Fault(
        of_qemu(monitors=(Monitor(""),)), "QEMU", ERROR, "VM vm2: QEMU 300 has no QMP socket", "-qmp unix:PATH"
    ),
    "QMP that is taken": Fault(
        of_qemu(monitors=(Monitor("/run/vm1.qmp", "agent"),)), "QEMU", ERROR, "has one: agent", "end that client"
    ),
    "QMP of libvirt": Fault(
        of_qemu(monitors=(Monitor("/run/monitor.sock", "libvirtd"),), libvirt=True), "libvirt", WARNING,
        "VM vm2: is the libvirt domain vm1", "virsh dominfo vm1",
    ),
    "an old QEMU": Fault(of_qemu(version="6.2"), "QEMU", ERROR, "VM vm2: QEMU 6.2 cannot say", "upgrade QEMU"),
    "a QEMU of an unknown version": Fault(of_qemu(version=None), "QEMU", ERROR, "cannot be found out", "--leave-out"),
    "no QEMU": Fault(of_vm(qemu=None), "QEMU", ERROR, "the other end of /run/vm2.sock is not seen", "as root"),
    "packed rings": Fault(
        of_vm(acked=ACKED | PACKED), "features", ERROR, "VM vm2: its guest uses RING_PACKED", "restart it"
    ),
    "a virtual IOMMU": Fault(
        of_vm(acked=ACKED | PLATFORM), "features", ERROR, "ACCESS_PLATFORM (a virtual IOMMU)", "restart it"
    ),
    "a feature that the release lacks": Fault(
        of_vm(acked=ACKED | 1), "features", ERROR, "NET_CSUM, which the new release does not have", "another release",
        replace(TERMS, offer=ACKED),
    ),
    "unknown features": Fault(of_vm(acked=None), "features", ERROR, "are not known", "ovs-vsctl get interface vm2"),
    "eight memory regions": Fault(
        of_vm(log=VmLog(8)), "memory regions", ERROR, "VM vm2: has 8 memory regions of at most 8", "restart it"
    ),
    "seven memory regions": Fault(
        of_vm(log=VmLog(7)), "memory regions", WARNING, "by a mirror only", "take a memory device from it"
    ),
    # The rest.
    "something that cannot be read": Fault(
        replace(HEALTHY, unreadable=("the flows of br0",)), "facts", ERROR, "the flows of br0", "as root"
    ),
    "a switch that does not run": Fault(
        of_switch(vswitchd_pid=None), "switch", ERROR, "no ovs-vswitchd runs", "stock.run_dir"
    ),
    "a switch without DPDK": Fault(of_switch(dpdk_ready=False), "switch", ERROR, "without DPDK", "dpdk_initialized"),
    "another database": Fault(
        of_switch(database="/var/lib/conf.db"), "switch", ERROR, "serves /var/lib/conf.db", 'stock.database = "/var'
    ),
    "another log": Fault(
        of_log(file="/var/log/a.log"), "switch", ERROR, "logs to /var/log/a.log", 'set stock.log = "/var/log/a.log"'
    ),
    "a deleted log": Fault(of_log(file=f"{LOG} (deleted)"), "log", ERROR, "which nothing can read", "vlog/reopen"),
    "small pages": Fault(
        locked(400 << 20), "memory pages", WARNING, "VM vm2: has 400 MiB of memory in small pages",
        "give it huge pages",
    ),
    "many small pages": Fault(
        locked(8 << 30), "memory pages", ERROR, "for about 1638 ms longer", "--leave-out vm2"
    ),
    "no memif": Fault(of_switch(lacks_memif=True), "link", WARNING, "a pair of veth devices", "librte-net-memif23"),
    "no memif for large frames": Fault(
        replace(of_switch(lacks_memif=True), vms=(replace(HEALTHY.vms[0], mtu=9000), *HEALTHY.vms[1:])), "link", ERROR,
        f"an MTU above 1500: VM {HEALTHY.vms[0].name}", "librte-net-memif23",
    ),
    "no driver for a link": Fault(
        of_switch(lacks_memif=True, lacks_af_packet=True), "link", ERROR, "nor af_packet", "librte-net-memif23"
    ),
    "a bridge of the kernel": Fault(
        of_pipeline(bridges=(*HEALTHY.pipeline.bridges, StockBridge("br-k", "system"))), "datapath", ERROR,
        "bridge br-k has the kernel's datapath", "datapath_type=netdev",
    ),
    "STP": Fault(of_bridge(stp=True), "spanning tree", ERROR, "br-int uses STP", "stp_enable=false"),
    "RSTP": Fault(of_bridge(rstp=True), "spanning tree", ERROR, "br-int uses RSTP", "rstp_enable=false"),
    "exports": Fault(of_bridge(exports=("IPFIX",)), "flow export", WARNING, "br-int exports IPFIX", None),
    "snooping": Fault(of_bridge(snooping=True), "multicast", WARNING, "br-int snoops", "mcast_snooping_enable=false"),
    "OVN without its controller": Fault(
        of_pipeline(ovn=replace(HEALTHY.pipeline.ovn, pid=None)), "controllers", WARNING,  # type: ignore[type-var]
        "no ovn-controller runs", "systemctl start ovn-controller",
    ),
    "Neutron's agent": Fault(
        of_pipeline(agents=(4711,)), "controllers", WARNING, "Neutron's agent 4711 looks at all ports again",
        "drop_flows_on_start = false",
    ),
    "an internal port with an address": Fault(
        of_pipeline(kernel_ports=(KernelPort("br-ex", "br-ex", "internal", ("10.0.0.1/24",), 2, ("dnsmasq (7)",)),)),
        "host ports", WARNING, "(10.0.0.1/24, 2 routes, dnsmasq (7)) and is without network for 50 to 500 ms", None,
    ),
    "a device of the kernel": Fault(
        of_pipeline(kernel_ports=(KernelPort("md0", "br-int", "veth"),)), "host ports", WARNING, "for 150 to 500 ms",
        None,
    ),
    "a VM without its QEMU": Fault(
        of_vm(connected=False, acked=None, qemu=None), "VM ports", WARNING, "VM vm2: its QEMU is not connected",
        "/run/vm2.sock",
    ),
    "a VM of which the database does not know": Fault(
        of_vm(connected=False, acked=None), "VM ports", WARNING, "VM vm2: its QEMU is connected, and the switch's",
        "domif-setlink",
    ),
    "a port that could not be made": Fault(
        of_vm(connected=False, ofport=None, fault="No such file"), "VM ports", WARNING, "No such file", "vm2 error"
    ),
    "a socket without a path": Fault(of_vm(socket=""), "VM ports", ERROR, "no absolute path", "vm2 options"),
    "two ports with one socket": Fault(
        of_vm(socket="/run/vm1.sock"), "VM ports", ERROR, "ports vm1, vm2 have one socket", "ovs-vsctl del-port"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_has_one_finding(fault: Fault) -> None:
    findings = bad(judge(fault.facts, fault.terms))
    assert [(each.check, each.severity) for each in findings] == [(fault.check, fault.severity)], findings
    assert fault.text in findings[0].text
    assert (findings[0].hint is None) == (fault.hint is None)
    assert (fault.hint or "") in (findings[0].hint or "")
    report = StockReport.of(fault.facts, findings)
    assert report.ready == (fault.severity is WARNING)


def test_mirrors_of_others_take_the_place_of_vms() -> None:
    errors = [each for each in judge(of_bridge(mirrors=MIRRORED), TERMS) if each.severity is ERROR]
    assert ["bridge br-int has 2 VMs and 32 mirrors, and wire mode has mirrors for 0 VMs" in each.text
            for each in errors] == [True]  # fmt: skip


def test_vms_beyond_the_mirrors_must_have_the_broker() -> None:
    adopted = [replace(each, adopted=True) for each in MANY]
    (found,) = bad(judge(replace(HEALTHY, vms=(*MANY[:64], adopted[64])), TERMS))
    assert (found.check, found.severity) == ("wire mode", WARNING)
    (found,) = bad(judge(replace(of_bridge(mirrors=MIRRORED), vms=(*MANY[:2], *adopted[2:4])), TERMS))[:1]
    assert (found.check, found.severity) == ("wire mode", ERROR)
    assert "`ovs-hotswap adopt vm0 vm1`" in (found.hint or "")


def test_only_the_vms_of_a_bridge_count_and_only_those_that_are_wired() -> None:
    elsewhere = tuple(replace(each, bridge="br-2") for each in MANY[:10])
    left_out = replace(TERMS, left_out=[each.name for each in MANY[:1]])
    assert bad(judge(replace(HEALTHY, vms=elsewhere + MANY[10:]), TERMS)) == []
    assert bad(judge(replace(HEALTHY, vms=MANY), left_out)) == []


def test_a_log_that_is_not_written_is_one_finding() -> None:
    facts = replace(of_switch(log=StockLog(None, "INFO", "info")), vms=(vm("vm1", log=VmLog()),))
    assert [each.text for each in bad(judge(facts, TERMS))] == [
        "ovs-vswitchd writes no log file, from which connections are read"
    ]


def test_a_log_is_not_needed_without_a_vm_to_take_over() -> None:
    facts = replace(of_log(level="OFF"), vms=(vm("vm1", adopted=True, log=VmLog(), qemu=None),))
    assert bad(judge(facts, TERMS)) == []


def test_a_vm_under_the_broker_is_not_taken_over_again() -> None:
    assert bad(judge(of_vm(adopted=True, acked=PACKED, log=VmLog(), qemu=None), TERMS)) == []


def test_a_physical_function_that_two_processes_can_drive() -> None:
    shared = of_pipeline(uplinks=(StockUplink("up", "br-ex", "0000:03:00.0", DeviceKind.PF, "mlx5_core"),))
    assert bad(judge(shared, TERMS)) == []


def test_a_vm_that_is_left_out_stops_nothing() -> None:
    findings = bad(judge(of_vm(kind=PortKind.SERVER), replace(TERMS, left_out=["vm2"])))
    assert [(each.check, each.severity) for each in findings] == [("VM ports", WARNING)]


@pytest.mark.parametrize(
    ("version", "ends"),
    [
        ("2.16.7", True), ("2.17.7", True), ("2.17.8", False), ("3.0.4", True), ("3.0.5", False), ("3.1.0", True),
        ("3.1.2", True), ("3.1.3", False), ("3.2.2", True), ("3.2.3", False), ("3.3.0", False), ("3.5.0", False),
        ("4.0.0", False), (None, False), ("unknown", False),
    ],
)  # fmt: skip
def test_versions_that_end_under_identity_nat(version: str | None, ends: bool) -> None:
    assert asserts_on_expired_nat(version) is ends
    facts = of_switch(ovs_version=version)
    assert any(each.check == "conntrack" for each in judge(facts, TERMS)) is ends
    without = replace(facts, pipeline=replace(facts.pipeline, bridges=(StockBridge("br-int"),)))
    assert not any(each.check == "conntrack" for each in judge(without, TERMS))
    assert [each.severity for each in conntrack_of(version, facts.pipeline)] == [WARNING] * ends
    assert conntrack_of(version, without.pipeline) == []


def test_features_are_named() -> None:
    facts = of_vm(acked=ACKED | PACKED | 1 << 40 | 1 << 50)
    (finding,) = bad(judge(facts, TERMS))
    assert "RING_PACKED (packed rings), RING_RESET, bit 50" in finding.text
    assert bad(judge(of_vm(acked=ACKED | 1 << Feature.PROTOCOL_FEATURES), replace(TERMS, offer=ACKED))) == []
