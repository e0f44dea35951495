"""Addresses of forwarding databases, learnt by the new side's bridges without a frame that leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.clone import fdb
from ovs_hotswap.clone.applied import undo
from ovs_hotswap.clone.bridges import BridgePort, Bridges, parse_bridges, read_bridges
from ovs_hotswap.clone.fdb import FdbEntry, destinations, message, parse_fdb
from ovs_hotswap.errors import SwitchError
from tests.unit.fake_switch import ROWS, FakeSwitch

ANSWERS = Path(__file__).parent / "answers" / "runtime"
VM1 = FdbEntry("br0", "vm1", 0, "52:54:00:00:00:01")
TAGGED = FdbEntry("br0", "vm1", 30, "52:54:00:00:00:02")
VM2 = FdbEntry("br0", "vm2", 5, "52:54:00:00:00:03")
HOST = FdbEntry("br0", "br0", 0, "52:54:00:00:00:04")
STATIC = FdbEntry("br0", "vm2", 5, "52:54:00:00:00:05", static=True)
ALL = (VM1, TAGGED, VM2, HOST, STATIC)


@pytest.fixture
def switch() -> Iterator[FakeSwitch]:
    with FakeSwitch() as made:
        yield made


@pytest.mark.parametrize("release", ["3.1", "3.5"])
def test_the_table_of_a_real_bridge_is_read(release: str) -> None:
    ports = (BridgePort("p1", (("p1", 1),)), BridgePort("p2", (("p2", 2),), 5), BridgePort("p3", (("p3", 3),)),
             BridgePort("bond0", (("x", 7), ("y", 4))), BridgePort("br0", (("br0", 65534),)))  # fmt: skip
    text = (ANSWERS / f"fdb-br0-{release}.txt").read_text()
    found = list(parse_fdb("br0", text, Bridges({"br0": ports})))
    assert len(found) == 7
    assert found[1] == FdbEntry("br0", "p1", 30, "02:00:00:00:01:02")
    assert found[1].age == 0
    assert found[3].port == "bond0"
    assert found[5].port == "br0"
    assert (found[6].static, found[6].age) == (True, None)
    assert list(parse_fdb("br0", text, Bridges({"br0": ports[:1]}))) == found[:2]


def test_addresses_are_learnt_and_nothing_is_flooded(switch: FakeSwitch) -> None:
    done = fdb.apply(switch.system, switch.paths, ALL, cut=False)
    assert set(fdb.read(switch.paths)) == set(ALL)
    assert switch.flooded == []
    assert (done.done, done.refused) == (("addresses in forwarding databases: 5",), ())
    assert fdb.differences(switch.paths, ALL) == ()
    again = fdb.apply(switch.system, switch.paths, ALL, cut=False)
    assert (again.done, again.undo, len(switch.system.bundles)) == ((), (), 1)


def test_the_network_is_told_where_each_address_of_a_bridge_with_an_uplink_is(switch: FakeSwitch) -> None:
    fdb.apply(switch.system, switch.paths, ALL, cut=False)
    before = dict(switch.fdb)
    fdb.announce(switch.system, switch.paths, [("br0", "vm2")])
    told = {frame[6:12].hex(":"): frame for frame in switch.flooded}
    assert told.keys() == {VM1.mac, TAGGED.mac, HOST.mac}
    assert all(frame.startswith(b"\xff" * 6) for frame in told.values())
    assert told[VM1.mac][12:14] == bytes.fromhex("8035")
    assert told[TAGGED.mac][12:18] == bytes.fromhex("8100001e8035")
    assert {key: port.split()[0] for key, port in switch.fdb.items()} == {
        key: port.split()[0] for key, port in before.items()
    }
    switch.flooded.clear()
    fdb.announce(switch.system, switch.paths, [("br1", "up")])
    assert switch.flooded == []


def test_without_its_destination_a_frame_would_be_flooded(switch: FakeSwitch) -> None:
    switch.system.run(["ovs-ofctl"], stdin=message(VM1, BridgePort("vm1", (("vm1", 1),)), VM1.mac))
    assert len(switch.flooded) == 1


def test_undo_leaves_the_table_as_it_was(switch: FakeSwitch) -> None:
    fdb.apply(switch.system, switch.paths, [VM1], cut=False)
    done = fdb.apply(switch.system, switch.paths, ALL, cut=False)
    assert undo(switch.paths.vswitchd_ctl, done.undo) == ()
    assert fdb.read(switch.paths) == (VM1,)
    assert undo(switch.paths.vswitchd_ctl, done.undo) == ()


def test_an_address_that_moved_is_followed_before_the_cut_only(switch: FakeSwitch) -> None:
    moved = FdbEntry("br0", "br0", 0, VM1.mac)
    fdb.apply(switch.system, switch.paths, [VM1], cut=False)
    fdb.apply(switch.system, switch.paths, [moved], cut=True)
    assert fdb.read(switch.paths) == (VM1,)
    assert fdb.differences(switch.paths, [moved]) == (
        "52:54:00:00:00:01 of VLAN 0 at br0 of br0: the new side has it at vm1",
    )
    fdb.apply(switch.system, switch.paths, [moved], cut=False)
    assert fdb.read(switch.paths) == (moved,)


@pytest.mark.parametrize(
    ("active", "new", "given"),
    [
        ("vm1", "up", True), ("vm1", "phy", True), ("phy", "up", True), ("up", "phy", False), ("up", "vm1", False),
        ("vm1", "vm2", False), ("vm1", "gone", False), ("phy", "phy", False),
    ],
)  # fmt: skip
def test_what_the_network_has_sent_back_is_not_newer(active: str, new: str, given: bool) -> None:
    """A broadcast of a VM leaves by the active side and comes in at the new side's uplink."""
    ports = [BridgePort(name, ((name, number),), outward=outward)
             for number, (name, outward) in enumerate([("vm1", 0), ("vm2", 0), ("phy", 1), ("up", 2)], 1)]  # fmt: skip
    entry = FdbEntry("br0", active, 0, VM1.mac)
    found = fdb.wanted([entry], [FdbEntry("br0", new, 0, VM1.mac)], cut=True, bridges=Bridges({"br0": tuple(ports)}))
    assert found == [entry] * given


def test_ports_to_the_network_and_to_other_bridges_are_known() -> None:
    types = dict(zip(("vm1", "vm2", "br0"), ("dpdkvhostuserclient", "patch", "dpdk"), strict=True))
    rows = {**ROWS, "Interface": [{**row, "type": types[row["name"]]} for row in ROWS["Interface"]]}
    assert {port.name: port.outward for port in parse_bridges(rows).ports["br0"]} == {"vm1": 0, "vm2": 1, "br0": 2}


def test_a_port_that_the_new_side_lacks_is_told(switch: FakeSwitch) -> None:
    gone = FdbEntry("br0", "vm3", 0, "52:54:00:00:00:09")
    done = fdb.apply(switch.system, switch.paths, [gone, VM1], cut=False)
    assert done.refused == (f"{gone}: the new side has no such port",)
    assert fdb.read(switch.paths) == (VM1,)
    assert fdb.differences(switch.paths, [gone, VM1]) == (f"{gone}: the new side does not know it",)


def test_without_a_destination_no_frame_is_sent(switch: FakeSwitch) -> None:
    switch.answers["fdb/add"] = lambda _: switch._refuse("could not add static mac entry")
    done = fdb.apply(switch.system, switch.paths, [VM1, STATIC], cut=False)
    assert switch.system.bundles == []
    assert done.done == ()
    assert [line.rpartition(": ")[2] for line in done.refused] == [
        "the new side did not learn it; does its port forward?",
        "the new side did not learn it; does its port forward?",
        "could not add static mac entry\n",
    ]


def test_destinations_are_removed_after_a_fault(switch: FakeSwitch) -> None:
    switch.system.fails = 1
    with pytest.raises(SwitchError):
        fdb.apply(switch.system, switch.paths, ALL, cut=False)
    assert switch.fdb == {}


def test_a_destination_is_an_address_that_nothing_has() -> None:
    first = destinations([VM1], [])["br0", "vm1", 0].mac
    taken = FdbEntry("br0", "vm2", 5, first)
    assert destinations([VM1], [taken])["br0", "vm1", 0].mac != first
    several = destinations([VM1, TAGGED, VM2], [])
    assert len({destination.mac for destination in several.values()}) == len(several) == 3


@pytest.mark.parametrize(
    ("mode", "tag", "vlan", "carried"),
    [
        (None, None, 0, None),
        (None, None, 7, 7),
        ("trunk", None, 7, 7),
        ("trunk", 5, 5, 5),
        (None, 5, 5, None),
        ("access", 5, 5, None),
        ("native-tagged", 5, 5, None),
        ("native-untagged", 5, 7, 7),
        ("dot1q-tunnel", 5, 5, None),
    ],
)
def test_frames_have_the_tag_that_their_port_takes(
    mode: str | None, tag: int | None, vlan: int, carried: int | None
) -> None:
    assert BridgePort("p", (("p", 1),), tag, mode).carries(vlan) == carried


def test_bridges_are_read_from_the_database(switch: FakeSwitch) -> None:
    found = read_bridges(switch.paths.db_socket)
    assert list(found.ports) == ["br0"]
    assert found.port("br0", "vm2") == BridgePort("vm2", (("vm2", 2),), 5)
    assert found.port_of("br0", 65534) == BridgePort("br0", (("br0", 65534),))
    assert found.port_of("br9", 1) is None
    assert found.timed_zones == {7}


def test_an_interface_that_the_switch_could_not_open_has_no_number() -> None:
    interfaces = [{**row, "ofport": -1} for row in ROWS["Interface"]]
    assert parse_bridges({**ROWS, "Interface": interfaces}).port("br0", "vm1") == BridgePort("vm1", ())


def test_a_database_that_is_another_one_is_named(switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "Port", [{}])
    with pytest.raises(SwitchError, match="not a database of Open vSwitch"):
        read_bridges(switch.paths.db_socket)
