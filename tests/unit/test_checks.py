from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import PostcheckFailed, PrecheckFailed
from ovs_hotswap.host.rings import RingSample
from ovs_hotswap.model import Finding, Severity, Side, SwitchProcess
from ovs_hotswap.upgrade import checks
from ovs_hotswap.upgrade.checks import PortFacts, VmFacts
from ovs_hotswap.upgrade.collect import vm_facts
from ovs_hotswap.wording import summary
from tests.support.fake_backends import ring_status, vm_status

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR


def severities(findings: list[Finding]) -> list[Severity]:
    return [finding.severity for finding in findings]


def vm(name: str = "vm1", *, connected: bool = True, acked: int = 0, regions: int = 2, pairs: int = 1) -> VmFacts:
    return VmFacts(name, connected, acked, regions, pairs)


def test_verdict_lists_every_error_and_each_hint_once() -> None:
    findings = [
        Finding("a", ERROR, "first", "mend it"),
        Finding("b", WARNING, "not this", "nor this"),
        Finding("c", ERROR, "second", "mend it"),
        Finding("d", ERROR, "third"),
    ]
    with pytest.raises(PrecheckFailed) as raised:
        checks.verdict(findings)
    assert raised.value.message == "a: first\nc: second\nd: third"
    assert raised.value.hint == "mend it"
    with pytest.raises(PostcheckFailed):
        checks.verdict(findings, PostcheckFailed)


def test_verdict_lets_warnings_pass() -> None:
    findings = [Finding("a", OK, "fine"), Finding("b", WARNING, "look")]
    assert checks.verdict(iter(findings)) == findings


def test_cpu_set() -> None:
    assert severities(checks.cpu_set({0, 1, 2}, {Side.A: [0], Side.B: [1]})) == [OK]
    (full,) = checks.cpu_set({0, 1}, {Side.A: [0], Side.B: [1]})
    assert full.severity is WARNING
    assert "on every core" in full.text
    (shared,) = checks.cpu_set({0, 1, 2, 3}, {Side.A: [0, 1], Side.B: [1, 2]})
    assert shared.severity is WARNING
    assert "core 1" in shared.text
    (absent,) = checks.cpu_set({0, 1, 2, 5}, {Side.A: [0], Side.B: [7, 3]})
    assert absent.severity is ERROR
    assert absent.text == "instance b: no core 3, 7 on this host"
    assert absent.hint == "correct instances.b.pmd_cores; this host has 0-2,5"


@pytest.mark.parametrize(
    ("process", "severity"),
    [
        (SwitchProcess(1, "/run/openvswitch", None, False), OK),
        (SwitchProcess(1, "/run/openvswitch", "rte", True), WARNING),
        (SwitchProcess(1, "/run/openvswitch", "ovsh-b", True), ERROR),
        (SwitchProcess(1, "/run/ovs-hotswap/b", None, False), ERROR),
        (SwitchProcess(7, "/run/ovs-hotswap/b", "ovsh-b", True), OK),
    ],
)
def test_conflicting_processes(process: SwitchProcess, severity: Severity) -> None:
    assert severities(checks.conflicting_processes([process], {7}, "/run/ovs-hotswap/b", "ovsh-b")) == [severity]


def test_descriptors() -> None:
    measured = [(1, 1)] * 255  # 1836 were open with 255 VMs of one pair
    (finding,) = checks.descriptors(1024, measured)
    assert finding.severity is ERROR
    assert finding.hint is not None
    enough = int(finding.hint.split()[2])
    assert enough >= 1836
    assert severities(checks.descriptors(enough, measured)) == [OK]
    assert severities(checks.descriptors(1 << 20, [(1, 1)] * 1025)) == [ERROR]


def test_vms() -> None:
    assert severities(checks.vms_connected([vm()], "/run/{}".format)) == [OK]
    (finding,) = checks.vms_connected([vm(), vm("db1", connected=False)], "/run/{}".format)
    assert finding.severity is WARNING
    assert finding.hint == "look for its QEMU at /run/db1"
    names = [f"vm{k}" for k in range(9)]
    why = ["there is no socket for it"] * 4 + ["permission to connect to its socket is denied"] * 5
    gone = [replace(vm(name, connected=False), absent=text) for name, text in zip(names, why, strict=True)]
    told = [finding.text for finding in summary(checks.vms_connected(gone, "/run/{}".format))]
    assert [text.split(" ")[0] for text in told] == ["4", "5"], "how many, by cause"
    assert "no socket" in told[0]
    assert "denied; also of VM vm5; VM vm6; VM vm7" in told[1]
    more = checks.queue_pairs([vm("web1"), vm("db1")], {"web1": 0, "db1": 9})
    assert [finding.item for finding in more] == ["VM web1"]
    assert severities(checks.memory_regions([vm(regions=7)])) == [OK]
    (full,) = checks.memory_regions([vm(regions=8)], "leave {} out".format)
    assert (full.severity, str(full.hint).endswith("`leave vm1 out`")) == (ERROR, True)
    assert severities(checks.memory_regions([vm(regions=8, connected=False)])) == [OK]


def test_rings_without_capture_are_named() -> None:
    few, many, large = (
        vm_facts(vm_status(rings=tuple(ring_status(index, size=size) for index in range(count))))
        for count, size in ((16, 256), (20, 256), (2, 8192))
    )
    assert (few.uncaught, many.uncaught, large.uncaught) == (0, 2, 1)
    assert severities(checks.uncaught_rings([few])) == [OK]
    (found,) = checks.uncaught_rings([few, many])
    assert (found.severity, found.item) == (WARNING, "VM vm1")
    assert "2 of its 10 queue pairs" in found.text
    assert severities(checks.known_vms({"vm1"}, {"vm1"})) == [OK]
    missing = checks.known_vms({"vm1", "vm2"}, {"vm2", "vm3"})
    assert severities(missing) == [ERROR, ERROR]
    assert "VM vm3, which the overlay does not have" in missing[0].text
    assert "VM vm1, which the broker does not serve" in missing[1].text
    assert str(missing[1].hint).startswith("`ovs-hotswap broker reload`"), "a restart would cut off every VM"


def test_a_vm_that_is_left_out_must_be_there() -> None:
    assert checks.left_out([], ["vm1"]) == []
    assert severities(checks.left_out(["vm1", "vm9"], ["vm1", "vm2"])) == [WARNING, ERROR]


def test_broker() -> None:
    assert severities(checks.broker("1", "1", supervised=True)) == [OK]
    assert severities(checks.broker("2", "1", supervised=True)) == [ERROR]
    assert severities(checks.broker("1", "1", supervised=False)) == [WARNING]


def test_database() -> None:
    assert severities(checks.database(Side.A, True)) == [OK]
    (finding,) = checks.database(Side.B, False)
    assert finding.severity is ERROR
    assert "instance b does not answer" in finding.text


def test_window_flows() -> None:
    assert severities(checks.window_flows([])) == [OK]
    findings = checks.window_flows(["table=0 actions=NORMAL: NORMAL learns; name it", "table=1 actions=learn(...)"])
    assert severities(findings) == [ERROR, ERROR]
    assert findings[0].text == "cannot be on two instances at once: NORMAL learns: table=0 actions=NORMAL"
    assert str(findings[0].hint).startswith("name it; ")


def ring(avail: int, used: int, *, number: int = 1, enabled: bool = True, size: int = 256) -> RingSample:
    return RingSample("vm1", number, enabled, size, avail, used)


@pytest.mark.parametrize(
    ("before", "after", "severity", "text"),
    [
        (ring(10, 5), ring(12, 9), OK, "1 advanced, 0 idle"),
        (ring(65535, 65530), ring(3, 2), OK, "1 advanced, 0 idle"),
        (ring(10, 10), ring(10, 10), OK, "0 advanced, 1 idle"),
        (ring(10, 10), ring(11, 10), OK, "0 advanced, 1 idle"),  # sent just now
        (ring(10, 9), ring(11, 9), ERROR, "stuck, 2 buffers outstanding at index 9"),
        (ring(2, 65535), ring(2, 65535), ERROR, "stuck, 3 buffers"),
        (ring(200, 9, number=0), ring(200, 9, number=0), OK, "0 advanced, 1 idle"),  # nothing arrived
        (ring(10, 5), ring(10, 11), ERROR, "used index 11 does not fit available index 10"),
        (ring(10, 5), ring(10, 12, enabled=False), OK, "0 advanced, 0 idle"),
        (ring(10, 9, enabled=False), ring(10, 9), OK, "0 advanced, 1 idle"),
    ],
)
def test_ring_progress(before: RingSample, after: RingSample, severity: Severity, text: str) -> None:
    (finding,) = checks.ring_progress([before], [after])
    assert finding.severity is severity
    assert text in finding.text


def test_a_ring_that_appeared_in_between_is_not_stuck() -> None:
    assert severities(checks.ring_progress([], [ring(10, 9)])) == [OK]


indices = st.integers(0, 65535)


@given(start=indices, done=st.integers(0, 256), more=st.integers(0, 256), served=st.integers(0, 256))
def test_a_ring_is_judged_alike_wherever_its_indices_stand(start: int, done: int, more: int, served: int) -> None:
    """A sender with ``done`` outstanding adds ``more``; the switch returns ``served`` of them."""
    served, more = min(served, done + more), min(more, 256 - done)
    served = min(served, done + more)
    before = ring((start + done) % 65536, start)
    after = ring((start + done + more) % 65536, (start + served) % 65536)
    stuck = done > 0 and served == 0
    assert severities(checks.ring_progress([before], [after])) == [ERROR if stuck else OK]


def test_ports() -> None:
    up, down = PortFacts("vm1", True), PortFacts("vm2", False)
    assert severities(checks.ports(["vm1"], [up, down])) == [OK]
    assert severities(checks.ports(["vm1", "vm2"], [up, down])) == [ERROR]
    assert severities(checks.ports(["vm1", "vm2"], [up, down], may_be_down={"vm2"})) == [OK]
    assert severities(checks.ports(["vm1", "vm3"], [up])) == [ERROR]
    (finding,) = checks.ports(["vm1"], [PortFacts("vm1", True, "could not open network device")])
    assert finding.text == "vm1: could not open network device"


def test_tables() -> None:
    assert severities(checks.tables(Side.A, [])) == [OK]
    (finding,) = checks.tables(Side.A, ["-a", "+b", "+c", "+d", "+e"])
    assert finding.severity is ERROR
    assert finding.text == "5 lines differ: -a; +b; +c; and 2 more"


LOG = """\
2025-01-01T00:00:00.000Z|00012|dpdk|INFO|VHOST_CONFIG: (/run/a) new device, handle is 0
2025-01-01T00:00:00.001Z|00013|dpdk|WARN|VHOST_CONFIG: (/run/a) last_used_idx (5) and vq->used->idx (9) mismatches;
2025-01-01T00:00:00.002Z|00014|dpdk|ERR|last_used_idx (5) and vq->used->idx (9) mismatches; some packets maybe resent
2025-01-01T00:00:00.003Z|00015|netdev_dpdk(vhost-events)|ERR|No memory for mempool
2025-01-01T00:00:00.004Z|00016|netdev_dpdk(vhost-events)|ERR|No memory for mempool
2025-01-01T00:00:00.005Z|00017|util|EMER|assertion x|y failed
torn lin"""


OURS = ["uplink", "vxlan"]


def test_log_errors() -> None:
    findings = checks.log_errors(LOG, OURS)
    assert [finding.text for finding in findings] == [
        "netdev_dpdk(vhost-events): No memory for mempool (2 times)",
        "util: assertion x|y failed",
    ]
    assert severities(findings) == [WARNING, ERROR]
    assert severities(checks.log_errors(LOG.split("\n2025-01-01T00:00:00.003Z")[0], OURS)) == [OK]
    assert severities(checks.log_errors("", OURS)) == [OK]


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("netdev_dpdk|ERR|Interface uplink MTU (9000) setup error: Invalid argument", ERROR),
        ("netdev_dpdk|ERR|Failed to get flow control parameters on uplink (Operation not supported)", WARNING),
        ("ofproto_dpif_xlate(pmd-c02/id:9)|ERR|over max translation depth 64 on bridge br0", WARNING),
        ("dpdk(vhost-events)|ERR|VHOST_CONFIG: (/run/vm4.sock) failed to set owner", WARNING),
        ("dpdk|ERR|iavf_execute_vf_cmd(): No response for cmd 28", WARNING),
        ("dpif_netdev(pmd-c02/id:9)|ERR|There's no available (non-isolated) pmd thread on numa node 1.", WARNING),
        ("util|EMER|assertion failed", ERROR),
    ],
)
def test_only_what_is_said_of_our_own_ports_is_an_error(line: str, severity: Severity) -> None:
    assert severities(checks.log_errors(f"2026-01-01T00:00:00.000Z|00012|{line}", OURS)) == [severity]


def test_a_broker_that_died_or_hung_up_is_no_error_of_the_switch() -> None:
    """What OVS 3.1 logs then; the last one when a guest ended while it was being parked."""
    lines = (
        "(/run/vm1.sock) recvmsg failed on fd 48 (Connection reset by peer)",
        "(/run/vm1.sock) vhost read message failed",
        "(/run/vm1.sock) sendmsg error on fd 48 (Broken pipe)",
    )
    text = "\n".join(f"2025-01-01T00:00:00.001Z|00001|dpdk(vhost-events)|ERR|VHOST_CONFIG: {line}" for line in lines)
    assert severities(checks.log_errors(text, OURS)) == [OK]


def test_a_port_that_the_datapath_lacks_passes_nothing() -> None:
    """The uplink's is everybody's, a VM's port is that VM's own."""
    faults = {"uplink": "its MTU is 1500, not 9000", "vm1": "the datapath does not have it, so nothing passes"}
    found = checks.ports_polled(faults, ["vm1"])
    assert [(each.severity, each.text.split(":")[0]) for each in found] == [
        (Severity.ERROR, "port uplink"), (Severity.WARNING, "port vm1"),
    ]  # fmt: skip
    assert checks.ports_polled({}, ["vm1"])[0].severity is Severity.OK
