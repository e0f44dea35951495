"""Neutron on a stock host: RabbitMQ, the server and the Open vSwitch agent of Debian, all on the host's loopback.

The guests have ports of a network that is VLAN ``VLAN`` of the physical network behind ``br-ex``, with the firewall
driver ``openvswitch`` and a security group that lets in ICMP and TCP to port 5000. Tunnels are on, without a peer.

The packages need not be installed, and their services do not start: ``tools/neutron.sh`` unpacks them into a directory,
which ``OVS_HOTSWAP_NEUTRON`` names, and the host sees them in ``/usr``. Its database is one of SQLite, which Neutron's
migrations do not know, so its tables are made from the models as Neutron's own tests do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.stock_network import VTEP
from tests.support.stock_neutron_tables import UPLINK_BRIDGE, VLAN, make_uplink_bridge

if TYPE_CHECKING:
    from tests.support.stock_guest import StockGuest
    from tests.support.stock_host import StockHost

PACKAGES = os.environ.get("OVS_HOTSWAP_NEUTRON")
RESTARTED = "OVS is restarted"
"""What the agent logs when table 23 of br-int is empty (ovs_neutron_agent.py, check_ovs_status)."""
_PYTHON = "/usr/bin/python3"
_URL = "http://127.0.0.1:9696/v2.0/"
_CHASSIS, _PHYSNET, _PROJECT = "stock-1", "physnet1", "tests"
_NETWORK, _SUBNET, _GROUP = "network", "subnet", "guests"
_READY_S = 90.0
_QUIET = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"  # the tests share the machine's cores

_TABLES = """
import sys, sqlalchemy
from neutron.db.migration.models import head
head.get_metadata().create_all(sqlalchemy.create_engine(sys.argv[1]))
"""
_CALL = """
import sys, urllib.request
method, url, body = sys.argv[1:]
call = urllib.request.Request(url, body.encode() or None, {"Content-Type": "application/json"}, method=method)
print(urllib.request.urlopen(call, timeout=30).read().decode())
"""
_LISTENS = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 1)"
_NEUTRON_CONF = """\
[DEFAULT]
core_plugin = ml2
service_plugins =
auth_strategy = noauth
transport_url = rabbit://guest:guest@127.0.0.1:5672/
bind_host = 127.0.0.1
api_workers = 0
rpc_workers = 0
rpc_state_report_workers = 0
state_path = {directory}
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
dhcp_agent_notification = false
host = {chassis}
api_paste_config = /usr/share/neutron-common/api-paste.ini
[database]
connection = sqlite:///{directory}/neutron.db
[oslo_concurrency]
lock_path = {directory}/lock
[agent]
root_helper = env
"""
_ML2_CONF = """\
[ml2]
type_drivers = vlan,vxlan
tenant_network_types = vxlan
mechanism_drivers = openvswitch
extension_drivers = port_security
[ml2_type_vlan]
network_vlan_ranges = {physnet}:1:100
[ml2_type_vxlan]
vni_ranges = 1:1000
"""
_AGENT_CONF = """\
[ovs]
local_ip = {vtep}
bridge_mappings = {physnet}:{bridge}
datapath_type = netdev
vhostuser_socket_dir = {sockets}
[agent]
tunnel_types = vxlan
[securitygroup]
firewall_driver = openvswitch
"""


class Neutron:
    """What an operator of Neutron does on a host that is up, and what its programs say."""

    def __init__(self, host: StockHost) -> None:
        self._host = host
        self.directory = host.directory / "neutron"

    def log(self, program: str) -> str:
        """The log of ``rabbitmq``, ``server`` or ``agent``."""
        return (self.directory / f"{program}.log").read_text()

    def call(self, method: str, path: str, **body: Any) -> Any:
        """A request to the server's API without authentication. Raises CommandError."""
        words = [method, f"{_URL}{path}", json.dumps(body) if body else ""]
        return json.loads(self._host.run([sys.executable, "-c", _CALL, *words], timeout=60))

    def make(self, kind: str, **values: Any) -> Any:
        """Make a network, a port and so on; return it."""
        made = self.call("POST", f"{kind.replace('_', '-')}s", **{kind: {"project_id": _PROJECT, **values}})
        return made[kind]

    def find(self, kind: str, name: str) -> str:
        """The identity of what was made with this name."""
        found = self.call("GET", f"{kind.replace('_', '-')}s?name={name}")
        return str(found[f"{kind}s"][0]["id"])

    def add_port(self, guest: StockGuest) -> None:
        """Make a guest's port and plug it as os-vif does; return when the agent has wired it, which takes up to 30 s
        after the agent's connection to the switch's database has ended."""
        port = self.make(
            "port", name=guest.name, network_id=self.find("network", _NETWORK), mac_address=guest.mac,
            fixed_ips=[{"subnet_id": self.find("subnet", _SUBNET), "ip_address": guest.address}],
            security_groups=[self.find("security_group", _GROUP)],
            device_id=guest.name, device_owner="compute:nova", **{"binding:host_id": _CHASSIS},
        )  # fmt: skip
        assert port["binding:vif_type"] == "vhostuser", port
        self._host.add_port(guest, f"external_ids:iface-id={port['id']}", f'external_ids:attached-mac="{guest.mac}"',
                            "external_ids:iface-status=active", f"external_ids:vm-uuid={port['id']}")  # fmt: skip

        def wired() -> bool:
            return bool(self.call("GET", f"ports/{port['id']}")["port"]["status"] == "ACTIVE")

        assert wait_until(wired, _READY_S, System(), poll_s=0.5), self.log("agent")

    # The programs.

    def spawn(self, program: str, *argv: str) -> None:
        System().spawn(self._host.space.entering(argv), log=self.directory / f"{program}.log")

    def configuration(self, name: str, text: str) -> str:
        """Write a file of the configuration; return the option that names it."""
        file = self.directory / f"{name}.conf"
        values = {"directory": self.directory, "chassis": _CHASSIS, "physnet": _PHYSNET, "vtep": VTEP,
                  "bridge": UPLINK_BRIDGE, "sockets": self._host.vhost_dir}  # fmt: skip
        file.write_text(text.format(**values))
        return f"--config-file={file}"

    def start_rabbitmq(self) -> None:
        """Without the package's script, which wants its user."""
        place = self.directory / "rabbitmq"
        place.mkdir()
        (place / "plugins").write_text("[].\n")
        environment = {
            "HOME": place, "RABBITMQ_NODENAME": "rabbit@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": place, "RABBITMQ_LOG_BASE": place, "RABBITMQ_PID_FILE": place / "pid",
            "RABBITMQ_GENERATED_CONFIG_DIR": place, "RABBITMQ_ENABLED_PLUGINS_FILE": place / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _QUIET, "ERL_EPMD_ADDRESS": "127.0.0.1",
        }  # fmt: skip
        words = [f"{name}={value}" for name, value in environment.items()]
        self.spawn("rabbitmq", "env", *words, "/usr/lib/rabbitmq/bin/rabbitmq-server")
        self._await_port("rabbitmq", 5672)

    def start_server(self) -> None:
        common, own = self.configuration("neutron", _NEUTRON_CONF), self.configuration("ml2", _ML2_CONF)
        self._host.run([_PYTHON, "-c", _TABLES, f"sqlite:///{self.directory}/neutron.db"], timeout=120)
        self.spawn("server", _PYTHON, "/usr/bin/neutron-server", common, own)
        self._await_port("server", 9696)

    def start_agent(self) -> None:
        common, own = self.configuration("neutron", _NEUTRON_CONF), self.configuration("agent", _AGENT_CONF)
        self.spawn("agent", _PYTHON, "/usr/bin/neutron-openvswitch-agent", common, own)

        def alive() -> bool:
            return any(agent["alive"] for agent in self.call("GET", "agents")["agents"])

        assert wait_until(alive, _READY_S, System(), poll_s=0.5), self.log("agent")

    def _await_port(self, program: str, port: int) -> None:
        def listens() -> bool:
            return self._host.completed([sys.executable, "-c", _LISTENS, str(port)]).status == 0

        assert wait_until(listens, _READY_S, System(), poll_s=0.3), self.log(program)


def install(host: StockHost) -> None:
    """Have the host see the packages in ``/usr``, as if they were installed."""
    assert PACKAGES is not None, "OVS_HOTSWAP_NEUTRON must name what tools/neutron.sh has made"
    usr = Path(PACKAGES) / "usr"
    host.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={usr}:/usr", "/usr"])


def program(host: StockHost) -> None:
    """Start Neutron, make the network, and plug the guests' ports; return when the agent has wired them."""
    neutron = Neutron(host)
    neutron.directory.mkdir()
    neutron.start_rabbitmq()
    neutron.start_server()
    make_uplink_bridge(host)
    neutron.start_agent()
    network = neutron.make("network", name=_NETWORK, **{
        "provider:network_type": "vlan", "provider:physical_network": _PHYSNET, "provider:segmentation_id": VLAN,
    })  # fmt: skip
    neutron.make("subnet", name=_SUBNET, network_id=network["id"], cidr="10.100.0.0/16", ip_version=4,
                 enable_dhcp=False)  # fmt: skip
    group = neutron.make("security_group", name=_GROUP)
    for allowed in ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 5000, "port_range_max": 5000}):
        neutron.make("security_group_rule", security_group_id=group["id"], direction="ingress", ethertype="IPv4",
                     **allowed)  # fmt: skip
    for guest in host.running:
        neutron.add_port(guest)
