"""What ``check`` says of the ports of the switch that the host itself uses."""

from __future__ import annotations

from ovs_hotswap.controllers.devices import Link, Settings, bound
from ovs_hotswap.controllers.exchange import names_of
from ovs_hotswap.controllers.host_network import findings
from ovs_hotswap.controllers.netlink_records import RTA_NH_ID, Entry, Kind
from ovs_hotswap.model import Severity

PLAIN = Link(7, "br-ex", Settings(1, "02:00:00:00:00:01", 1500, 1000, "", 0), tap=True, queueing="fq_codel")


def link(**changes: object) -> Link:
    return Link(**{name: getattr(PLAIN, name) for name in PLAIN.__slots__} | changes)


def test_a_plain_tap_is_bound_to_nothing() -> None:
    assert bound(PLAIN, []) == []
    assert bound(link(queueing="noop"), [Entry(Kind.ROUTE, (2,), ((4, bytes(4)),))]) == []


def test_what_hangs_on_the_device_itself_is_named() -> None:
    route = Entry(Kind.ROUTE, (2,), ((RTA_NH_ID, b"\1\0\0\0"),))
    made = link(on_it=("br-ex.5",), part_of="vrf1", queueing="tbf", other_names=("uplink0",))
    for found, word in zip(bound(made, [route]), ("br-ex.5", "vrf1", "tbf", "uplink0", "nexthop objects"), strict=True):
        assert word in found


def test_only_a_tap_that_cannot_pass_is_a_finding() -> None:
    (found,) = findings({"br-ex": [], "br-int": ["x is made on top of it"], "ovs-netdev": ["it has the qdisc x"]})
    assert (found.item, found.severity) == ("port br-int", Severity.WARNING)
    assert "x is made on top of it" in found.text
    assert found.hint


def test_ports_are_told_apart_by_their_types() -> None:
    rows = [{"name": "md0", "type": ""}, {"name": "br-ex", "type": "internal"}, {"name": "vm1", "type": "dpdk"},
            {"name": "eth1", "type": "system"}]  # fmt: skip
    assert names_of(rows, ("internal",)) == ["br-ex"]
    assert names_of(rows, ("", "system")) == ["eth1", "md0"]
