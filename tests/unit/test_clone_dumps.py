"""What ovs-ofctl prints, as data, and how two bridges differ. The texts are those of OVS 3.1.0."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.clone import compare, dumps
from ovs_hotswap.clone.compare import Commands, commands, pipeline_differences
from ovs_hotswap.clone.dumps import Flow, Key, Pipeline, Tlv
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.wire.mirror_flows import COOKIES

OVN_FLOWS = Path(__file__).parents[1] / "support/ovn_br_int.flows"
NEUTRON_FLOWS = Path(__file__).parents[1] / "support/neutron/br-int.flows"
FLOWS = """\
OFPST_FLOW reply (OF1.5) (xid=0x2):
 cookie=0x0, duration=0.187s, table=0, n_packets=0, n_bytes=0, idle_age=0, priority=0 actions=NORMAL
 cookie=0xabc, duration=12.9s, table=3, n_packets=1, n_bytes=60, idle_timeout=30, hard_timeout=60, importance=7, \
idle_age=1, hard_age=2, priority=3,ipv6,ipv6_dst=fe80::/10 actions=output:1
 cookie=0x12, duration=1s, table=0, n_packets=0, n_bytes=0, send_flow_rem check_overlap reset_counts no_packet_counts \
idle_age=0, in_port=5 actions=learn(table=5,idle_timeout=300,hard_timeout=900,priority=7,cookie=0x99),resubmit(,5)
 cookie=0x0, duration=1s, table=9, n_packets=0, n_bytes=0, idle_age=0, actions=drop
"""
GROUPS = """\
OFPST_GROUP_DESC reply (OF1.5) (xid=0x2):
 group_id=1,type=all,bucket=bucket_id:0,actions=group:2,bucket=bucket_id:1,actions=set_field:0x1->reg0,output:1
 group_id=2,type=select,selection_method=hash,fields(ip_src,ip_dst),bucket=bucket_id:0,weight:3,actions=output:5
"""
METERS = """\
OFPST_METER_CONFIG reply (OF1.5) (xid=0x2):
meter=1 pktps burst stats bands=
type=drop rate=1000 burst_size=100

meter=controller kbps bands=
type=drop rate=500
type=dscp_remark rate=800 prec_level=1
"""
TLVS = """\
NXT_TLV_TABLE_REPLY (OF1.5) (xid=0x2):
 max option space=256 max fields=64
 allocated option space=4

 mapping table:
  class  type  length  match field
 ------  ----  ------  --------------
  0x102  0x80       4  tun_metadata0
"""
PORTS = """\
OFPST_PORT_DESC reply (xid=0x2):
 1(p2): addr:aa:55:aa:55:00:02
     config:     NO_FLOOD NO_PACKET_IN
     state:      0
     speed: 0 Mbps now, 0 Mbps max
 5(p1): addr:aa:55:aa:55:00:01
     config:     0
     state:      0
     speed: 0 Mbps now, 0 Mbps max
 LOCAL(br-int): addr:02:00:00:00:00:01
     config:     PORT_DOWN
     state:      LINK_DOWN
     speed: 0 Mbps now, 0 Mbps max
"""
TABLES = """\
OFPST_TABLE_DESC reply (OF1.5) (xid=0x2):
  table 0:
   eviction=off eviction_flags=OTHER|IMPORTANCE|LIFETIME
   vacancy=off

  table 3:
   eviction=on eviction_flags=OTHER|IMPORTANCE|LIFETIME
   vacancy=off

  table 4:
   eviction=off eviction_flags=OTHER|IMPORTANCE|LIFETIME
   vacancy=on vacancy_down=20% vacancy_up=80% vacancy=100%
"""
HELD = """\
table_id=8, duration=5s, n_packets=0, n_bytes=0, priority=5,in_port=1,actions=mod_vlan_vid:9,NORMAL
duration=5s, n_packets=0, n_bytes=0, priority=0,actions=NORMAL
duration=5s, n_packets=0, n_bytes=0, actions=drop
"""


def test_flows_have_cookies_timeouts_flags_and_importance() -> None:
    flows = dumps.parse_flows(FLOWS)
    assert flows[Key(0, 0, "")] == Flow(Key(0, 0, ""), "NORMAL")
    timed = flows[Key(3, 3, "ipv6,ipv6_dst=fe80::/10")]
    assert (timed.cookie, timed.idle, timed.hard, timed.importance, timed.age) == (0xABC, 30, 60, 7, 12.9)
    learning = flows[Key(0, dumps.DEFAULT_PRIORITY, "in_port=5")]
    assert learning.flags == {"send_flow_rem", "no_packet_counts", "reset_counts"}  # and not check_overlap
    assert learning.idle == learning.hard == 0  # those in learn() are not the flow's own
    assert learning.actions.startswith("learn(table=5,idle_timeout=300")
    assert flows[Key(9, dumps.DEFAULT_PRIORITY, "")].actions == "drop"
    assert len(flows) == 4


def test_the_flows_of_ovn_are_read_to_the_last() -> None:
    dump = OVN_FLOWS.read_text()
    flows = dumps.parse_flows(dump)
    assert len(flows) == dump.count(" actions=") == 280
    assert sum(flow.cookie == 0 for flow in flows.values()) == 12
    assert not any(flow.legacy or flow.timed or flow.flags for flow in flows.values())


def test_the_flows_of_neutrons_agent_are_read_with_the_flag_that_it_sets() -> None:
    dump = NEUTRON_FLOWS.read_text()
    flows = dumps.parse_flows(dump)
    assert len(flows) == dump.count(" actions=") == 125
    assert len({flow.cookie for flow in flows.values()}) == 1
    assert Key(23, 0, "") in flows
    assert sum(flow.flags == {"reset_counts"} for flow in flows.values()) == dump.count("reset_counts") == 10
    assert "reset_counts" in flows[Key(71, 0, "")].text


def test_a_flow_is_written_as_it_is_read() -> None:
    for flow in dumps.parse_flows(FLOWS).values():
        head, _, actions = flow.text.partition(",actions=")
        words = [word for word in head.split(",") if not word.startswith(("cookie", "table", "priority", "ip"))]
        assert actions == flow.actions
        assert head.startswith(f"cookie={flow.cookie:#x},table={flow.key.table},priority={flow.key.priority}")
        assert set(words) <= {"idle_timeout=30", "hard_timeout=60", "importance=7", "in_port=5", *flow.flags}


@pytest.mark.parametrize("value", [cookie(Kind.FROM_UPLINK), *COOKIES])
def test_flows_of_ovs_hotswap_are_no_part_of_the_pipeline(value: int) -> None:
    line = f" cookie={value:#x}, duration=1s, table=0, n_packets=0, n_bytes=0, actions=drop"
    assert dumps.parse_flows(line) == {}
    assert len(dumps.parse_flows(line, lambda value: False)) == 1


def test_what_ovs_ofctl_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot read it: .*decode error"):
        dumps.parse_flows(" priority=1 actions=output:1\n***decode error: OFPBAC_BAD_TYPE***\n")
    with pytest.raises(ValueError, match="not a flow"):
        dumps.parse_flow("priority=1")
    with pytest.raises(ValueError, match="not a meter"):
        dumps.parse_meters("meter=1\n")


def test_the_other_parts_of_a_pipeline() -> None:
    assert dumps.parse_groups(GROUPS) == {
        1: "type=all,bucket=bucket_id:0,actions=group:2,bucket=bucket_id:1,actions=set_field:0x1->reg0,output:1",
        2: "type=select,selection_method=hash,fields(ip_src,ip_dst),bucket=bucket_id:0,weight:3,actions=output:5",
    }
    assert dumps.parse_meters(METERS) == {
        "1": "pktps,burst,stats,bands=type=drop,rate=1000,burst_size=100",
        "controller": "kbps,bands=type=drop,rate=500,type=dscp_remark,rate=800,prec_level=1",
    }
    assert dumps.parse_tlvs(TLVS) == {"tun_metadata0": Tlv("0x102", "0x80", 4)}
    assert (
        dumps.parse_tlvs(TLVS)["tun_metadata0"].text("tun_metadata0") == "{class=0x102,type=0x80,len=4}->tun_metadata0"
    )
    assert dumps.parse_ports(PORTS) == {"1": {"NO_FLOOD", "NO_PACKET_IN"}, "LOCAL": {"PORT_DOWN"}}
    assert dumps.parse_tables(TABLES) == {3: ("evict",), 4: ("vacancy:20,80",)}
    assert [dumps.parse_version(text) for text in (FLOWS, PORTS)] == [15, 10]


def test_actions_of_openflow_10_are_taken_from_the_switch_itself() -> None:
    held = dumps.parse_internal(HELD)
    key = Key(8, 5, "in_port=1")
    assert held == {key: "mod_vlan_vid:9,NORMAL", Key(0, 0, ""): "NORMAL", Key(0, 0x8000, ""): "drop"}
    flags = frozenset({"send_flow_rem", "reset_counts"})
    shown = Flow(key, "push_vlan:0x8100,set_field:4105->vlan_vid,NORMAL", cookie=5, flags=flags)
    other = Flow(Key(0, 0, ""), "NORMAL")
    unknown = Flow(Key(1, 1, ""), "set_field:1->reg0")
    flows = dumps.as_held({flow.key: flow for flow in (shown, other, unknown)}, held)
    left = frozenset({"send_flow_rem"})  # OpenFlow 1.0 has no word for the other one, which each of its flows has
    assert flows[key] == Flow(key, "mod_vlan_vid:9,NORMAL", cookie=5, flags=left, legacy=True)
    assert flows[other.key] == other
    assert flows[unknown.key] == unknown
    assert dumps.maybe_legacy(shown)
    assert not dumps.maybe_legacy(other)
    read = dumps.parse_flow("reset_counts priority=1 actions=strip_vlan,mod_vlan_vid:9")
    assert read.legacy
    assert read.flags == frozenset()


TEXTS = st.sampled_from(["in_port=1", "in_port=2", "ip", ""])
KEYS = st.builds(Key, st.integers(0, 3), st.integers(0, 3), TEXTS)
ANY_FLOWS = st.builds(
    Flow,
    key=KEYS,
    actions=st.sampled_from(["drop", "NORMAL"]),
    cookie=st.integers(0, 3),
    idle=st.integers(0, 2),
    hard=st.integers(0, 2),
    flags=st.frozensets(st.sampled_from(["send_flow_rem"])),
    legacy=st.booleans(),
)
PIPELINES = st.builds(
    Pipeline,
    version=st.just(15),
    meters=st.dictionaries(st.sampled_from("12"), st.sampled_from(["kbps", "pktps"])),
    groups=st.dictionaries(st.integers(1, 3), st.sampled_from(["type=all", "type=ff"])),
    flows=st.lists(ANY_FLOWS, max_size=6).map(lambda flows: {flow.key: flow for flow in flows}),
    ports=st.dictionaries(st.sampled_from("12"), st.frozensets(st.sampled_from(sorted(dumps.PORT_FLAGS)), min_size=1)),
)


def done(pipeline: Pipeline, given_commands: Commands) -> Pipeline:
    """What a bridge has after the commands, as ovs-vswitchd carries them out."""
    flows = {key.text: flow for key, flow in pipeline.flows.items()}
    meters, groups = dict(pipeline.meters), dict(pipeline.groups)
    ports = {port: set(flags) for port, flags in pipeline.ports.items()}
    words = {word: flag for flag, word in dumps.PORT_FLAGS.items()}
    texts = {flow.text: flow for flow in given_commands_flows}
    for command, *rest in given_commands.before:
        number, _, text = rest[0].removeprefix("meter=").partition(",")
        assert (number in meters) == (command == "mod-meter")
        meters[number] = text
    lines = [*given_commands.bundle, *(f"flow add {text}" for text in given_commands.legacy)]
    for line in lines:
        what, verb, text = line.split(" ", 2)
        if what == "group":
            number, _, text = text.removeprefix("group_id=").partition(",")
            assert (int(number) in groups) == (verb != "add")
            groups[int(number)] = text
            if verb == "delete":
                del groups[int(number)]
        elif verb == "add":
            flows[texts[text].key.text] = texts[text]
        else:
            del flows[text]
    for command, *rest in given_commands.after:
        if command == "del-meter":
            del meters[rest[0].removeprefix("meter=")]
            continue
        flag = words.get(rest[1]) or words.get(f"no-{rest[1]}", "PORT_DOWN")
        (ports.setdefault(rest[0], set()).add if rest[1] in words else ports[rest[0]].remove)(flag)
    return Pipeline(
        version=pipeline.version,
        meters=meters,
        groups=groups,
        flows={flow.key: flow for flow in flows.values()},
        ports={port: frozenset(flags) for port, flags in ports.items() if flags},
    )


given_commands_flows: list[Flow] = []


@given(PIPELINES, PIPELINES)
def test_the_commands_make_one_bridge_like_the_other(current: Pipeline, wanted: Pipeline) -> None:
    given_commands_flows[:] = wanted.flows.values()
    made = done(current, commands(current, wanted))
    assert pipeline_differences(made, wanted) == []
    assert bool(commands(current, wanted)) == bool(pipeline_differences(current, wanted))


@given(PIPELINES)
def test_a_pipeline_equals_itself(pipeline: Pipeline) -> None:
    assert pipeline_differences(pipeline, pipeline) == []
    assert not commands(pipeline, pipeline)


def test_differences_are_short_texts() -> None:
    key = Key(0, 1, "in_port=1")
    before = Pipeline(15, flows={key: Flow(key, "drop", cookie=1)}, fragments="normal", meters={"1": "kbps"})
    after = Pipeline(15, flows={key: Flow(key, "output:" + "1" * 200, cookie=2)}, fragments="drop", ports={
        "1": frozenset({"NO_FLOOD"})})  # fmt: skip
    found = pipeline_differences(before, after)
    assert found[:4] == [
        "- meter 1 kbps",
        "+ port 1 NO_FLOOD",
        "fragments: normal, not drop",
        "- flow cookie=0x1,table=0,priority=1,in_port=1,actions=drop",
    ]
    assert found[4].startswith("+ flow cookie=0x2,table=0,priority=1,in_port=1,actions=output:1")
    assert found[4].endswith("1...")
    assert commands(before, after).after == (
        ("del-meter", "meter=1"), ("mod-port", "1", "no-flood"), ("set-frags", "drop")
    )  # fmt: skip


def test_tunnel_options_are_there_before_the_flows_and_go_after_them() -> None:
    one, two = Tlv("0x1", "0x2", 4), Tlv("0x1", "0x3", 4)
    empty = Pipeline(15)
    with_one, with_other = Pipeline(15, tlvs={"tun_metadata0": one}), Pipeline(15, tlvs={"tun_metadata0": two})
    add = ("add-tlv-map", "{class=0x1,type=0x2,len=4}->tun_metadata0")
    assert commands(empty, with_one) == Commands(before=(add,))
    assert commands(with_one, empty) == Commands(after=(("del-tlv-map", add[1]),))
    assert commands(with_one, with_other).before == (
        ("del-tlv-map", add[1]), ("add-tlv-map", "{class=0x1,type=0x3,len=4}->tun_metadata0")
    )  # fmt: skip


def test_a_group_comes_after_those_in_its_buckets() -> None:
    wanted = Pipeline(15, groups={1: "bucket=actions=group:2", 2: "bucket=watch_group:3,actions=drop", 3: "x"})
    lines = commands(Pipeline(15), wanted).bundle
    assert [line.split(",")[0] for line in lines] == [f"group add group_id={number}" for number in (3, 2, 1)]
    loop = Pipeline(15, groups={1: "actions=group:2", 2: "actions=group:1"})
    assert len(commands(Pipeline(15), loop).bundle) == 2


def test_table_settings_are_set_from_their_default() -> None:
    before, after = Pipeline(15, tables={3: ("evict",), 5: ("evict",)}), Pipeline(15, tables={3: ("vacancy:1,2",)})
    assert commands(before, after).after == (
        ("mod-table", "3", "noevict"),
        ("mod-table", "3", "novacancy"),
        ("mod-table", "3", "vacancy:1,2"),
        ("mod-table", "5", "noevict"),
        ("mod-table", "5", "novacancy"),
    )
    assert pipeline_differences(before, after) == [
        "- table 3 ('evict',)", "+ table 3 ('vacancy:1,2',)", "- table 5 ('evict',)"
    ]  # fmt: skip


def test_timeouts_stand_still_until_they_are_started() -> None:
    flow = dumps.parse_flows(FLOWS)[Key(3, 3, "ipv6,ipv6_dst=fe80::/10")]
    old = Flow(Key(1, 1, ""), "mod_vlan_vid:5", hard=5, age=99, legacy=True)
    pipeline = Pipeline(15, flows={each.key: each for each in (flow, old, Flow(Key(0, 0, ""), "drop"))})
    kept = compare.kept(pipeline).flows[flow.key]
    assert (kept.idle, kept.hard, kept.timed, flow.timed) == (0, 0, False, True)
    assert compare.armed(pipeline) == Commands(
        bundle=(f"flow add {flow.text}".replace("hard_timeout=60", "hard_timeout=48"),),
        legacy=("cookie=0x0,table=1,priority=1,hard_timeout=1,actions=mod_vlan_vid:5",),
    )
    assert compare.same(flow, flow.armed())
    assert not compare.same(flow, flow.kept())


def test_the_cookies_of_what_is_learned() -> None:
    assert compare.learned_cookies("learn(table=5,cookie=0x99,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),resubmit(,5)") == {
        0x99
    }
    assert compare.learned_cookies("learn(table=5),learn(cookie=7,table=6)") == {0, 7}
    assert compare.learned_cookies("output:1") == set()


def test_a_device_that_is_down_is_no_setting_unless_it_is_a_vm() -> None:
    both = frozenset({"PORT_DOWN", "NO_FWD"})
    pipeline = Pipeline(15, ports={"1": both, "LOCAL": both, "3": frozenset({"PORT_DOWN"}), "60001": both})
    assert compare.with_ports(pipeline, {"1", "3", "LOCAL"}, {"1"}).ports == {
        "1": {"PORT_DOWN", "NO_FWD"},
        "LOCAL": {"NO_FWD"},
    }
