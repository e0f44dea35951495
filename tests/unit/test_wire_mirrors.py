"""The flows of wire mode by mirrors: whatever the pipeline, the owners and the moment of the cut, each frame is
processed by one pipeline and delivered once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.model import Side
from ovs_hotswap.wire.mirror_flows import (
    AGAIN,
    CARRY,
    FAR_PORTS,
    HIGHEST,
    LINK_PORT,
    MAX_TAG,
    NEAR_PORTS,
    RECEIVED_TAGS,
    WIRE,
    Carried,
    Flow,
    Mode,
    carry_flows,
    group_lines,
    guard_flows,
    order,
    parse_flows,
    replacing,
    wire_flows,
)
from tests.unit.wire_simulator import Frame, Rule, Switch

VMS = (5, 6, 900)
UPLINK = 100
PORTS = (*VMS, UPLINK)
# The uplink has another number on each switch.
CARRIED = {
    side: [
        Carried("br0", f"port{port}", tag, (port if port != UPLINK else number,), port == UPLINK)
        for tag, port in enumerate(PORTS, 1)
    ]
    for side, number in ((Side.A, UPLINK), (Side.B, UPLINK + 1))
}


class Pair:
    """Two switches with the same pipeline. ``targets``: where it outputs what came by each port, by its number on a."""

    def __init__(self, targets: dict[int, list[int]]) -> None:
        self.switches = {}
        self.modes = {side: Mode.OWN for side in Side}
        for side, carried in CARRIED.items():
            names = {port.tag: port.ofports[0] for port in carried}
            known = dict(zip(PORTS, names.values(), strict=True))
            table = {known[port]: [known[each] for each in found] for port, found in targets.items()}
            self.switches[side] = Switch(
                lambda port, _frame, table=table: table[port],  # type: ignore[misc]
                {port.ofports[0]: (port.near, port.far) for port in carried},
                frozenset(port.ofports[0] for port in carried if not port.uplink),
            )
            self.set(side, Mode.OWN)

    def set(self, side: Side, mode: Mode) -> None:
        carried = CARRIED[side]
        self.modes[side] = mode
        flows = [*carry_flows(carried), *wire_flows(carried, mode)]
        self.switches[side].rules = [Rule.of(flow.line) for flow in flows]

    def run(self, changes: list[tuple[Side, Mode]] | None = None) -> None:
        """Carry what is on the link, with a change of a mode before each frame, as long as there are some."""
        waiting = list(changes or [])
        while any(switch.link for switch in self.switches.values()):
            for side, switch in self.switches.items():
                if switch.link:
                    if waiting:
                        self.set(*waiting.pop(0))
                    self.switches[side.other].from_link(switch.link.popleft())

    def delivered(self, owners: dict[int, Side]) -> list[int]:
        """The ports to which frames were delivered: VMs' ports only where their rings are, any uplink."""
        found = []
        for side, switch in self.switches.items():
            for _, port in switch.sent:
                if port in VMS:
                    found += [port] if owners[port] is side else []
                else:
                    found.append(UPLINK)
        return sorted(found)

    @property
    def processed(self) -> list[tuple[Side, int]]:
        return [(side, port) for side, switch in self.switches.items() for _, port in switch.processed]


targets_of = st.fixed_dictionaries(
    {port: st.lists(st.sampled_from([each for each in PORTS if each != port]), unique=True) for port in PORTS}
)
owners_of = st.fixed_dictionaries({port: st.sampled_from(list(Side)) for port in VMS})
wired_modes = st.sampled_from([mode for mode in Mode if mode.wired])
frames = st.builds(Frame, number=st.just(1), multicast=st.booleans(), own_tag=st.booleans())


@given(targets_of, owners_of, st.sampled_from(VMS), frames, wired_modes)
def test_in_wire_mode_the_old_pipeline_has_each_frame_and_each_target_gets_one(
    targets: dict[int, list[int]], owners: dict[int, Side], sender: int, frame: Frame, mode: Mode
) -> None:
    pair = Pair(targets)
    pair.set(Side.B, mode)
    pair.switches[owners[sender]].receive(sender, frame)
    pair.run()
    assert pair.processed == [(Side.A, sender)]
    assert pair.delivered(owners) == sorted(targets[sender])
    assert not any(switch.misread for switch in pair.switches.values())


@given(
    targets_of, owners_of, st.sampled_from(VMS), frames, wired_modes, st.booleans(),
    st.lists(st.booleans(), min_size=1, max_size=4),
)  # fmt: skip
def test_a_cut_or_the_way_back_at_any_moment_neither_loses_nor_doubles_a_frame(
    targets: dict[int, list[int]], owners: dict[int, Side], sender: int, frame: Frame, mode: Mode, wired: bool,
    changes: list[bool],
) -> None:  # fmt: skip
    pair = Pair(targets)
    pair.set(Side.B, mode if wired else Mode.OWN)
    pair.switches[owners[sender]].receive(sender, frame)
    pair.run([(Side.B, mode if each else Mode.OWN) for each in changes])
    assert len(pair.processed) == 1
    assert pair.delivered(owners) == sorted(targets[sender])


@given(targets_of, owners_of, st.booleans(), wired_modes, st.booleans())
def test_what_a_wired_uplink_receives_goes_through_the_other_pipeline(
    targets: dict[int, list[int]], owners: dict[int, Side], multicast: bool, mode: Mode, own_tag: bool
) -> None:
    pair = Pair(targets)
    pair.set(Side.B, mode)
    pair.switches[Side.B].receive(UPLINK + 1, Frame(1, multicast, own_tag))
    pair.run()
    passes = mode is Mode.ALONE or (mode is Mode.UPLINKS and not multicast)
    assert pair.processed == ([(Side.A, UPLINK)] if passes else [])
    assert pair.delivered(owners) == (sorted(targets[UPLINK]) if passes else [])
    assert not any(switch.misread for switch in pair.switches.values())


@given(targets_of, owners_of, st.booleans())
def test_what_the_old_uplink_receives_reaches_every_vm_once(
    targets: dict[int, list[int]], owners: dict[int, Side], multicast: bool
) -> None:
    pair = Pair(targets)
    pair.set(Side.B, Mode.HELD)
    pair.switches[Side.A].receive(UPLINK, Frame(1, multicast))
    pair.run()
    assert pair.processed == [(Side.A, UPLINK)]
    assert pair.delivered(owners) == sorted(targets[UPLINK])


@given(targets_of, st.sampled_from(VMS), st.sampled_from([0, 7]), st.sampled_from(list(Mode)))
def test_what_a_pipeline_floods_to_a_far_port_or_the_link_goes_nowhere(
    targets: dict[int, list[int]], vm: int, mark: int, mode: Mode
) -> None:
    """NORMAL does so for a moment after the ports were made."""
    pair = Pair(targets)
    pair.set(Side.B, mode)
    switch = pair.switches[Side.B]
    near, _ = switch.patches[vm]
    switch.receive(near, Frame(1, mark=mark))  # what is output to a patch port enters by its peer
    pair.switches[Side.A].from_link(Frame(1))
    assert (pair.processed, pair.delivered(dict.fromkeys(VMS, Side.B))) == ([], [])


def test_two_wired_switches_would_send_frames_round_and_round() -> None:
    """That is why ``MirrorWire.wire`` refuses it."""
    pair = Pair({port: [] for port in PORTS})
    for side in Side:
        pair.set(side, Mode.HELD)
    pair.switches[Side.A].receive(VMS[0], Frame(1))
    for _ in range(10):
        for side, switch in pair.switches.items():
            if switch.link:
                pair.switches[side.other].from_link(switch.link.popleft())
    assert any(switch.link for switch in pair.switches.values())
    assert pair.processed == []


def test_a_bond_is_wired_by_each_of_its_interfaces_and_enters_by_the_first() -> None:
    bond = Carried("br0", "bond0", 7, (3, 4), uplink=True)
    assert {flow.match for flow in wire_flows([bond], Mode.ALONE)} >= {"in_port=3", "in_port=4"}
    assert any("set_field:3->in_port,resubmit(,0)" in flow.actions for flow in carry_flows([bond]))


def test_a_bridge_with_an_uplink_is_cut_before_the_bridges_of_its_vms_and_wired_after_them() -> None:
    ports = [
        Carried("br-int", "vm1", 1, (1,)),
        Carried("br-ex", "up", 2, (1,), uplink=True),
        Carried("br1", "v", 3, (1,)),
    ]
    assert order(ports, Mode.OWN) == [{"br-ex"}, {"br-int", "br1"}]
    for mode in set(Mode) - {Mode.OWN}:
        assert order(ports, mode) == [{"br-int", "br1"}, {"br-ex"}]


def test_both_meanings_of_the_largest_tag_are_vlan_ids_and_our_ports_have_numbers_of_their_own() -> None:
    assert RECEIVED_TAGS + MAX_TAG < 4095
    assert MAX_TAG < RECEIVED_TAGS
    assert NEAR_PORTS + MAX_TAG < FAR_PORTS
    assert FAR_PORTS + MAX_TAG < LINK_PORT < 65_280


def test_ports_are_guarded_before_they_are_made_by_flows_that_stay() -> None:
    port = Carried("br0", "vm1", 1, (10,))
    assert {flow.actions for flow in guard_flows([1])} == {"drop"}
    assert set(guard_flows([1])) <= set(carry_flows([port]))
    assert carry_flows([]) == []


def test_a_bundle_replaces_the_flows_of_one_cookie() -> None:
    flow = Flow(WIRE, HIGHEST, "in_port=1", "output:2")
    assert replacing(WIRE, [flow]) == [
        f"flow delete cookie={WIRE:#x}/-1",
        f"flow add cookie={WIRE:#x},table=0,priority=65535,in_port=1 actions=output:2",
    ]
    assert [line.split()[1] for line in group_lines(wanted=True)] == ["delete", "add"]
    assert [line.split()[1] for line in group_lines(wanted=False)] == ["delete"]


# As `ovs-ofctl -O OpenFlow14 dump-flows --no-stats --no-names` of 3.1.0 prints it.
_ENTERS = "set_field:0->pkt_mark,set_field:10->in_port,resubmit(,0)"
_AGAIN = f"pop_vlan,set_field:0x6f767333->pkt_mark,set_field:{FAR_PORTS + 1:#x}->reg0,group:{AGAIN}"
DUMP = f"""OFPST_FLOW reply (OF1.4) (xid=0x2):
 cookie={CARRY:#x}, priority=65535,pkt_mark=0x6f767331,in_port=60001 actions=output:10
 cookie={CARRY:#x}, priority=65535,pkt_mark=0x6f767333,in_port=60001 actions={_ENTERS}
 cookie={WIRE:#x}, priority=65535,in_port=10 actions=set_field:0x6f767332->pkt_mark,output:60001
 cookie={CARRY:#x}, priority=65533,in_port=64200 actions=drop
 cookie={CARRY:#x}, priority=65535,in_port=64200,dl_vlan=2049,dl_type=0x8100 actions={_AGAIN}
 cookie=0x5, priority=65534,in_port=1 actions=NORMAL
""".splitlines()


def test_our_flows_are_read_back_as_they_were_written() -> None:
    vm = Carried("br0", "vm1", 1, (10,))
    found = list(parse_flows(DUMP))
    assert len(found) == 5
    assert set(found) <= {*carry_flows([vm]), *wire_flows([vm], Mode.HELD)}
