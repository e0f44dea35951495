"""OVN on a stock host: its central part beside the host, and its controller on it, with stateful ACLs.

One logical switch has the guests' ports, a localnet port that leads to the outside host, and a port on a second chassis
that exists only in the southbound database, so that there is a tunnel port as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.stock_network import REMOTE_VTEP, VTEP

if TYPE_CHECKING:
    from tests.support.stock_guest import StockGuest
    from tests.support.stock_host import StockHost

CENTRAL = "central"  # the network namespace, and the directory below that of the host
HOST_ADDRESS, CENTRAL_ADDRESS = "172.30.0.1", "172.30.0.2"
SOUTH_PORT = 6642
SWITCH, GROUP = "ls0", "guests"
UPLINK_BRIDGE = "br-ex"
_READY_S = 30.0
# As ``ovn-ctl start_controller`` does it (utilities/ovn-ctl).
START_CONTROLLER = (
    "ovn-controller", "unix:/var/run/openvswitch/db.sock", "-vconsole:emer", "-vsyslog:err", "-vfile:info",
    "--no-chdir", "--log-file=/run/ovn/ovn-controller.log", "--pidfile=/run/ovn/ovn-controller.pid", "--detach",
)  # fmt: skip

# Direction, priority, match and action. What is not allowed is dropped and logged.
ACLS = (
    ("from-lport", 1000, f"inport == @{GROUP} && ip4 && icmp4", "allow-related"),
    ("from-lport", 900, f"inport == @{GROUP} && ip4", "drop"),
    ("to-lport", 1000, f"outport == @{GROUP} && ip4 && icmp4", "allow-related"),
    ("to-lport", 1000, f"outport == @{GROUP} && ip4 && tcp.dst == 5000", "allow-related"),
    ("to-lport", 900, f"outport == @{GROUP} && ip4", "drop"),
)


class Ovn:
    """The commands of an operator of OVN, for a host that is up."""

    def __init__(self, host: StockHost) -> None:
        self._host = host
        self.directory = host.directory / CENTRAL

    def nbctl(self, *words: str) -> str:
        return self._host.run(["ovn-nbctl", "--timeout=20", f"--db=unix:{self.directory}/nb.sock", *words])

    def sbctl(self, *words: str) -> str:
        return self._host.run(["ovn-sbctl", "--timeout=20", f"--db=unix:{self.directory}/sb.sock", *words])

    def add_port(self, guest: StockGuest) -> None:
        """Make a guest's logical port, with port security, in the group that the ACLs are about."""
        address = f"{guest.mac} {guest.address}"
        self.nbctl(
            "lsp-add", SWITCH, guest.name, "--", "lsp-set-addresses", guest.name, address,
            "--", "lsp-set-port-security", guest.name, address,
        )  # fmt: skip
        identity = self.nbctl("--bare", "--columns=_uuid", "find", "Logical_Switch_Port", f"name={guest.name}").strip()
        self.nbctl("add", "Port_Group", GROUP, "ports", identity)

    def add_acl(self, direction: str, priority: int, match: str, action: str) -> None:
        """Add an ACL to the guests' group; return when the host's controller has programmed it."""
        self.nbctl("--type=port-group", "acl-add", GROUP, direction, str(priority), match, action)
        self.nbctl("--wait=hv", "sync")

    def southbound(self) -> set[str]:
        """The rows that the host's controller writes to the southbound database: chassis and bindings of ports."""
        tables = (
            ("Chassis", "_uuid,name,hostname,encaps,other_config"),
            ("Port_Binding", "_uuid,logical_port,chassis,up,tunnel_key"),
        )
        texts = [
            self.sbctl("--format=csv", "--no-headings", f"--columns={columns}", "list", table)
            for table, columns in tables
        ]
        return {line for text in texts for line in text.splitlines()}

    @property
    def controller_pid(self) -> int | None:
        return System().read_pid(self._host.outside("/run/ovn/ovn-controller.pid"))

    def controller(self, *words: str) -> str:
        """A command to the running controller. OVN 23.03 has its pid in the name of its socket."""
        return self._host.run(["ovn-appctl", "-t", f"/run/ovn/ovn-controller.{self.controller_pid}.ctl", *words])

    def start_controller(self) -> None:
        self._host.run(START_CONTROLLER)


def program(host: StockHost) -> None:
    """Start OVN, connect the host to it, and bind the guests' ports; return when the ports are up."""
    ovn = Ovn(host)
    ovn.directory.mkdir()
    _start_central(host, ovn)
    _connect(host)
    ovn.start_controller()
    _make_switch(host, ovn)
    for guest in host.running:
        host.add_port(guest, f"external_ids:iface-id={guest.name}")

    def all_up() -> bool:
        return all("up" in ovn.nbctl("lsp-get-up", guest.name).split() for guest in host.running)

    assert wait_until(all_up, _READY_S, System(), poll_s=0.2), ovn.sbctl("show")


def _start_central(host: StockHost, ovn: Ovn) -> None:
    host.run(["sh", "-ec", "\n".join([
        f"ip netns add {CENTRAL}",
        f"ip link add mgmt type veth peer name mgmt netns {CENTRAL}",
        f"ip address add {HOST_ADDRESS}/24 dev mgmt",
        f"ip -n {CENTRAL} address add {CENTRAL_ADDRESS}/24 dev mgmt",
        "ip link set mgmt up",
        f"ip -n {CENTRAL} link set mgmt up",
        f"ip -n {CENTRAL} link set lo up",
        "mkdir -p /run/ovn",
    ])])  # fmt: skip
    quiet = ["-vconsole:emer", "-vsyslog:err", "-vfile:info", "--no-chdir", "--detach"]
    for name, remote in (("nb", []), ("sb", [f"--remote=ptcp:{SOUTH_PORT}:{CENTRAL_ADDRESS}"])):
        base = f"{ovn.directory}/{name}"
        host.run(["ovsdb-tool", "create", f"{base}.db", f"/usr/share/ovn/ovn-{name}.ovsschema"])
        host.run(
            ["ovsdb-server", f"{base}.db", f"--remote=punix:{base}.sock", *remote, f"--pidfile={base}.pid",
             f"--unixctl={base}.ctl", f"--log-file={base}.log", *quiet],
            netns=CENTRAL,
        )  # fmt: skip
    ovn.nbctl("init")
    ovn.sbctl("init")
    base = f"{ovn.directory}/northd"
    host.run(
        ["ovn-northd", f"--ovnnb-db=unix:{ovn.directory}/nb.sock", f"--ovnsb-db=unix:{ovn.directory}/sb.sock",
         f"--pidfile={base}.pid", f"--unixctl={base}.ctl", f"--log-file={base}.log", *quiet],
        netns=CENTRAL,
    )  # fmt: skip


def _connect(host: StockHost) -> None:
    """What the guide has an operator set on a host (ovn-controller(8)), and a bridge with the uplink and the VTEP."""
    host.vsctl("add-br", UPLINK_BRIDGE, "--", "set", "bridge", UPLINK_BRIDGE, "datapath_type=netdev",
               "other_config:hwaddr=52:54:00:1f:00:01")  # fmt: skip
    host.add_uplink(UPLINK_BRIDGE)
    host.run(["ip", "link", "set", UPLINK_BRIDGE, "up"])
    host.run(["ip", "address", "add", f"{VTEP}/24", "dev", UPLINK_BRIDGE])
    host.vsctl(
        "set", "Open_vSwitch", ".", f"external_ids:ovn-remote=tcp:{CENTRAL_ADDRESS}:{SOUTH_PORT}",
        "external_ids:ovn-encap-type=geneve", f"external_ids:ovn-encap-ip={VTEP}",
        "external_ids:ovn-bridge-datapath-type=netdev", f"external_ids:ovn-bridge-mappings=physnet1:{UPLINK_BRIDGE}",
    )  # fmt: skip


def _make_switch(host: StockHost, ovn: Ovn) -> None:
    ovn.nbctl("ls-add", SWITCH)
    ovn.nbctl("pg-add", GROUP)
    for guest in host.running:
        ovn.add_port(guest)
    ovn.nbctl("lsp-add", SWITCH, "outside", "--", "lsp-set-type", "outside", "localnet", "--", "lsp-set-addresses",
              "outside", "unknown", "--", "lsp-set-options", "outside", "network_name=physnet1")  # fmt: skip
    ovn.nbctl("meter-add", "acl-log", "drop", "1000", "pktps", "0")
    for direction, priority, match, action in ACLS:
        logged = ["--log", "--severity=info", "--meter=acl-log", "--name=refused"] if action == "drop" else []
        ovn.nbctl(*logged, "--type=port-group", "acl-add", GROUP, direction, str(priority), match, action)
    ovn.nbctl("lsp-add", SWITCH, "elsewhere", "--", "lsp-set-addresses", "elsewhere", "52:54:00:64:00:99 10.100.0.99")
    ovn.sbctl("chassis-add", "stock-2", "geneve", REMOTE_VTEP)
    ovn.nbctl("--wait=sb", "sync")
    ovn.sbctl("lsp-bind", "elsewhere", "stock-2")
