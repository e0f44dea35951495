"""A stock host as Neutron's Open vSwitch agent leaves it, without the agent.

The flows in ``neutron/`` are those that the agent of Neutron 21 (Debian 12) wrote for two guests in a VLAN, with the
firewall driver ``openvswitch`` and a security group that lets in ICMP and TCP to port 5000 (``stock_neutron`` is that
host). In the place of the agent is ``openflow_controller``, which asks what the agent asks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support import openflow_controller
from tests.support.stock_network import VTEP

if TYPE_CHECKING:
    from tests.support.stock_host import StockHost

BRIDGES = ("br-ex", "br-int", "br-tun")
UPLINK_BRIDGE = "br-ex"
VLAN, TAG = 5, 1  # outside, and of the guests' ports on br-int
_CONTROLLER, _MANAGER = "tcp:127.0.0.1:6633", "ptcp:6640:127.0.0.1"
_FLOWS = Path(__file__).with_name("neutron")
_ANSWERS = "agent.txt"
_READY_S = 15.0


def program(host: StockHost) -> None:
    """Make the bridges as the agent makes them, with their flows; return when the controller knows all of them."""
    argv = host.space.entering([sys.executable, "-P", openflow_controller.__file__])
    System().spawn(argv, log=host.directory / _ANSWERS)  # it ends with the host
    make_uplink_bridge(host)
    for bridge in BRIDGES:
        host.vsctl("--may-exist", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev",
                   "fail_mode=secure", "protocols=OpenFlow10,OpenFlow13,OpenFlow14",
                   "other_config:mac-table-size=50000")  # fmt: skip
    for one, other in (("br-int int-br-ex", "br-ex phy-br-ex"), ("br-int patch-tun", "br-tun patch-int")):
        for (bridge, port), (_, peer) in ((one.split(), other.split()), (other.split(), one.split())):
            host.vsctl("add-port", bridge, port, "--", "set", "interface", port, "type=patch", f"options:peer={peer}")
    for guest in host.running:
        host.add_port(guest, f"external_ids:iface-id={guest.name}", "external_ids:iface-status=active",
                      "--", "set", "port", guest.name, f"tag={TAG}", f"other_config:tag={TAG}",
                      "other_config:net_uuid=net0")  # fmt: skip
    for bridge in BRIDGES:
        host.vsctl("set-controller", bridge, _CONTROLLER, "--", "set", "controller", bridge,
                   "connection_mode=out-of-band", "inactivity_probe=10000")  # fmt: skip
    host.vsctl("set-manager", _MANAGER)
    # A bridge loses its flows when it gets its first controller.
    assert wait_until(lambda: set(asked(host)) == {identity(host, bridge) for bridge in BRIDGES}, _READY_S, System())
    for bridge in BRIDGES:
        host.run(["ovs-ofctl", "-O", "OpenFlow14", "replace-flows", bridge, str(_FLOWS / f"{bridge}.flows")])


def make_uplink_bridge(host: StockHost) -> None:
    """Make what an operator makes before the agent starts: the bridge of the physical network, with the VTEP."""
    host.vsctl("add-br", UPLINK_BRIDGE, "--", "set", "bridge", UPLINK_BRIDGE, "datapath_type=netdev",
               "other_config:hwaddr=52:54:00:1f:00:01")  # fmt: skip
    host.add_uplink(UPLINK_BRIDGE)
    host.run(["ip", "link", "set", UPLINK_BRIDGE, "up"])
    host.run(["ip", "address", "add", f"{VTEP}/24", "dev", UPLINK_BRIDGE])


def identity(host: StockHost, bridge: str) -> str:
    return host.vsctl("get", "bridge", bridge, "datapath_id").strip('"')


def asked(host: StockHost) -> dict[str, list[int]]:
    """What the controller was answered so far: by datapath id, the numbers of flows in table 23."""
    found: dict[str, list[int]] = {}
    for line in (host.directory / _ANSWERS).read_text().splitlines(keepends=True):
        datapath_id, _, count = line.partition(" ")
        if count.endswith("\n"):
            found.setdefault(datapath_id, []).append(int(count))
    return found
