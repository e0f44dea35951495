"""Two switches of the distribution with the same bridge, each in a network namespace, and guests that can be moved.

A guest is a network namespace. Its device is a bridge of the kernel with a link to either switch, of which one passes
frames, so that a guest moves from one switch to the other without losing a link. The switches have no DPDK: their
datapath is in user space all the same, and has the same connection tracking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from ovs_hotswap.checksums import internet_checksum
from ovs_hotswap.clone.bridges import read_bridges
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.uplink.frames import in_namespace
from ovs_hotswap.waiting import wait_until

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
GUESTS = ("vm1", "vm2", "vm3")  # ofports 1, 2, 3
VLAN = 5  # of vm1 and vm2, which are access ports; vm3 is a trunk
_ANSWER_S = 5.0
Result = TypeVar("Result")


class StateBed:
    """``close`` ends everything. The switches are called a and b."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._tag = f"ovsh-st{os.getpid()}"
        self._directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._namespaces: list[str] = []

    def up(self) -> None:
        for side in "ab":
            self._run("ip", "netns", "add", self._namespace(side))
            self._namespaces.append(self._namespace(side))
            self._without_ipv6(side)
        for number, guest in enumerate(GUESTS, 1):
            self._make_guest(guest, number)
        self.move("a")  # before the switches start: with two links, the guests' bridges would be a loop
        for side in "ab":
            self._start(side)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(20)
        for name in self._namespaces:
            self._run("ip", "netns", "del", name)
        shutil.rmtree(self._directory)

    def paths(self, side: str) -> InstancePaths:
        root = self._directory / side
        named = {each.name: root / each.name for each in fields(InstancePaths) if each.name != "netns"}
        return InstancePaths(**{**named, "run_dir": root}, netns=self._namespace(side))

    def ask(self, side: str, *command: str) -> str:
        return appctl(self.paths(side).vswitchd_ctl, *command)

    def set_flows(self, side: str, *flows: str) -> None:
        target = f"unix:{self.paths(side).run_dir}/br0.mgmt"
        self._system.run(["ovs-ofctl", "-O", "OpenFlow13", "replace-flows", target, "-"], stdin="\n".join(flows))

    def move(self, side: str) -> None:
        """Have all guests' frames go to and come from one switch."""
        for guest in GUESTS:
            for each in "ab":
                state = "3" if each == side else "0"  # forwarding, disabled (include/uapi/linux/if_bridge.h)
                self.inside(guest, "bridge", "link", "set", "dev", f"to-{each}", "state", state)

    def received(self, guest: str, side: str) -> int:
        """The frames that a switch has sent to a guest, whether or not the guest takes them."""
        text = self.inside(guest, "cat", f"/sys/class/net/to-{side}/statistics/rx_packets")
        return int(text)

    @contextlib.contextmanager
    def listening(self, guest: str, side: str) -> Iterator[Callable[[], list[str]]]:
        """Hear what a switch sends to a guest. Yields a function that returns the destinations of all frames so far
        that are for one other guest."""
        heard: list[str] = []
        with self._packet_socket(guest, side) as ear:
            ear.setblocking(False)

            def others() -> list[str]:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        heard.append(ear.recv(1 << 12)[:6].hex(":"))
                own = mac(GUESTS.index(guest) + 1)
                return [each for each in heard if each != own and not int(each[:2], 16) & 1]

            yield others

    def send(self, guest: str, side: str, target: str) -> None:
        """Have a guest send one frame that is not of IP to a MAC address."""
        ends = bytes.fromhex((target + mac(GUESTS.index(guest) + 1)).replace(":", ""))
        with self._packet_socket(guest, side) as sender:
            sender.send((ends + b"\x88\xb5").ljust(60, b"\0"))

    def _packet_socket(self, guest: str, side: str) -> socket.socket:
        made = self.at(guest, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        made.bind((f"to-{side}", 3))
        return made

    def resets(self, guest: str) -> int:
        """The TCP connections of a guest that were reset, and the resets that it sent (RFC 2012)."""
        rows = [
            line.split()[1:] for line in self.inside(guest, "cat", "/proc/net/snmp").splitlines() if line[:4] == "Tcp:"
        ]
        values = dict(zip(*rows, strict=True))
        return int(values["EstabResets"]) + int(values["OutRsts"])

    def at(self, guest: str, act: Callable[[], Result]) -> Result:
        """Call ``act`` in a guest's namespace; sockets that it makes stay there."""
        return in_namespace(self._namespace(guest), act)

    def inside(self, name: str, *argv: str) -> str:
        return self._run("ip", "netns", "exec", self._namespace(name), *argv)

    def ping(self, guest: str, address: str, identifier: int) -> bool:
        """Send one echo request with this identifier; return whether it is answered."""
        with self.at(guest, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)) as pinger:
            pinger.settimeout(_ANSWER_S)
            request = struct.pack("!BBHHH", 8, 0, 0, identifier, 1)
            checked = request[:2] + struct.pack("!H", internet_checksum(request)) + request[4:]
            pinger.sendto(checked, (address, 0))
            with contextlib.suppress(TimeoutError):
                while True:
                    packet = pinger.recv(1 << 12)
                    if packet[20:22] == b"\0\0" and struct.unpack_from("!H", packet, 24) == (identifier,):
                        return True
        return False

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _run(self, *argv: str) -> str:
        return self._system.run(list(argv)).stdout

    def _without_ipv6(self, name: str) -> None:
        """Devices that are made from now on send nothing by themselves."""
        self.inside(name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")

    def _make_guest(self, guest: str, number: int) -> None:
        """10.0.0.N and fd00::N, with permanent neighbours, so that nothing is broadcast."""
        space = self._namespace(guest)
        self._run("ip", "netns", "add", space)
        self._namespaces.append(space)
        self._without_ipv6(guest)
        self.inside(
            guest, "ip", "link", "add", "name", "eth0", "address", mac(number), "type", "bridge", "mcast_snooping", "0"
        )
        for side in "ab":
            peer = ("peer", "name", guest, "netns", self._namespace(side))
            self.inside(guest, "ip", "link", "add", f"to-{side}", "type", "veth", *peer)
            self.inside(guest, "ip", "link", "set", f"to-{side}", "master", "eth0", "up")
            # What was learnt on one link would keep frames from the other one after a move.
            self.inside(guest, "bridge", "link", "set", "dev", f"to-{side}", "learning", "off")
            self._run("ip", "-n", self._namespace(side), "link", "set", guest, "up")
            self.inside(guest, "ethtool", "-K", f"to-{side}", "tx", "off", "rx", "off")
        # The switch cannot take checksums that a device was to compute (lib/netdev-linux.c without userspace TSO).
        self.inside(guest, "ethtool", "-K", "eth0", "tx", "off")
        for setting in ("disable_ipv6=0", "accept_dad=0"):
            self.inside(guest, "sysctl", "-qw", f"net.ipv6.conf.eth0.{setting}")
        self.inside(guest, "ip", "link", "set", "eth0", "up")
        for address in (f"10.0.0.{number}/24", f"fd00::{number}/64"):
            self.inside(guest, "ip", "address", "add", address, "dev", "eth0")
        for other in (each for each in range(1, len(GUESTS) + 1) if each != number):
            for address in (f"10.0.0.{other}", f"fd00::{other}"):
                self.inside(
                    guest, "ip", "neigh", "replace", address, "lladdr", mac(other), "dev", "eth0", "nud", "permanent"
                )
        self.inside(guest, "ip", "neigh", "replace", "10.0.0.99", "lladdr", mac(1), "dev", "eth0", "nud", "permanent")

    def _start(self, side: str) -> None:
        paths = self.paths(side)
        paths.run_dir.mkdir()
        self._run("ovsdb-tool", "create", str(paths.db_file), str(SCHEMA))
        self._spawn(side, "ovsdb-server", str(paths.db_file), f"--remote=punix:{paths.db_socket}",
                    f"--unixctl={paths.ovsdb_ctl}", f"--log-file={paths.ovsdb_log}", "-vconsole:off")  # fmt: skip
        assert wait_until(paths.db_socket.exists, 10)
        self._spawn(side, "ovs-vswitchd", f"unix:{paths.db_socket}", f"--unixctl={paths.vswitchd_ctl}",
                    f"--log-file={paths.log}", "-vconsole:off")  # fmt: skip
        ports: list[str] = []
        for number, guest in enumerate(GUESTS, 1):
            tag = [f"tag={VLAN}"] if number < 3 else []
            ports += ["--", "add-port", "br0", guest, *tag, "--", "set", "interface", guest, f"ofport_request={number}"]
        # Those who program a bridge may have it accept only old versions.
        bridge = ["set", "bridge", "br0", "datapath_type=netdev", "other_config:hwaddr=02:00:00:00:09:09",
                  "protocols=OpenFlow10,OpenFlow13"]  # fmt: skip
        self._run("ovs-vsctl", f"--db=unix:{paths.db_socket}", "--timeout=10", "add-br", "br0", "--", *bridge, *ports)

        def ready() -> bool:
            with contextlib.suppress(SwitchError):
                found = read_bridges(paths.db_socket).ports["br0"]
                return all(port.interfaces for port in found)
            return False

        assert wait_until(ready, 10)
        self._run("ip", "-n", self._namespace(side), "link", "set", "br0", "up")
        self._run("ip", "-n", self._namespace(side), "address", "add", "172.31.0.1/24", "dev", "br0")

    def _spawn(self, side: str, *argv: str) -> None:
        run_dir = str(self.paths(side).run_dir)
        environment = {**os.environ, "OVS_RUNDIR": run_dir, "OVS_LOGDIR": run_dir, "OVS_DBDIR": run_dir}
        command = ["ip", "netns", "exec", self._namespace(side), *argv]
        self._processes.append(subprocess.Popen(command, env=environment, start_new_session=True))


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


@contextlib.contextmanager
def state_bed(system: System) -> Iterator[StateBed]:
    bed = StateBed(system)
    try:
        bed.up()
        yield bed
    finally:
        bed.close()
