from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ovs_hotswap.errors import CommandError, SwitchError
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.switch.openflow import DropCounter, OpenFlow, drop_counters, window_incapable
from ovs_hotswap.system import Completed, System

MGMT = Path("/run/ovs-hotswap/a/br0.mgmt")


class Ofctl(System):
    """Answers in the place of ovs-ofctl, and keeps what it was asked."""

    def __init__(
        self, stdout: str = "", *, status: int = 0, stderr: str = "", fails: CommandError | None = None
    ) -> None:
        self.answer = (status, stdout, stderr)
        self.fails = fails
        self.calls: list[tuple[list[str], str | None, float]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.calls.append((list(argv), stdin, timeout))
        if self.fails:
            raise self.fails
        return Completed(tuple(argv), *self.answer)


def test_replace_is_one_bundle_read_from_standard_input() -> None:
    system = Ofctl()
    OpenFlow(system, MGMT, timeout=7).replace(["table=0 actions=drop", "table=1 actions=drop"])
    argv = ["ovs-ofctl", "-O", "OpenFlow14", "--bundle", "replace-flows", f"unix:{MGMT}", "-"]
    assert system.calls == [(argv, "table=0 actions=drop\ntable=1 actions=drop\n", 7)]


def test_a_relative_path_is_made_absolute() -> None:
    system = Ofctl()
    OpenFlow(system, Path("br0.mgmt")).dump()
    assert f"unix:{Path.cwd()}/br0.mgmt" in system.calls[0][0]


def test_dump_is_sorted_by_table_priority_and_text_without_the_header() -> None:
    system = Ofctl(
        "OFPST_FLOW reply (OF1.4) (xid=0x2):\n"
        " table=10, priority=1 actions=drop\n table=2, priority=5,in_port=2 actions=drop\n"
        " table=2, priority=5,in_port=1 actions=drop\n table=2, in_port=9 actions=drop\n priority=7 actions=drop\n"
    )
    assert OpenFlow(system, MGMT).dump() == [
        "priority=7 actions=drop",
        "table=2, in_port=9 actions=drop",
        "table=2, priority=5,in_port=1 actions=drop",
        "table=2, priority=5,in_port=2 actions=drop",
        "table=10, priority=1 actions=drop",
    ]


def test_equal_tables_have_no_diff() -> None:
    assert OpenFlow(Ofctl(), MGMT).diff(["actions=drop"]) == []


def test_a_difference_is_no_error() -> None:
    text = "-priority=1 actions=drop\n+priority=2 actions=drop\n"
    assert OpenFlow(Ofctl(text, status=2), MGMT).diff(["priority=2 actions=drop"]) == text.splitlines()


@pytest.mark.parametrize("status", [1, 2])
def test_a_failure_names_the_command_the_bridge_and_the_cause(status: int) -> None:
    system = Ofctl(status=status, stderr="ovs-ofctl: -:2: unknown action frobnicate\n")
    with pytest.raises(SwitchError, match=r"replace-flows unix:/run.*unknown action frobnicate") as caught:
        OpenFlow(system, MGMT).replace(["actions=frobnicate"])
    assert caught.value.hint


def test_a_failing_diff_is_an_error_not_a_difference() -> None:
    with pytest.raises(SwitchError, match="no such bridge"):
        OpenFlow(Ofctl(status=1, stderr="no such bridge"), MGMT).diff([])


def test_a_missing_or_hanging_tool_is_a_switch_error_with_the_same_hint() -> None:
    with pytest.raises(SwitchError, match="ovs-ofctl: not installed") as caught:
        OpenFlow(Ofctl(fails=CommandError("ovs-ofctl: not installed", hint="install it")), MGMT).dump()
    assert caught.value.hint == "install it"
    assert isinstance(caught.value.__cause__, CommandError)


DUMP = f"""\
 cookie={cookie(Kind.DROP_SPOOFED, vni=100, ofport=10):#x}, duration=1.2s, table=0, n_packets=3, n_bytes=1, actions=drop
 cookie={cookie(Kind.DELIVER, vni=100, ofport=10):#x}, duration=1.2s, table=4, n_packets=5, n_bytes=1, actions=output:10
 cookie=0x0, duration=1.2s, table=0, n_packets=8, n_bytes=1, actions=drop
 cookie={cookie(Kind.DROP_UNKNOWN_PORT):#x}, duration=1.2s, table=0, n_packets=0, n_bytes=0, priority=0 actions=drop
 cookie={cookie(Kind.DROP_SPOOFED, vni=100, ofport=10):#x}, duration=1.2s, table=1, n_packets=4, n_bytes=1, actions=drop
"""


def test_drop_counters_are_summed_by_cookie_and_named() -> None:
    system = Ofctl(DUMP)
    spoofed = cookie(Kind.DROP_SPOOFED, vni=100, ofport=10)
    assert OpenFlow(system, MGMT).drops({10: "web"}) == (
        DropCounter(cookie(Kind.DROP_UNKNOWN_PORT), "dropped: from a port that is not in the intent", 0),
        DropCounter(spoofed, "dropped: source MAC is not the VM's (VNI 100, VM web)", 7),
    )
    assert "--no-stats" not in system.calls[0][0]


def test_a_dump_without_our_flows_has_no_drop_counters() -> None:
    assert drop_counters(["OFPST_FLOW reply (OF1.4) (xid=0x2):", " cookie=0x1, n_packets=3, actions=drop"]) == ()


@pytest.mark.parametrize(
    ("flow", "what", "way_out"),
    [
        ("priority=0 actions=NORMAL", "NORMAL", "name the ports"),
        ("priority=0 actions=output:normal", "NORMAL", "name the ports"),
        ("in_port=1 actions=clone(set_field:1->reg0,NORMAL)", "NORMAL", "name the ports"),
        ("in_port=1 actions=FLOOD", "FLOOD", "name the ports"),
        ("in_port=1 actions=strip_vlan,ALL", "ALL", "name the ports"),
        ("in_port=1 actions=IN_PORT", "IN_PORT", "name the port"),
        ("in_port=1 actions=load:0->NXM_OF_IN_PORT[],output:1", "rewrites in_port", "name the port"),
        ("actions=push:NXM_OF_IN_PORT[],resubmit(,65),pop:NXM_OF_IN_PORT[]", "rewrites in_port", "name the port"),
        ("actions=set_field:65535->in_port_oxm,output:1", "rewrites in_port", "name the port"),
        ("actions=clone(load:0xffff->OXM_OF_IN_PORT[],resubmit(,9))", "rewrites in_port", "name the port"),
        ("actions=move:NXM_NX_REG0[0..15]->NXM_OF_IN_PORT[],output:1", "rewrites in_port", "name the port"),
        ("actions=sample(probability=65535,collector_set_id=1),output:1", "sample()", "IPFIX"),
        ("in_port=1 actions=output:NXM_NX_REG0[]", "register", "name the ports"),
        ("in_port=1 actions=output:reg3[0..15]", "register", "name the ports"),
        ("in_port=1 actions=learn(table=1,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),output:2", "learn()", "install"),
        ("in_port=1 actions=delete_learned(cookie=0x1)", "learn()", "install"),
        ("ip actions=ct(commit,zone=1),output:2", "ct()", "TCP flags"),
        ("ip actions=ct(table=1)", "ct()", "TCP flags"),
        ("ip actions=ct_clear,output:2", "ct()", "TCP flags"),
        ("ip actions=ct,output:2", "ct()", "TCP flags"),
        ("priority=5,ct_state=+trk+est,ip actions=output:2", "connection state", "TCP flags"),
        ("ct_mark=0x1,ip actions=output:2", "connection state", "TCP flags"),
        ("in_port=1 actions=CONTROLLER:65535", "controller", "answer by flows"),
        ("in_port=1 actions=controller(reason=no_match)", "controller", "answer by flows"),
        ("in_port=1 actions=group:7", "groups", "buckets"),
        ("in_port=1 actions=write_actions(group:7)", "groups", "buckets"),
        ("in_port=1 actions=meter:1,output:2", "meters", "ingress_policing_rate"),
        ("in_port=1 actions=bundle(eth_src,0,hrw,ofport,members:4,8)", "bundle()", "one port"),
        ("in_port=1 actions=enqueue:1:2", "enqueue", "set_queue"),
        ("tcp actions=fin_timeout(idle_timeout=10),output:2", "fin_timeout", "leave it out"),
        ("cookie=0x0, idle_timeout=60, in_port=1 actions=output:2", "expires", "without a time-out"),
        ("hard_timeout=60,in_port=1 actions=output:2", "expires", "without a time-out"),
    ],
)
def test_what_the_window_cannot_carry_is_found_with_a_way_out(flow: str, what: str, way_out: str) -> None:
    found = window_incapable([" " + flow + "\n"])
    assert len(found) == 1
    assert found[0].startswith(f"{flow}: ")
    assert what in found[0]
    assert way_out in found[0]


@pytest.mark.parametrize(
    "flow",
    [
        "",
        "# actions=NORMAL",
        "priority=0 actions=drop",
        "in_port=LOCAL actions=output:1",
        "in_port=1,dl_dst=52:54:00:00:00:01 actions=output:10,output:11,LOCAL",
        "in_port=1 actions=resubmit(,2),resubmit(1,)",
        "in_port=1,tcp,tcp_flags=+syn-ack actions=drop",
        "in_port=1 actions=set_field:100->tun_id,set_field:172.31.0.2->tun_dst,output:2",
        "ip,nw_src=10.0.0.1 actions=conjunction(7,1/2)",
        "conj_id=7 actions=output:2",
        'in_port="NORMAL" actions=output:"all,group:1"',
        "in_port=1 actions=move:NXM_OF_IN_PORT[]->NXM_NX_REG0[0..15],goto_table:3",
        "in_port=1 actions=multipath(eth_src,50,modulo_n,1,0,NXM_NX_REG0[]),goto_table:2",
        "in_port=1, idle_timeout=0 actions=output:2",
        "table=0, n_packets=0, actions=set_queue:1,output:2",
    ],
)
def test_stateless_flows_to_fixed_ports_are_fine(flow: str) -> None:
    assert window_incapable([flow]) == []


def test_each_reason_in_a_flow_is_a_finding_of_its_own() -> None:
    found = window_incapable(["ct_state=+est actions=meter:1,NORMAL", "actions=drop", "actions=FLOOD"])
    assert len(found) == 4


def test_packets_that_have_come_in_on_a_port() -> None:
    """The text is what `ovs-ofctl -O OpenFlow14 dump-ports` of Open vSwitch 3.1 prints."""
    text = """OFPST_PORT reply (OF1.4) (xid=0x2): 1 ports
  port  1: rx pkts=17, bytes=106, drop=?, errs=?, frame=?, over=?, crc=?
           tx pkts=5, bytes=0, drop=?, errs=?, coll=?
           duration=0.027s
           CUSTOM Statistics
                      rx_custom_packets_1=1, rx_q0_packets=1, tx_q0_packets=0,
"""
    for printed, expected in ((text, 17), (text.replace("rx pkts=17", "rx pkts=?"), 0)):
        system = Ofctl(printed)
        assert OpenFlow(system, MGMT).arrived(1) == expected
