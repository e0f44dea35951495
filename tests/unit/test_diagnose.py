"""`diagnose` names the fault that was planted first, with evidence and a command, and nothing on a healthy host."""

from __future__ import annotations

import re
from dataclasses import replace

import click
import pytest

from ovs_hotswap.backends import ABSENT_SWITCH, Absence, AbsenceCause, OwnerCertainty, Switches
from ovs_hotswap.cli import main
from ovs_hotswap.counters.values import ConntrackCounts, ZoneLimit
from ovs_hotswap.diagnose import underlay_faults
from ovs_hotswap.diagnose.facts import CoreUse, Facts, Hop, Standby, Unseen, VmPort, Wanted
from ovs_hotswap.diagnose.found import WARNINGS, Cause
from ovs_hotswap.diagnose.judging import Answer, Asked, report
from ovs_hotswap.diagnose.target import Place, Question, Target, find, questions
from ovs_hotswap.diagnose.trace import Step, Trace
from ovs_hotswap.model import Life, Proof, Severity, Side
from ovs_hotswap.overlay.tables import Kind
from ovs_hotswap.switch.memory import PacketPool
from tests.unit import diagnose_bed as bed
from tests.unit.diagnose_bed import FAR, HEALTHY, HOP_MAC, UNDERLAY, VM1, VTEP, WANTED

BLOCKED = frozenset({"NO_FWD"})
FULL = bed.counters(pools=(PacketPool(0, 16384, 16384, 3000),))
HUNG = bed.guest("vm1", ((276, 276), (40, 40)), ((276, 276), (40, 40)))
STUCK = bed.guest("vm1", ((276, 20), (52, 40)), ((300, 44), (60, 40)))
ABSENT = Absence(AbsenceCause.NO_SOCKET, "there is no socket")


def lost(name: str, **statistics: int) -> Facts:
    """The healthy host, with packets that a port has dropped while we looked."""
    return bed.switch(after=bed.counted(name, statistics=statistics))


# A fault of each kind, and the cause and the VM that come first.
PLANTED: list[tuple[str, Facts, Cause, str | None]] = [
    ("broker gone", replace(HEALTHY, broker_fault="cannot connect", guests=None), Cause.BROKER_GONE, None),
    ("no active", replace(HEALTHY, active=None, switch=None), Cause.NO_ACTIVE, None),
    ("dead", bed.switch(life=Life.DEAD), Cause.INSTANCE_DEAD, None),
    ("stopped", bed.switch(life=Life.STOPPED), Cause.INSTANCE_STOPPED, None),
    ("silent", bed.switch(silent="no answer"), Cause.INSTANCE_SILENT, None),
    ("starved core", bed.switch(cores=(CoreUse(1, 0.9, ("hog had it", "other")),)), Cause.PMD_STARVED, None),
    ("thread stands", bed.switch(standing=(1,)), Cause.PMD_STANDS, None),
    ("empty pool", bed.switch(after=FULL), Cause.POOL_EMPTY, None),
    ("quarantine", bed.with_guest(bed.guest("vm1", quarantine="by order")), Cause.QUARANTINE, "vm1"),
    ("no owner", bed.with_guest(bed.guest("vm1", owner=None, certainty=OwnerCertainty.NOBODY)), Cause.NO_OWNER, "vm1"),
    ("uncertain", bed.with_guest(bed.guest("vm1", certainty=OwnerCertainty.TAKING)), Cause.NO_OWNER, "vm1"),
    ("other owner", bed.with_guest(bed.guest("vm1", owner=Side.B)), Cause.OTHER_OWNER, "vm1"),
    ("direct", bed.with_guest(bed.guest("vm1", qemu=None, absent=Absence(AbsenceCause.DIRECT, "direct"))),
     Cause.NOT_PROTECTED, "vm1"),
    ("ring left parked", bed.with_guest(STUCK), Cause.RING_NOT_SERVED, "vm1"),
    ("hung guest", bed.with_guest(HUNG), Cause.GUEST_HUNG, "vm1"),
    ("stopped QEMU", bed.with_guest(replace(STUCK, stopped=True)), Cause.GUEST_HUNG, "vm1"),
    ("port missing", bed.with_port(bed.port("vm1", present=False)), Cause.PORT_MISSING, "vm1"),
    ("port down", bed.with_port(bed.port("vm1", flags=frozenset({"PORT_DOWN"}))), Cause.PORT_DOWN, "vm1"),
    ("no link", bed.switch(after=bed.counted("vm1", link_up=False)), Cause.PORT_DOWN, "vm1"),
    ("blocked", bed.with_port(bed.port("vm1", flags=BLOCKED)), Cause.PORT_BLOCKED, "vm1"),
    ("not polled", bed.with_port(bed.port("vm1", queues=0)), Cause.NOT_POLLED, "vm1"),
    ("no uplink", bed.with_port(bed.port("uplink", present=False)), Cause.UPLINK_PORT, None),
    ("uplink down", bed.switch(after=bed.counted("uplink", link_up=False)), Cause.UPLINK_PORT, None),
    ("stale rule", bed.underlay(owner=Side.B, rules=("to b",)), Cause.UPLINK_RULE, None),
    ("no rule", bed.underlay(owner=None, rules=()), Cause.UPLINK_RULE, None),
    ("wrong rule", bed.underlay(faults=(("a stray filter", "`tc`"),)), Cause.UPLINK_RULE, None),
    ("no route", bed.switch(routes=(Hop("10.0.0.0/8", None),)), Cause.ROUTE_MISSING, None),
    ("no neighbour", bed.switch(neighbours={}), Cause.NEIGHBOUR_MISSING, None),
    ("no MAC of a gateway", bed.switch(routes=(Hop("0.0.0.0/0", "10.9.9.9"),)), Cause.NEIGHBOUR_MISSING, None),
    ("other neighbour", bed.switch(neighbours={VTEP: VM1}), Cause.NEIGHBOUR_WRONG, None),
    ("silent VF", bed.underlay(proof=Proof(False, True)), Cause.UPLINK_SILENT, None),
    ("deaf VF of both NICs", bed.underlay(proof=Proof(True, False, (("pf0", Proof(True, False)),
                                                                    ("pf1", Proof(True, False))))),
     Cause.UPLINK_SILENT, None),
    ("deaf VF of one NIC", bed.underlay(proof=Proof(True, False, (("pf0", Proof(True, True)),
                                                                  ("pf1", Proof(True, False))))),
     Cause.UPLINK_DEGRADED, None),
    ("VNI of the flows", bed.switch(differences=(
        bed.line(Kind.FROM_VM, "write_metadata:0x65,goto_table:1", vni=100, ofport=10), "+cookie=0x0, actions=")),
     Cause.WRONG_VNI, "vm1"),
    ("VNI of the other host", bed.switch(megaflows=(bed.flow(port="4", vni=101, vtep=VTEP, source=FAR, to=VM1),)),
     Cause.WRONG_VNI, "vm1"),
    ("strange VNI", bed.switch(megaflows=(bed.flow(port="4", vni=7, vtep=VTEP, source=None, to=None),)),
     Cause.UNKNOWN_VNI, None),
    ("VTEP of the flows", bed.switch(differences=(
        bed.line(Kind.TO_REMOTE, "set_field:172.31.0.9->tun_dst,output:2", f",dl_dst={FAR}", vni=100),)),
     Cause.WRONG_VTEP, None),
    ("comes from another VTEP", bed.switch(megaflows=(
        bed.flow(port="4", vni=100, vtep="172.31.0.9", source=FAR, to=VM1, actions="3"),)), Cause.WRONG_VTEP, None),
    ("unknown VTEP", bed.switch(megaflows=(
        bed.flow(port="4", vni=100, vtep="172.31.0.9", source=None, to=VM1, actions="3"),)), Cause.WRONG_VTEP, None),
    ("VTEP silent", bed.underlay(answers={}), Cause.VTEP_SILENT, None),
    ("flows", bed.switch(differences=("-cookie=0x5, priority=1 actions=drop",)), Cause.FLOWS_DIFFER, None),
    ("spoofs", bed.grew(Kind.DROP_SPOOFED, 9, 10), Cause.SPOOFED, "vm1"),
    ("seen to spoof", bed.switch(megaflows=(bed.flow(source="02:00:00:00:00:01", to=None),)), Cause.SPOOFED, "vm1"),
    ("unknown MAC", bed.switch(megaflows=(bed.flow(to="02:00:00:00:00:02"),)), Cause.UNKNOWN_MAC, "vm1"),
    ("seen to be dropped", bed.switch(megaflows=(bed.flow(),)), Cause.FLOWS_DROP, "vm1"),
    ("unknown MAC, counted", bed.grew(Kind.DROP_UNKNOWN_FROM_VM, 9), Cause.UNKNOWN_MAC, None),
    ("too long", lost("uplink", ovs_tx_mtu_exceeded_drops=4, tx_dropped=4), Cause.MTU, None),
    ("too narrow", replace(HEALTHY, mtus=(("vf-a has MTU 1300", None),)), Cause.MTU, None),
    ("policed", lost("vm1", ovs_rx_qos_drops=4), Cause.POLICED, "vm1"),
    ("shaped", lost("vm1", ovs_tx_qos_drops=4, tx_dropped=4), Cause.POLICED, "vm1"),
    ("ring full", lost("vm1", ovs_tx_failure_drops=4, tx_dropped=4), Cause.RING_FULL, "vm1"),
    ("conntrack full", bed.switch(after=bed.counters(conntrack=ConntrackCounts(5, 5))), Cause.CONNTRACK_FULL, None),
    ("zone full", bed.switch(after=bed.counters(conntrack=ConntrackCounts(5, 99, 0, (ZoneLimit(3, 5, 5),)))),
     Cause.CONNTRACK_FULL, None),
    ("conntrack refuses", bed.switch(after=bed.counters(coverage={"conntrack_full": 3})), Cause.CONNTRACK_FULL, None),
    ("invalid", bed.switch(after=bed.counters(coverage={"conntrack_tcp_seq_chk_failed": 3})),
     Cause.CONNTRACK_INVALID, None),
    ("upcalls", bed.switch(after=bed.counters(coverage={"datapath_drop_upcall_error": 3})), Cause.UPCALL_LOST, None),
    ("NIC", lost("uplink", rx_missed_errors=3, rx_dropped=3), Cause.DROPPED, None),
    ("no database", bed.switch(database=False), Cause.DATABASE_GONE, None),
    ("unfinished", replace(HEALTHY, unfinished="forward"), Cause.UNFINISHED, None),
    ("trace left", replace(HEALTHY, traces=("bridge br0 has the copies of a trace",)), Cause.TRACE_LEFT, None),
    ("no watchdog", replace(HEALTHY, standby=Standby(False)), Cause.NOT_PROTECTED, None),
    ("no standby", replace(HEALTHY, standby=Standby(True, None, "start")), Cause.NOT_PROTECTED, None),
    ("not parked", replace(HEALTHY, standby=Standby(True, Side.B, "ready", ("vm2",))), Cause.NOT_PROTECTED, "vm2"),
    ("not seen", replace(HEALTHY, unseen=(Unseen("The uplink", "no answer"),)), Cause.NOT_SEEN, None),
]  # fmt: skip


def test_nothing_is_found_on_a_healthy_host() -> None:
    found = report(HEALTHY)
    assert found.findings == ()
    assert found.worst is Severity.OK
    assert report(replace(HEALTHY, wanted=replace(WANTED, watched=False), standby=Standby(False))).findings == ()


@pytest.mark.parametrize(("facts", "cause", "vm"), [each[1:] for each in PLANTED], ids=[each[0] for each in PLANTED])
def test_a_planted_fault_is_the_first_finding(facts: Facts, cause: Cause, vm: str | None) -> None:
    first = report(facts).findings[0]
    assert (first.cause, first.vm) == (cause, vm)
    assert first.text.endswith(".")
    assert first.evidence
    assert all(first.evidence)
    assert first.command


@pytest.mark.parametrize("facts", [each[1] for each in PLANTED], ids=[each[0] for each in PLANTED])
def test_the_next_command_is_one_that_there_is(facts: Facts) -> None:
    for finding in report(facts, Asked(WANTED.vms["vm1"])).findings:
        named = re.findall(r"`ovs-hotswap ([^`]+)`", finding.command)
        assert [words for words in named if not exists(words.split())] == []
        assert not re.search(r"None|unix:/\.|  | $|``", finding.command)


def exists(words: list[str]) -> bool:
    """Whether the program has this command, with its options."""
    command: click.Command = main.cli
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words.pop(0))
        if found is None:
            return False
        command = found
    options = {option for each in command.params for option in each.opts}
    return not isinstance(command, click.Group) and {word for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize("facts", [each[1] for each in PLANTED], ids=[each[0] for each in PLANTED])
def test_where_others_program_the_bridges_nothing_is_said_of_an_overlay_file(facts: Facts) -> None:
    vms = {name: replace(vm, mac=None, vni=None) for name, vm in WANTED.vms.items()}
    wanted = Wanted(vms, overlay=False, uplinks=("uplink",))
    switch = None if facts.switch is None else replace(facts.switch, differences=())
    for finding in report(replace(facts, wanted=wanted, underlay=None, switch=switch, mtus=())).findings:
        assert not re.search("overlay|tunnel", " ".join([finding.text, *finding.evidence, finding.command])), finding


def test_every_cause_is_planted_here_or_needs_a_question() -> None:
    planted = {cause for _, _, cause, _ in PLANTED}
    assert set(Cause) - planted == {Cause.NO_GUEST, Cause.NO_DRIVER}
    assert planted >= WARNINGS - {Cause.NO_DRIVER}


def test_the_cause_comes_before_what_it_leads_to() -> None:
    """Without a neighbour, the flows drop; while the thread starves, rings stand still."""
    facts = replace(bed.with_guest(STUCK), switch=replace(bed.SWITCH, neighbours={}, cores=(CoreUse(1, 0.9),)))
    found = [each.cause for each in report(replace(facts, standby=Standby(False))).findings]
    assert found == [Cause.PMD_STARVED, Cause.RING_NOT_SERVED, Cause.NEIGHBOUR_MISSING, Cause.NOT_PROTECTED]
    without_flows = replace(
        bed.switch(differences=("+table=0 priority=100,in_port=2 actions=drop",)),
        underlay=replace(UNDERLAY, proof=Proof(True, False)),
    )
    assert [each.cause for each in report(without_flows).findings] == [Cause.FLOWS_DIFFER, Cause.UPLINK_SILENT]


def test_what_is_not_known_comes_before_a_warning_and_after_an_error() -> None:
    facts = replace(lost("vm1", ovs_rx_qos_drops=4), unseen=(Unseen("The uplink", "no answer", "`x`"),))
    assert [each.severity for each in report(facts).findings] == [Severity.UNKNOWN, Severity.WARNING]
    facts = replace(facts, broker_fault="gone")
    assert report(facts).worst is Severity.ERROR


def test_a_report_on_one_vm_leaves_out_others_and_keeps_the_host() -> None:
    facts = replace(lost("vm2", ovs_rx_qos_drops=4), standby=Standby(True, Side.B, "ready", ("vm1", "vm2")))
    found = report(facts, Asked(WANTED.vms["vm1"])).findings
    assert [(each.cause, each.vm) for each in found] == [(Cause.NOT_PROTECTED, "vm1")]
    found = report(replace(facts, broker_fault="gone"), Asked(WANTED.vms["vm1"])).findings
    assert [each.cause for each in found] == [Cause.BROKER_GONE, Cause.NOT_PROTECTED]
    there = Asked(WANTED.vms["vm1"], "x", Target(Place.HERE, bed.VM2, vm="vm2"))
    assert (Cause.POLICED, "vm2") in [(each.cause, each.vm) for each in report(facts, there).findings]


def test_a_vm_that_does_not_run_is_a_finding_only_if_it_is_asked_about() -> None:
    facts = bed.with_guest(bed.guest("vm1", qemu=None, absent=ABSENT))
    assert report(facts).findings == ()
    assert [each.cause for each in report(facts, Asked(WANTED.vms["vm1"])).findings] == [Cause.NO_GUEST]
    idle = bed.with_guest(replace(bed.guest("vm1"), status=replace(bed.guest("vm1").status, rings=(), owner=None)))
    assert report(idle).findings == ()
    assert [each.cause for each in report(idle, Asked(WANTED.vms["vm1"])).findings] == [Cause.NO_DRIVER]


def test_a_guest_that_is_only_slow_does_not_hang() -> None:
    """It has given buffers in the meantime, though what came in was more."""
    slow = bed.guest("vm1", ((276, 276), (40, 40)), ((280, 280), (40, 40)))
    facts = replace(bed.with_guest(slow), switch=lost("vm1", ovs_tx_failure_drops=9, tx_dropped=9).switch)
    assert [each.cause for each in report(facts).findings] == [Cause.RING_FULL]


def test_a_few_free_buffers_are_full_only_if_packets_were_dropped() -> None:
    nearly = bed.guest("vm1", ((276, 273), (40, 40)), ((276, 273), (40, 40)))
    assert report(bed.with_guest(nearly)).findings == ()
    facts = replace(bed.with_guest(nearly), switch=lost("vm1", ovs_tx_failure_drops=9, tx_dropped=9).switch)
    assert report(facts).findings[0].cause is Cause.GUEST_HUNG


def test_a_port_without_a_guest_needs_no_link_and_no_queue() -> None:
    idle = bed.guest("vm1", qemu=None, absent=ABSENT)
    ports = {**(bed.SWITCH.ports or {}), "vm1": bed.port("vm1", queues=0)}
    switch = replace(bed.SWITCH, after=bed.counted("vm1", link_up=False), ports=ports)
    facts = replace(bed.with_guest(idle), switch=switch)
    assert report(facts).findings == ()


def test_an_unfinished_upgrade_explains_owners_and_flows() -> None:
    facts = replace(bed.with_guest(bed.guest("vm1", owner=Side.B)), unfinished="forward")
    facts = replace(facts, switch=replace(bed.SWITCH, differences=("-cookie=0x5, priority=1 actions=drop",)),
                    underlay=replace(UNDERLAY, owner=Side.B), standby=Standby(False))  # fmt: skip
    assert [each.cause for each in report(facts).findings] == [Cause.UNFINISHED]


def test_a_journal_that_cannot_be_read_leaves_open_what_owners_and_flows_are_to_be() -> None:
    facts = replace(bed.with_guest(bed.guest("vm1", owner=Side.B)), journal=False, standby=Standby(False),
                    unseen=(Unseen("The upgrade's journal", "it is damaged"),))  # fmt: skip
    facts = replace(facts, switch=replace(bed.SWITCH, differences=("-cookie=0x5, priority=1 actions=drop",)),
                    underlay=replace(UNDERLAY, owner=Side.B))  # fmt: skip
    assert [each.cause for each in report(facts).findings] == [Cause.NOT_SEEN]


def test_counters_of_a_switch_that_was_started_again_are_not_compared() -> None:
    before = bed.counted("vm1", bed.counters(process=(6, 1)))
    again = bed.switch(before=before, after=bed.counted("vm1", statistics={"ovs_rx_qos_drops": 4}))
    assert report(again).findings == ()
    assert [each.now for each in report(again).drops] == [0]


def test_a_part_that_one_look_lacks_is_not_compared() -> None:
    flows = bed.grew(Kind.DROP_SPOOFED, 9, 10).switch
    assert flows is not None
    for facts in (
        replace(HEALTHY, switch=replace(flows, before=bed.counters(flows=None))),
        bed.switch(before=bed.counters(coverage=None), after=bed.counters(coverage={"datapath_drop_meter": 3})),
        bed.switch(before=bed.counters(ports=None), after=bed.counted("vm1", statistics={"ovs_rx_qos_drops": 4})),
    ):
        assert report(facts).findings == ()


def test_a_rest_that_may_be_the_time_between_two_counters_is_no_empty_pool() -> None:
    assert report(lost("uplink", rx_missed_errors=90, rx_dropped=95)).findings[0].cause is Cause.DROPPED
    assert report(lost("uplink", rx_missed_errors=90, rx_dropped=290)).findings[0].cause is Cause.POOL_EMPTY
    assert report(lost("uplink", rx_dropped=3)).findings[0].cause is Cause.POOL_EMPTY


def test_a_full_ring_of_a_nic_is_no_vm() -> None:
    first = report(lost("uplink", ovs_tx_failure_drops=4, tx_dropped=4)).findings[0]
    assert (first.cause, first.vm) == (Cause.RING_FULL, None)
    assert "vm show" not in first.command
    assert "n_txq_desc" in first.command


def test_a_full_table_of_connections_is_one_finding() -> None:
    full = bed.counters(conntrack=ConntrackCounts(5, 5), coverage={"conntrack_full": 3})
    (only,) = report(bed.switch(before=bed.counters(coverage={}), after=full)).findings
    assert len(only.evidence) == 2


def test_indices_that_do_not_fit_are_not_taken_for_a_parked_ring() -> None:
    torn = bed.guest("vm1", ((276, 20), (40, 40)), ((276, 20), (40, 900)))
    first = report(bed.with_guest(torn)).findings[0]
    assert first.cause is Cause.RING_NOT_SERVED
    assert "do not fit" in first.text


def test_a_followed_neighbour_that_nobody_uses_may_age_out() -> None:
    """Open vSwitch asks for it again with the next packet; one with a MAC in the file it may not ask for."""
    aged = bed.switch(neighbours={})
    assert report(aged).findings[0].cause is Cause.NEIGHBOUR_MISSING
    assert report(replace(aged, wanted=replace(WANTED, macs={}))).findings == ()
    silent = replace(aged, wanted=replace(WANTED, macs={}), underlay=replace(UNDERLAY, answers={}))
    assert report(silent).findings[0].cause is Cause.NEIGHBOUR_MISSING


def test_copies_for_a_vm_that_the_other_side_serves_are_no_loss() -> None:
    moved = replace(bed.with_guest(bed.guest("vm1", owner=Side.B)), unfinished="forward")
    facts = replace(moved, switch=lost("vm1", ovs_tx_failure_drops=9, tx_dropped=9).switch)
    assert [each.cause for each in report(facts).findings] == [Cause.UNFINISHED]


def test_where_no_next_hop_answers_it_is_not_known_what_the_uplink_sends() -> None:
    """The questions come from a device of the kernel. Where they pass through the uplink, its silence explains it."""
    facts = bed.underlay(answers={}, proof=Proof(False, True))
    assert [each.cause for each in report(facts).findings] == [Cause.VTEP_SILENT]
    facts = bed.underlay(answers={}, proof=Proof(False, True), apart=False)
    assert [each.cause for each in report(facts).findings] == [Cause.UPLINK_SILENT, Cause.VTEP_SILENT]


def test_a_quiet_vtep_that_sends_is_not_silent() -> None:
    heard = (bed.flow(port="4", vni=100, vtep=VTEP, source=FAR, to=VM1, actions="3"),)
    facts = replace(bed.switch(megaflows=heard), underlay=replace(UNDERLAY, answers={}))
    assert report(facts).findings == ()


def test_old_flows_proofs_of_the_uplink_and_frames_for_all_say_nothing() -> None:
    old = bed.flow(source="02:00:00:00:00:01", used=3.0)
    counted_late = replace(bed.grew(Kind.DROP_SPOOFED, 9, 10).switch or bed.SWITCH, megaflows=(old,))
    assert report(replace(HEALTHY, switch=counted_late)).findings == (), "the VM has its own MAC again"
    unknown = bed.flow(to="02:00:00:00:00:02", used=3.0)
    assert report(bed.switch(megaflows=(unknown,))).findings == (), "the overlay file has it now"
    proof = bed.flow(port="4", vni=0, vtep=VTEP)
    left = bed.flow(port="4", vni=100, vtep="172.31.0.9", source=None, to=VM1, actions="3", used=3.0)
    assert report(bed.switch(megaflows=(left,))).findings == (), "the remote host may have left the file since"
    to_all, to_itself = bed.flow(to="ff:ff:ff:ff:ff:ff"), bed.flow(to=VM1)
    assert report(bed.switch(megaflows=(old, proof, replace(old, used=None), to_all, to_itself))).findings == ()


def test_a_mac_of_another_vni_is_a_wrong_vni_and_no_unknown_mac() -> None:
    wanted = replace(WANTED, vms={**WANTED.vms, "vm3": VmPort("vm3", 12, "br0", "52:54:00:64:00:03", 101)})
    facts = replace(bed.switch(megaflows=(bed.flow(to="52:54:00:64:00:03"),)), wanted=wanted,
                    guests=HEALTHY.guests)  # fmt: skip
    found = [each for each in report(facts).findings if each.vm == "vm1"]
    assert [each.cause for each in found] == [Cause.WRONG_VNI]
    assert "101" in found[0].text


def test_many_macs_that_nobody_has_are_one_finding() -> None:
    flows = tuple(bed.flow(to=f"02:00:00:00:00:{number:02x}") for number in range(200))
    (only,) = report(bed.switch(megaflows=flows)).findings
    assert (only.cause, only.vm) == (Cause.UNKNOWN_MAC, "vm1")
    assert "197 more" in only.text


def test_the_most_exact_route_leads_to_a_vtep() -> None:
    routes = (Hop("0.0.0.0/0", "172.31.0.254"), Hop("172.31.0.0/24", None), Hop("10.0.0.0/8", "172.31.0.253"))
    hops = [underlay_faults.hop_of(each, routes) for each in ("172.31.0.9", "10.1.2.3", "8.8.8.8")]
    assert [None if hop is None else hop.via for hop in hops] == [None, "172.31.0.253", "172.31.0.254"]
    assert underlay_faults.hop_of("fd00::1", (Hop("fd00::/64", None),)) == Hop("fd00::/64", None)
    assert underlay_faults.hop_of("fd00::1", routes) is None


def test_on_bridges_of_others_the_report_says_where_it_ends() -> None:
    foreign = replace(WANTED, overlay=False, remotes=(), uplinks=(), vms={
        name: replace(vm, mac=None, vni=None) for name, vm in WANTED.vms.items()})  # fmt: skip
    facts = replace(bed.switch(megaflows=(bed.flow(),)), wanted=foreign, underlay=None)
    found = report(facts)
    assert found.findings == ()
    assert any("others program" in limit for limit in found.limits)
    assert report(replace(facts, switch=lost("vm1", ovs_rx_qos_drops=4).switch)).findings[0].cause is Cause.POLICED
    nothing = report(replace(facts, active=None, switch=None, guests=None, wanted=replace(foreign, vms={})))
    assert nothing.findings == ()
    assert any("has not taken over" in limit for limit in nothing.limits)


def test_a_way_through_bridges_of_others_names_the_ports_that_are_known() -> None:
    foreign = replace(WANTED, overlay=False, bridge="", fixed_ports={})
    steps = tuple(Step(bridge, 0, "", 5, 0, (("output:11", ()),)) for bridge in ("br0", "br-ex"))
    answer = Answer(Question("A packet of vm1 to x", "br0", "in_port=10", "vm1", needed=False), Trace(steps, ("3",)))
    (path,) = report(replace(HEALTHY, wanted=foreign), Asked(), [answer]).paths
    dropped = replace(answer, trace=Trace(steps, ("drop",)))
    for given, told in ((answer, False), (dropped, True)):
        limits = report(replace(HEALTHY, wanted=foreign), Asked(), [given]).limits
        assert any("port security" in limit for limit in limits) is told
    assert path.steps[0].endswith("out by vm2.")
    assert path.steps[1].endswith("out by port 11."), "a number means another port on another bridge"


def test_without_frames_the_report_says_so() -> None:
    limits = [report(bed.underlay(proof=proof)).limits for proof in (None, Proof(), Proof(True, True))]
    assert [any("no frames were sent" in limit for limit in each) for each in limits] == [True, True, False]


def test_drops_are_listed_with_those_that_grow_first() -> None:
    after = bed.counted("vm1", bed.counted("vm2", statistics={"ovs_rx_qos_drops": 50}),
                        statistics={"ovs_tx_failure_drops": 3, "tx_dropped": 3})  # fmt: skip
    facts = bed.switch(before=bed.counted("vm2", statistics={"ovs_rx_qos_drops": 50}), after=after)
    assert [(each.vm, each.reason, each.packets, each.now) for each in report(facts).drops] == [
        ("vm1", "ring_full", 3, 3), ("vm2", "policing", 50, 0)]  # fmt: skip
    assert [each.vm for each in report(facts, Asked(WANTED.vms["vm2"])).drops] == ["vm2"]


# ---------------------------------------------------------------------------------------------------------- with --to


@pytest.mark.parametrize(
    ("mac", "place"),
    [(bed.VM2, Place.HERE), (FAR, Place.REMOTE), ("02:00:00:00:00:09", Place.NOWHERE), (None, Place.NO_MAC)],
)
def test_a_target_is_found(mac: str | None, place: Place) -> None:
    assert find(WANTED, WANTED.vms["vm1"], mac, None).place is place


def test_a_target_in_another_vni_cannot_be_reached() -> None:
    vm = replace(WANTED.vms["vm1"], vni=7)
    target = find(WANTED, vm, FAR, None)
    assert target == Target(Place.OTHER_VNI, FAR, vnis=(100,))
    first = report(HEALTHY, Asked(vm, FAR, target)).findings[0]
    assert (first.cause, first.vm) == (Cause.WRONG_VNI, "vm1")


def test_a_target_that_nobody_knows_is_told() -> None:
    vm, mac = WANTED.vms["vm1"], "02:00:00:00:00:09"
    assert report(HEALTHY, Asked(vm, mac, find(WANTED, vm, mac, None))).findings[0].cause is Cause.UNKNOWN_MAC
    found = report(HEALTHY, Asked(vm, "10.0.0.9", find(WANTED, vm, None, "10.0.0.9")))
    assert found.findings == ()
    assert any("10.0.0.9" in limit for limit in found.limits)


def test_the_packets_that_are_asked_about() -> None:
    vm = WANTED.vms["vm1"]
    asked = [each.flow for each in questions(WANTED, vm, None)]
    assert asked == [
        f"in_port=10,ip,dl_src={VM1},dl_dst={bed.VM2},nw_ttl=64",
        f"in_port=10,ip,dl_src={VM1},dl_dst={FAR},nw_ttl=64",
        f"in_port=2,tun_id=100,tun_src={VTEP},tun_dst={bed.OWN},ip,dl_src={FAR},dl_dst={VM1},nw_ttl=64",
    ]
    there = questions(WANTED, vm, find(WANTED, vm, bed.VM2, None))
    assert [each.vm for each in there] == ["vm1", "vm2"], "and the way back"
    by_address = questions(WANTED, vm, find(WANTED, vm, FAR, "10.0.0.9"))[0]
    assert "icmp,nw_dst=10.0.0.9" in by_address.flow
    (who_has,) = questions(WANTED, vm, find(WANTED, vm, None, "10.0.0.9"))
    assert "arp_tpa=10.0.0.9" in who_has.flow
    assert not who_has.needed, "that no host answers is no fault of the flows"
    assert questions(WANTED, replace(vm, mac=None), None) == []


def test_flows_that_drop_what_must_pass_are_a_finding() -> None:
    drop = Trace((Step("br0", 2, "metadata=0x64", 5, 0, (("drop", ()),)),), ("drop",))
    question = Question("A packet of vm1 to x", "br0", "in_port=10", "vm1")
    found = report(HEALTHY, Asked(WANTED.vms["vm1"]), [Answer(question, drop)])
    assert [(each.cause, each.vm) for each in found.findings] == [(Cause.FLOWS_DROP, "vm1")]
    assert "table 2 of bridge br0" in found.findings[0].text
    assert found.paths[0].delivered is False
    passed = Answer(question, replace(drop, datapath=("3",)))
    assert report(HEALTHY, Asked(), [passed, Answer(replace(question, needed=False), drop)]).findings == ()


def test_the_mac_of_a_neighbour_is_what_it_answers_with() -> None:
    """The file may be the one that is wrong: then the switch, which follows the answer, is right."""
    other = "52:54:00:1f:00:99"
    facts = replace(bed.switch(neighbours={VTEP: other}), underlay=replace(UNDERLAY, answers={VTEP: other}))
    assert report(facts).findings == ()
    facts = replace(facts, underlay=replace(UNDERLAY, answers={VTEP: HOP_MAC}))
    assert report(facts).findings[0].cause is Cause.NEIGHBOUR_WRONG


def test_a_parked_vm_without_an_owner_is_told_where_it_is_parked() -> None:
    parked = replace(ABSENT_SWITCH, connected=True, parked=True)
    guest = bed.guest("vm1", owner=None, certainty=OwnerCertainty.NOBODY, switches=Switches(parked, parked))
    first = report(bed.with_guest(guest)).findings[0]
    assert any("parked on a and b" in each for each in first.evidence)
