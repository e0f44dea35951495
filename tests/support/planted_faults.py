"""Faults for a lab with two guests, each planted as it comes about on a host, and taken back at the end of its block.

The guests ping each other and the remote host a hundred times a second, on the active instance a.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.adopt.processes import ForeignProcess
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import REMOTE_INNER, REMOTE_INNER_MAC, REMOTE_VTEP, VNI, VXLAN_DEVICE
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.datapath import USERSPACE
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.uplink.frames import PacketSockets
from ovs_hotswap.vhostuser.messages import build_ring_address
from ovs_hotswap.vhostuser.reconcile import PARKING
from tests.support.bpf import program
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Bed:
    """The lab, and the ways to disturb it."""

    lab: Lab
    host: Host

    def appctl(self, *words: str) -> str:
        return appctl(self.host.control(Side.A), *words)

    def run(self, *argv: str) -> str:
        return System().run(argv).stdout

    def vsctl(self, *words: str) -> None:
        self.run("ovs-vsctl", "--timeout=10", f"--db=unix:{self.host.instances[Side.A].paths.db_socket}", *words)

    def ofctl(self, command: str, *words: str) -> None:
        self.run("ovs-ofctl", command, self.host.openflow(Side.A).target, *words)

    @contextlib.contextmanager
    def overlay(self, *changes: tuple[str, str]) -> Iterator[None]:
        """Change the overlay file, and have the host follow it."""
        path = self.lab.layout.overlay_file
        before = text = path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text)
        self.follow()
        try:
            yield
        finally:
            path.write_text(before)
            self.follow()

    def follow(self) -> None:
        Host(self.lab.config, System()).follow_intent([Side.A], untried=True)

    def frame(self, source: str, to: str, port: int = 9) -> bytes:
        """An Ethernet frame with a UDP packet from this port, without checksum."""
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
        total = sum(struct.unpack("!10H", header))
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        header = header[:10] + struct.pack("!H", checksum) + header[12:]
        macs = bytes.fromhex((to + source).replace(":", ""))
        return macs + b"\x08\x00" + header + struct.pack("!HHHH", port, 9, 8, 0)


Plant = Callable[[Bed], AbstractContextManager[None]]


# --------------------------------------------------------------------------------------------- flows and other hosts


@contextlib.contextmanager
def wrong_vni(bed: Bed) -> Iterator[None]:
    """vm1 is in another VNI than those to which it sends."""
    first = bed.lab.layout.guests[0].mac
    with bed.overlay((f'mac = "{first}"\nvni = {VNI}', f'mac = "{first}"\nvni = 101')):
        yield


@contextlib.contextmanager
def unknown_mac(bed: Bed) -> Iterator[None]:
    """The remote host has left the overlay file."""
    entry = f'[[remote]]\nvni = {VNI}\nmac = "{REMOTE_INNER_MAC}"\nvtep = "{REMOTE_VTEP}"\n'
    with bed.overlay((entry, "")):
        yield


@contextlib.contextmanager
def silent_vtep(bed: Bed) -> Iterator[None]:
    """The overlay file has the remote host behind an address that no host has."""
    with bed.overlay((f'vtep = "{REMOTE_VTEP}"', 'vtep = "172.31.0.9"'),
                     (f'address = "{REMOTE_VTEP}"', 'address = "172.31.0.9"')):  # fmt: skip
        yield


@contextlib.contextmanager
def wrong_vtep(bed: Bed) -> Iterator[None]:
    """The overlay file is wrong about a remote host that sends, so that it is seen where it is."""
    wire, ended = PacketSockets(bed.lab.layout.remote_namespace), threading.Event()
    frame = bed.frame(REMOTE_INNER_MAC, bed.lab.layout.guests[0].mac)

    def send() -> None:
        while not ended.wait(0.05):
            wire.send(VXLAN_DEVICE, frame)

    sender = threading.Thread(target=send)
    with silent_vtep(bed):
        sender.start()
        try:
            yield
        finally:
            ended.set()
            sender.join()


@contextlib.contextmanager
def flows_deleted(bed: Bed) -> Iterator[None]:
    bed.ofctl("del-flows")
    try:
        yield
    finally:
        bed.host.program_flows(Side.A, Form.FINAL)


@contextlib.contextmanager
def missing_neighbour(bed: Bed) -> Iterator[None]:
    """The switch forgets the next hop; the remote host, whose packets would teach it, is cut off for the moment."""
    remote = bed.lab.layout.remote_namespace
    bed.run("ip", "netns", "exec", remote, "ip", "link", "set", VXLAN_DEVICE, "down")
    bed.appctl("tnl/neigh/flush")
    try:
        yield
    finally:
        bed.run("ip", "netns", "exec", remote, "ip", "link", "set", VXLAN_DEVICE, "up")
        bed.host.program_tunnels(Side.A)


@contextlib.contextmanager
def stale_rule(bed: Bed) -> Iterator[None]:
    bed.host.uplink.steer(Side.B)
    try:
        yield
    finally:
        bed.host.uplink.steer(Side.A)


@contextlib.contextmanager
def silent_vf(bed: Bed) -> Iterator[None]:
    """What the VF sends is dropped behind it, as spoof checking does. Its link stays up."""
    with program("xdp-drop", bed.lab.layout.host_namespace, "rep-a"):
        yield


# ------------------------------------------------------------------------------------------------------ VMs and ports


@contextlib.contextmanager
def rings_left_parked(bed: Bed) -> Iterator[None]:
    """The switch gets the address of the parking ring for each VM's transmit ring, and the broker knows nothing of it.

    The broker's end of a connection is shown where the switch that connected is, under the name by which the listening
    socket was bound: that is not the VM's yet (net/unix/af_unix.c, unix_stream_connect; ``vhostuser.channel.listen``).
    """
    place = f"{bed.lab.config.vhost_socket(Side.A, 'vm1').parent}/."
    table = Path(f"/proc/{bed.host.instances[Side.A].pid()}/net/unix").read_text()
    rows = [line.split() for line in table.splitlines()]
    ends = {f"socket:[{row[6]}]" for row in rows if row[-1].startswith(place) and row[5] == "03"}
    with ForeignProcess(bed.host.broker.status().pid) as broker:
        found = [fd for fd, what in broker.descriptors().items() if what in ends]
        assert len(found) == 2
        for fd in found:
            with socket.socket(fileno=broker.fetch(fd).detach()) as connection:
                connection.sendall(build_ring_address(1, PARKING))
    try:
        yield
    finally:
        for vm in ("vm1", "vm2"):
            bed.host.broker.quarantine(vm, "test")
            bed.host.broker.release(vm)


@contextlib.contextmanager
def port_down(bed: Bed) -> Iterator[None]:
    bed.ofctl("mod-port", "vm1", "down")
    try:
        yield
    finally:
        bed.ofctl("mod-port", "vm1", "up")


@contextlib.contextmanager
def port_blocked(bed: Bed) -> Iterator[None]:
    bed.ofctl("mod-port", "vm2", "no-forward")
    try:
        yield
    finally:
        bed.ofctl("mod-port", "vm2", "forward")


@contextlib.contextmanager
def long_packets(bed: Bed) -> Iterator[None]:
    """The guest sends packets that are 50 bytes too long for the tunnel."""
    guest = bed.lab.guest("vm1")
    guest.run("ip link set eth0 mtu 1500")
    guest.run(f"ping -i 0.1 -s 1452 {REMOTE_INNER} >/dev/null 2>&1 & true")
    try:
        yield
    finally:
        guest.run("killall ping; ip link set eth0 mtu 1450")


@contextlib.contextmanager
def spoofing(bed: Bed) -> Iterator[None]:
    """The guest has another MAC. It then knows its neighbours no longer, so it sends to all besides."""
    guest, mac = bed.lab.guest("vm1"), bed.lab.layout.guests[0].mac
    guest.run("ip link set eth0 address 52:54:00:64:00:99")
    guest.run("ping -i 0.1 10.100.255.255 >/dev/null 2>&1 & true")
    try:
        yield
    finally:
        guest.run(f"killall ping; ip link set eth0 address {mac}")


@contextlib.contextmanager
def policing(bed: Bed) -> Iterator[None]:
    bed.vsctl("set", "Interface", "vm2", "ingress_policing_rate=8", "ingress_policing_burst=1")
    try:
        yield
    finally:
        bed.vsctl("set", "Interface", "vm2", "ingress_policing_rate=0", "ingress_policing_burst=0")


@contextlib.contextmanager
def hung_guest(bed: Bed) -> Iterator[None]:
    """The guest takes nothing any more, and others have filled its receive ring."""
    guest, (layout, *_) = bed.lab.guest("vm1"), bed.lab.layout.guests
    guest.run("ip link set eth0 down")
    frame = bed.frame(REMOTE_INNER_MAC, layout.mac)
    bed.host.openflow(Side.A).packet_outs([(frame, f"output:{layout.ofport}")] * 256)
    try:
        yield
    finally:
        guest.run("ip link set eth0 up")


@contextlib.contextmanager
def stopped_guest(bed: Bed) -> Iterator[None]:
    """Nothing of vm2's QEMU runs."""
    pid = bed.lab.guest("vm2").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def paused_guest(bed: Bed) -> Iterator[None]:
    """vm1 is suspended: its QEMU takes the rings from its back end."""
    guest = bed.lab.guest("vm1")
    guest.qmp("stop")
    try:
        eventually(lambda: not any(ring.started for ring in bed.host.broker.vm("vm1").rings), "its rings do not stop")
        yield
    finally:
        guest.qmp("cont")


# ------------------------------------------------------------------------------------------------------------ the host


@contextlib.contextmanager
def full_conntrack(bed: Bed) -> Iterator[None]:
    most = bed.appctl("dpctl/ct-get-maxconns", USERSPACE).strip()
    bed.appctl("dpctl/ct-set-maxconns", USERSPACE, "3")
    first, second = (guest.mac for guest in bed.lab.layout.guests)
    frames = [(bed.frame(first, second, port), "ct(commit,zone=7)") for port in range(1000, 1008)]
    bed.host.openflow(Side.A).packet_outs(frames)
    try:
        yield
    finally:
        bed.appctl("dpctl/ct-set-maxconns", USERSPACE, most)
        bed.appctl("dpctl/flush-conntrack", "zone=7")


@contextlib.contextmanager
def empty_pool(bed: Bed) -> Iterator[None]:
    """A device whose receive rings are long enough for all buffers of the pool. Its other end is in the same switch."""
    bridge, path = bed.lab.config.bridge, bed.lab.layout.directory / "eater.sock"
    ends = {"eat0": f"net_vhost0,iface={path},queues=4",
            "eat1": f"net_virtio_user0,path={path},queues=4,queue_size=4096"}  # fmt: skip
    for name, arguments in ends.items():
        bed.vsctl("add-port", bridge, name, "--", "set", "Interface", name, "type=dpdk",
                  f"options:dpdk-devargs={arguments}", "options:n_rxq=4", "options:n_rxq_desc=4096")  # fmt: skip
    try:
        yield
    finally:
        for name in reversed(ends):
            bed.vsctl("--if-exists", "del-port", bridge, name)


_HOG = "import os, sys; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))\nprint(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def starved_core(bed: Bed) -> Iterator[None]:
    """A process of real-time priority has the core of the PMD thread."""
    (core,) = bed.lab.config.instance(Side.A).pmd_cores
    hog = subprocess.Popen(["timeout", "30", "taskset", "-c", str(core), sys.executable, "-c", _HOG],
                           stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert hog.stdout is not None
        hog.stdout.readline()
        yield
    finally:
        hog.terminate()
        hog.communicate()


@contextlib.contextmanager
def stopped_instance(bed: Bed) -> Iterator[None]:
    pid = bed.host.instances[Side.A].pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
