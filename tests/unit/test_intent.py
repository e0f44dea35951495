from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.overlay.intent import FLOOD_BYTES, FLOOD_BYTES_PER_VM, FLOOD_BYTES_PER_VTEP, Intent, load_intent

Load = Callable[[str], Intent]

VTEP = """
[vtep]
address = "172.31.0.1/24"
mac = "52:54:00:AA:00:01"
"""
VTEP6 = VTEP.replace("172.31.0.1/24", "fd00:1f::1/64")
GOOD = (
    VTEP
    + """
[[vm]]
name = "vm1"
ofport = 10
mac = "52:54:00:00:00:0A"
vni = 100
queues = 2

[[vm]]
name = "vm2"
ofport = 11
mac = "52:54:00:00:00:0b"
vni = 100

[[remote]]
vni = 100
mac = "52:54:00:00:00:0C"
vtep = "172.31.0.2"

[[remote]]
vni = 100
mac = "52:54:00:00:00:0d"
vtep = "10.9.0.5"

[[neighbour]]
address = "172.31.0.2"
mac = "52:54:00:BB:00:02"

[[neighbour]]
address = "172.31.0.254"
mac = "52:54:00:bb:00:fe"

[[route]]
destination = "10.9.0.0/16"
gateway = "172.31.0.254"
"""
)


def vm(name: str = "vm1", ofport: int = 10, mac: str = "52:54:00:00:00:0a", vni: int = 100, more: str = "") -> str:
    return f'[[vm]]\nname = "{name}"\nofport = {ofport}\nmac = "{mac}"\nvni = {vni}\n{more}\n'


def remote(mac: str = "52:54:00:00:00:0c", vtep: str = "172.31.0.2", vni: int = 100) -> str:
    return f'[[remote]]\nvni = {vni}\nmac = "{mac}"\nvtep = "{vtep}"\n'


def neighbour(address: str = "172.31.0.2", mac: str = "52:54:00:bb:00:02") -> str:
    return f'[[neighbour]]\naddress = "{address}"\nmac = "{mac}"\n'


def route(destination: str = "10.9.0.0/16", gateway: str = "172.31.0.254") -> str:
    return f'[[route]]\ndestination = "{destination}"\ngateway = "{gateway}"\n'


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def from_text(text: str) -> Intent:
        path = tmp_path / "overlay.toml"
        path.write_text(text)
        return load_intent(path)

    return from_text


def faults(load: Load, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return [line.partition("overlay.toml: ")[2] for line in caught.value.message.splitlines()]


def test_the_hint_names_the_command_that_prints_an_intent(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as faulty:
        load("")
    with pytest.raises(ConfigError) as missing:
        load_intent(tmp_path / "missing.toml")
    assert faulty.value.hint == "`ovs-hotswap overlay example`"
    assert missing.value.hint == "write one from `ovs-hotswap overlay example`"


def test_a_whole_intent_is_read_and_normalised(load: Load) -> None:
    intent = load(GOOD)
    assert (intent.vtep.address, intent.vtep.prefix, intent.vtep.network) == (
        "172.31.0.1", 24, IPv4Network("172.31.0.0/24"),
    )  # fmt: skip
    assert intent.vtep.mac == "52:54:00:aa:00:01"
    assert [(v.name, v.ofport, v.mac, v.vni, v.queues) for v in intent.vms] == [
        ("vm1", 10, "52:54:00:00:00:0a", 100, 2), ("vm2", 11, "52:54:00:00:00:0b", 100, 1),
    ]  # fmt: skip
    assert [(r.vni, r.mac, r.vtep) for r in intent.remotes] == [
        (100, "52:54:00:00:00:0c", "172.31.0.2"), (100, "52:54:00:00:00:0d", "10.9.0.5"),
    ]  # fmt: skip
    assert intent.neighbours[0].mac == "52:54:00:bb:00:02"
    assert (intent.routes[0].destination, intent.routes[0].gateway) == ("10.9.0.0/16", "172.31.0.254")


def test_the_largest_mtu_is_the_hosts(load: Load) -> None:
    """The peer link carries the frames of every VM: also of those that have no MTU of their own."""
    assert load(GOOD).mtu == 1500
    assert load(GOOD.replace("ofport = 11", "ofport = 11\nmtu = 1400")).mtu == 1500
    assert load(VTEP + vm(more="mtu = 1400") + vm("vm2", 11, "52:54:00:00:00:0b", more="mtu = 1300")).mtu == 1400
    jumbo = GOOD.replace("ofport = 11", "ofport = 11\nmtu = 8950").replace("[vtep]", "[vtep]\nmtu = 9000")
    assert load(jumbo).mtu == 8950


@pytest.mark.parametrize(
    ("mtu", "underlay", "fits"),
    [(1450, "", True), (1451, "", False), (1500, "", False), (1500, "mtu = 1550", True), (9000, "mtu = 9000", False),
     (8950, "mtu = 9000", True), (9000, "local_jumbo = true", True)],
)  # fmt: skip
def test_an_mtu_that_the_tunnels_do_not_carry(load: Load, mtu: int, underlay: str, fits: bool) -> None:
    """The fault is reported, and keeps no instance from starting."""
    text = GOOD.replace("ofport = 11", f"ofport = 11\nmtu = {mtu}").replace("[vtep]", f"[vtep]\n{underlay}")
    assert load(text).too_long == ({} if fits else {"vm2": mtu})


def test_a_vm_that_has_nobody_on_another_host_may_have_any_mtu(load: Load) -> None:
    intent = load(VTEP + vm(more="mtu = 9000"))
    assert intent.mtu == 9000
    assert intent.too_long == {}


def test_default_mtus_do_not_fit_each_other(load: Load) -> None:
    assert load(GOOD).oversized == ("vm1", "vm2")
    assert load(GOOD.replace("ofport = 11", "ofport = 11\nmtu = 1450")).oversized == ("vm1",)
    assert load(GOOD.replace("[vtep]", "[vtep]\nmtu = 1550")).oversized == ()
    assert load(VTEP + vm()).oversized == ()


def test_a_vtep_alone_is_enough(load: Load) -> None:
    assert load(VTEP).vms == ()


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ('[vtep]\naddress = "172.31.0.1"\nmac = "52:54:00:aa:00:01"', "vtep.address", "172.31.0.1/24"),
        ('[vtep]\naddress = "host/24"\nmac = "52:54:00:aa:00:01"', "vtep.address", "an IPv4 address with a prefix"),
        ('[vtep]\naddress = "172.31.0.0/24"\nmac = "52:54:00:aa:00:01"', "vtep.address", "network or broadcast"),
        ('[vtep]\naddress = "224.0.0.1/24"\nmac = "52:54:00:aa:00:01"', "vtep.address", "unicast IPv4 address"),
        (VTEP6.replace("::1/64", "::/64"), "vtep.address", "not the routers' anycast address of fd00:1f::/64"),
        (VTEP6.replace("fd00:1f::1", "ff02::1"), "vtep.address", "unicast IPv6 address"),
        (VTEP6.replace("fd00:1f::1", "::ffff:172.31.0.1"), "vtep.address", "unicast IPv6 address"),
        (VTEP6.replace("fd00:1f::1", "::"), "vtep.address", "unicast IPv6 address"),
        (VTEP6.replace("fd00:1f::1", "fe80::1"), "vtep.address", "must not be a link-local address"),
        (VTEP6.replace("fd00:1f::1", "fe80::1%eth0"), "vtep.address", "an IPv6 one, such as fd00::1/64"),
        (VTEP6 + "vlan = 4095", "vtep.vlan", "less than or equal to 4094"),
        (VTEP6 + "udp_port = 0", "vtep.udp_port", "greater than or equal to 1"),
        (VTEP6 + 'tunnel = "gre"', "vtep.tunnel", "'vxlan' or 'geneve'"),
        (VTEP6 + neighbour("fe80::1"), "neighbour[0].address", "must not be a link-local address"),
        (VTEP6 + neighbour("fd00:1f::2%pf0"), "neighbour[0].address", "an IPv6 address such as fd00::2"),
        (VTEP6 + neighbour("fd00:1f::2") + route("::1/128", "fd00:1f::2"), "route[0].destination", "network of hosts"),
        (VTEP6 + neighbour("fd00:1f::2") + route("fd00::1/64", "fd00:1f::2"), "route[0].destination", "no bit set"),
        ('[vtep]\naddress = "172.31.0.1/24"\nmac = "01:00:5e:00:00:01"', "vtep.mac", "unicast"),
        (VTEP + vm(name="vm\\u0000"), "vm[0].name", "may not have control characters in it, such as '\\x00'"),
        (VTEP + '[vm]\nname = "vm1"', "vm", "must be a row of tables, each with the heading [[vm]]"),
        (VTEP + neighbour() + route("127.0.0.0/8", "172.31.0.2"), "route[0].destination", "must be a network of hosts"),
        (VTEP + neighbour() + route("224.0.0.0/4", "172.31.0.2"), "route[0].destination", "must be a network of hosts"),
        (VTEP + vm(mac="52:54:00:00:00"), "vm[0].mac", "such as 52:54:00:00:00:01"),
        (VTEP + vm(mac="00:00:00:00:00:00"), "vm[0].mac", "not all zeros"),
        (VTEP + vm(name="0123456789abcdef"), "vm[0].name", "match"),
        (VTEP + vm(name=".vm"), "vm[0].name", "match"),
        (VTEP + vm(name="peer"), "vm[0].name", "not allowed: lo, ovs-netdev, ovs-system, peer, uplink, uplink2, vxlan"),
        (VTEP + vm(ofport=9), "vm[0].ofport", "greater than or equal to 10"),
        (VTEP + vm(ofport=4001), "vm[0].ofport", "less than or equal to 4000"),
        (VTEP + vm(vni=0), "vm[0].vni", "greater than or equal to 1"),
        (VTEP + vm(vni=1 << 24), "vm[0].vni", "less than or equal to 16777215"),
        (VTEP + vm(more="queues = 33"), "vm[0].queues", "less than or equal to 32"),
        (VTEP + vm(more="cpu = 1"), "vm[0].cpu", "allowed here: mac, mtu, name, ofport, queues, vni"),
        (VTEP + "[[vms]]\n", "vms", "allowed here: neighbour, remote, route, vm, vtep"),
        ('[vtep]\naddress = "172.31.0.1/24"\n', "vtep.mac", "missing"),
        (VTEP + remote(vtep="host-b"), "remote[0].vtep", "IPv4 address such as 172.31.0.2"),
        (VTEP + neighbour(address="172.31.0.2/24"), "neighbour[0].address", "IPv4 address"),
        (VTEP + route(destination="10.9.0.1/16"), "route[0].destination", "no bit set behind the prefix"),
        (VTEP + route(gateway="gw"), "route[0].gateway", "IPv4 address"),
        (VTEP + '[[route]]\ndestination = "10.9.0.0/16"\ngateway = []', "route[0].gateway", "at least one address"),
        (VTEP + 'link_addresses = ["192.0.2.1"]', "vtep.link_addresses[0]", "must have a prefix"),
    ],
)
def test_a_wrong_value_is_reported_with_its_key_and_what_is_allowed(
    load: Load, text: str, key: str, allowed: str
) -> None:
    found = faults(load, text)
    assert len(found) == 1
    assert found[0].startswith(f"{key}: ")
    assert allowed in found[0]


def of_ipv6(text: str) -> str:
    """The text of an intent with addresses of IPv6 in the place of those of IPv4."""
    text = text.replace("172.31.0.0/24", "fd00:1f::/64").replace("172.31.0.1/24", "fd00:1f::1/64")
    text = text.replace("172.31.", "fd00:1f::").replace("10.9.0.0/16", "fd00:9::/32").replace("10.9.0.5", "fd00:9::5")
    return text.replace("::0.", "::")


def test_an_intent_over_ipv6_is_read_and_normalised(load: Load) -> None:
    text = of_ipv6(GOOD).replace('"fd00:1f::2"', '"FD00:1F:0::2"')
    intent = load(text.replace("[vtep]", '[vtep]\nvlan = 100\ntunnel = "geneve"'))
    assert (intent.vtep.address, intent.vtep.prefix, intent.vtep.version) == ("fd00:1f::1", 64, 6)
    assert (intent.vtep.vlan, intent.vtep.port) == (100, 6081)
    assert [each.vtep for each in intent.remotes] == ["fd00:1f::2", "fd00:9::5"]
    assert [each.address for each in intent.neighbours] == ["fd00:1f::2", "fd00:1f::254"]
    assert [(each.destination, each.gateway) for each in intent.routes] == [("fd00:9::/32", "fd00:1f::254")]


@pytest.mark.parametrize(
    ("more", "port", "mtu", "options"),
    [
        ("", 4789, 1450, {}),
        ("vlan = 7", 4789, 1450, {}),
        ("udp_port = 8472", 8472, 1450, {"dst_port": "8472"}),
        ('tunnel = "geneve"\nmtu = 9000', 6081, 8950, {}),
    ],
)
def test_the_shape_of_the_tunnels(load: Load, more: str, port: int, mtu: int, options: dict[str, str]) -> None:
    for text, own, headers in ((VTEP, "172.31.0.1", 0), (VTEP6, "fd00:1f::1", 20)):
        vtep = load(text + more).vtep
        assert (vtep.port, vtep.tunnel_mtu) == (port, mtu - headers)
        assert vtep.options == {"key": "flow", "remote_ip": "flow", "local_ip": own, **options}


@pytest.mark.parametrize(
    ("text", "key", "parts"),
    [
        (VTEP + neighbour("fd00:1f::2"), "neighbour[0].address", ["fd00:1f::2 is of IPv6", "172.31.0.1 of IPv4"]),
        (VTEP6 + remote(), "remote[0].vtep", ["172.31.0.2 is of IPv4", "fd00:1f::1 of IPv6"]),
        (VTEP6 + neighbour("fd00:1f::2") + route("10.9.0.0/16", "fd00:1f::2"), "route[0].destination", ["10.9.0.0/16"]),
        (VTEP6 + neighbour("fd00:1f::2") + route("fd00:9::/32", "10.0.0.1"), "route[0].gateway", ["10.0.0.1 is"]),
        (VTEP6 + "mtu = 1279", "vtep.mtu", ["fd00:1f::1", "1280", "1279"]),
        (VTEP6 + vm(more="mtu = 1279"), "vm[0].mtu", ['"vm1"', "fd00:1f::1", "1280", "1279"]),
    ],
)
def test_both_versions_of_ip_and_what_ipv6_cannot_have_are_refused(
    load: Load, text: str, key: str, parts: list[str]
) -> None:
    (found,) = faults(load, text)
    assert found.startswith(f"{key}: ")
    assert all(part in found for part in parts)


NEAR = neighbour()
GATEWAY = neighbour("172.31.0.254", "52:54:00:bb:00:fe")


@pytest.mark.parametrize(
    ("text", "key", "parts"),
    [
        (vm() + vm(ofport=11, mac="52:54:00:00:00:0b"), "vm[1].name", ['"vm1"', "ofport 10", "ofport 11"]),
        (vm() + vm("vm2", mac="52:54:00:00:00:0b"), "vm[1].ofport", ['"vm1"', '"vm2"', "ofport 10"]),
        (vm() + vm("vm2", 11, "52:54:00:00:00:0A"), "vm[1].mac", ['"vm1"', '"vm2"', "52:54:00:00:00:0a", "VNI 100"]),
        (vm() + NEAR + remote("52:54:00:00:00:0A"), "remote[0].mac", ['"vm1"', "52:54:00:00:00:0a", "VNI 100"]),
        (
            NEAR + neighbour("172.31.0.3", "52:54:00:bb:00:03") + remote() + remote(vtep="172.31.0.3"),
            "remote[1].mac", ["52:54:00:00:00:0c", "172.31.0.2", "172.31.0.3"],
        ),
        (remote(vtep="172.31.0.1"), "remote[0].vtep", ["52:54:00:00:00:0c", "own VTEP 172.31.0.1"]),
        (neighbour("172.31.0.1"), "neighbour[0].address", ["own VTEP"]),
        (neighbour("172.31.1.2"), "neighbour[0].address", ["172.31.1.2", "172.31.0.0/24"]),
        (neighbour("172.31.0.255"), "neighbour[0].address", ["172.31.0.255", "broadcast", "172.31.0.0/24"]),
        (neighbour("172.31.0.0"), "neighbour[0].address", ["172.31.0.0", "broadcast", "172.31.0.0/24"]),
        (NEAR + route("172.31.0.1/32", "172.31.0.2"), "route[0].destination", ["own VTEP", "172.31.0.1"]),
        (neighbour(mac="52:54:00:aa:00:01"), "neighbour[0].mac", ["172.31.0.2", "52:54:00:aa:00:01"]),
        (
            NEAR + neighbour(mac="52:54:00:bb:00:03"),
            "neighbour[1].address", ["172.31.0.2", "52:54:00:bb:00:02", "52:54:00:bb:00:03"],
        ),
        (remote(), "remote[0].vtep", ["VTEP 172.31.0.2", "[[neighbour]]"]),
        (remote(vtep="10.9.0.5"), "remote[0].vtep", ["VTEP 10.9.0.5", "[[route]]"]),
        (GATEWAY + route("10.8.0.0/16") + remote(vtep="10.9.0.5"), "remote[0].vtep", ["VTEP 10.9.0.5", "[[route]]"]),
        (route(gateway="172.31.0.1"), "route[0].gateway", ["own VTEP"]),
        (route(gateway="172.31.1.254"), "route[0].gateway", ["172.31.1.254", "172.31.0.0/24"]),
        (route(), "route[0].gateway", ["172.31.0.254", "[[neighbour]]"]),
        (GATEWAY + route("172.31.0.0/24"), "route[0].destination", ["172.31.0.0/24", "on-link"]),
        (
            GATEWAY + NEAR + route() + route(gateway="172.31.0.2"),
            "route[1].destination", ["10.9.0.0/16", "172.31.0.254", "172.31.0.2"],
        ),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_together_are_both_named(load: Load, text: str, key: str, parts: list[str]) -> None:
    found = faults(load, VTEP + text)
    assert len(found) == 1
    assert found[0].startswith(f"{key}: ")
    assert all(part in found[0] for part in parts)


LOOPBACK = """[vtep]
address = "10.0.0.1/32"
mac = "52:54:00:aa:00:01"
link_addresses = ["192.0.2.1/31", "192.0.2.3/31"]
"""
NEXT_HOPS = '[[neighbour]]\naddress = "192.0.2.0"\n[[neighbour]]\naddress = "192.0.2.2"\n'


def through(*gateways: str) -> str:
    listed = ", ".join(f'"{each}"' for each in gateways)
    return f'[[route]]\ndestination = "10.0.0.0/24"\ngateway = [{listed}]\n'


def test_a_vtep_on_a_loopback_has_next_hops_on_its_links(load: Load) -> None:
    intent = load(LOOPBACK + NEXT_HOPS + through("192.0.2.0", "192.0.2.2") + remote(vtep="10.0.0.2"))
    assert intent.routes[0].gateways == ("192.0.2.0", "192.0.2.2")
    assert [each.mac for each in intent.neighbours] == [None, None]
    assert [str(intent.vtep.interface_to(each.address)) for each in intent.neighbours] == [
        "192.0.2.1/31", "192.0.2.3/31",
    ]  # fmt: skip
    assert intent.vtep.interface_to("10.0.0.2") is None


@pytest.mark.parametrize(
    ("text", "key", "parts"),
    [
        (NEXT_HOPS + remote(vtep="10.0.0.2"), "remote[0].vtep", ["192.0.2.0/31, 192.0.2.2/31", "[[route]]"]),
        (NEXT_HOPS + through("192.0.2.4"), "route[0].gateway", ["192.0.2.4", "192.0.2.0/31, 192.0.2.2/31"]),
        (NEXT_HOPS + through("192.0.2.0", "192.0.2.0"), "route[0].gateway", ["192.0.2.0", "twice"]),
        (NEXT_HOPS + through("192.0.2.0", "192.0.2.3"), "route[0].gateway", ["own address", "192.0.2.3/31"]),
        (through("192.0.2.0"), "route[0].gateway", ["192.0.2.0", "[[neighbour]]"]),
        (NEXT_HOPS + route("192.0.2.2/31", "192.0.2.0"), "route[0].destination", ["192.0.2.2/31", "on-link"]),
        (NEXT_HOPS + route("10.0.0.1/32", "192.0.2.0"), "route[0].destination", ["own VTEP"]),
        ('[[neighbour]]\naddress = "192.0.2.1"\n', "neighbour[0].address", ["own address", "192.0.2.1/31"]),
        (NEXT_HOPS + neighbour("192.0.2.0"), "neighbour[2].address", ["no MAC", "52:54:00:bb:00:02"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_next_hop_is_said(load: Load, text: str, key: str, parts: list[str]) -> None:
    found = faults(load, LOOPBACK + text)
    assert len(found) == 1
    assert found[0].startswith(f"{key}: ")
    assert all(part in found[0] for part in parts)


def test_an_address_of_a_link_is_not_the_vteps(load: Load) -> None:
    (found,) = faults(load, LOOPBACK.replace("192.0.2.3/31", "10.0.0.1/24"))
    assert found.startswith("vtep.link_addresses[1]: 10.0.0.1 is the VTEP's own")


@pytest.mark.parametrize(
    "text",
    [
        vm() + vm("vm2", 11, vni=200),
        vm() + NEAR + remote("52:54:00:00:00:0a", vni=200),
        NEAR + remote() + remote(vni=200),
        GATEWAY + route("0.0.0.0/0") + remote(vtep="10.9.0.5"),
        GATEWAY + route("172.31.0.2/32") + remote(),
    ],
    ids=["MAC in two VNIs", "local and remote", "remote in two VNIs", "default route", "host route before on-link"],
)
def test_what_only_looks_like_a_clash_is_accepted(load: Load, text: str) -> None:
    assert load(VTEP + text).vtep.address == "172.31.0.1"


def test_a_shorter_route_does_not_replace_the_neighbour_of_an_on_link_vtep(load: Load) -> None:
    assert "[[neighbour]]" in faults(load, VTEP + GATEWAY + route("0.0.0.0/0") + remote())[0]


def test_all_faults_of_values_are_listed_at_once(load: Load) -> None:
    found = faults(load, VTEP + vm(vni=0, mac="x") + vm(ofport=1) + remote(vtep="y"))
    assert [line.partition(":")[0] for line in found] == ["vm[0].mac", "vm[0].vni", "vm[1].ofport", "remote[0].vtep"]


def test_all_clashes_are_listed_at_once(load: Load) -> None:
    found = faults(load, VTEP + vm() + vm() + remote() + remote(vtep="10.9.0.5"))
    assert [line.partition(":")[0] for line in found] == [
        "vm[1].name", "vm[1].ofport", "vm[1].mac", "remote[1].mac", "remote[0].vtep", "remote[1].vtep",
    ]  # fmt: skip


def test_an_unreachable_vtep_is_reported_once(load: Load) -> None:
    assert len(faults(load, VTEP + remote() + remote("52:54:00:00:00:0d"))) == 1


@pytest.mark.parametrize("six", [False, True])
def test_a_broadcast_that_ovs_cannot_copy_to_all_is_a_fault(load: Load, six: bool) -> None:
    most = (FLOOD_BYTES - FLOOD_BYTES_PER_VM) // FLOOD_BYTES_PER_VTEP
    own, via, far = VTEP, GATEWAY + route("10.9.0.0/16") + vm(), "10.9."
    if six:
        most = (FLOOD_BYTES - FLOOD_BYTES_PER_VM) // (FLOOD_BYTES_PER_VTEP + 28)
        own, via, far = of_ipv6(VTEP) + "vlan = 100\n", of_ipv6(via), "fd00:9::"

    def remotes(count: int) -> str:
        return "".join(
            remote(f"52:54:01:00:{i >> 8:02x}:{i & 255:02x}", f"{far}{i >> 8}{':' if six else '.'}{i & 255}")
            for i in range(count)
        )

    assert len(load(own + via + remotes(most)).remotes) == most
    found = faults(load, own + via + remotes(most + 1))
    assert found == [line for line in found if "VNI 100" in line and f"{most + 1} remote VTEPs" in line]


def test_broken_toml_is_reported(load: Load) -> None:
    assert "not TOML" in faults(load, "[vtep\n")[0]


@pytest.mark.parametrize(
    ("text", "changes", "fault"),
    [
        (vm("br0"), {}, "vm[0].name: br0 is the name of the bridge"),
        (vm("broker"), {"broker": {"qemu_socket": "/run/ovs-hotswap/{vm}.sock"}},
         "vm[0].name: the path of a socket of VM broker is ovs-hotswap's own as well: /run/ovs-hotswap/broker.sock"),
        (vm("web.a") + vm("web", 11, "52:54:00:00:00:0b"),
         {"backend": "qemu-dual", "qemu": {"monitor": "/run/ovs-hotswap/vm/{vm}",
                                        "socket": "/run/ovs-hotswap/vm/{vm}.{side}"}},
         "vm[1].name: the path of a socket of VM web is VM web.a's as well: /run/ovs-hotswap/vm/web.a"),
        *((vm(name), {"broker": {"qemu_socket": f"/run/ovs-hotswap/{pattern}"}},
           f"vm[0].name: the path of a socket of VM {name} is ovs-hotswap's own as well: /run/ovs-hotswap/{own}")
          for name, pattern, own in (("a", "{vm}", "a"), ("active", "{vm}", "active"),
                                     ("broker", "{vm}.pid", "broker.pid"),
                                     ("order-a", "{vm}.json", "order-a.json"), ("vhost", "{vm}", "vhost"))),
        (vm("web") + vm("v" * 15, 11, "52:54:00:00:00:0b"), {"broker": {"qemu_socket": f"/{'x' * 95}/{{vm}}"}},
         f"vm[1].name: path of its socket is longer than 107 bytes: /{'x' * 95}/{'v' * 15}"),
    ],
)  # fmt: skip
def test_a_vm_that_does_not_fit_the_configuration(
    tmp_path: Path, text: str, changes: dict[str, object], fault: str
) -> None:
    instances = {side: {"pmd_cores": [0], "uplink_devargs": f"net_null_{side}"} for side in "ab"}
    path = tmp_path / "overlay.toml"
    config = Config.model_validate({"overlay": str(path), "instances": instances, **changes})
    path.write_text(VTEP + text)
    load_intent(path)
    with pytest.raises(ConfigError) as caught:
        load_intent(path, config)
    assert caught.value.message == f"{path}: {fault}"
