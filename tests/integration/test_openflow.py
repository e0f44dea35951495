"""The tables on the real ovs-vswitchd: two processes with dummy ports, joined by their peer ports.

Dummy ports (netdev-dummy.c) take a frame from ``netdev-dummy/receive`` and write what is sent to a pcap file, so a
frame can be compared byte by byte. Everything else, OpenFlow, the tunnel and the datapath, is the production code.
"""

from __future__ import annotations

import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import PEER, PEER_PORT, UPLINK, UPLINK_PORT, VXLAN, VXLAN_PORT
from ovs_hotswap.overlay.tables import REQUIRED_OTHER_CONFIG, Form, Kind, cookie, lines, render
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.system import System
from tests.support.waiting import eventually

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"

VTEP, VTEP_MAC = "172.31.0.1", "52:54:00:aa:00:01"
REMOTES = ("172.31.0.2", "172.31.0.3")
BROADCAST = "ff:ff:ff:ff:ff:ff"
UNKNOWN = "52:54:00:ff:ff:ff"
FAR = "52:54:00:00:01:01"


def mac(number: int) -> str:
    return f"52:54:00:00:00:{number:02x}"


INTENT = Intent.model_validate(
    {
        "vtep": {"address": f"{VTEP}/24", "mac": VTEP_MAC},
        "vm": [
            {"name": "vm1", "ofport": 10, "mac": mac(1), "vni": 100},
            {"name": "vm2", "ofport": 11, "mac": mac(2), "vni": 100},
            {"name": "vm3", "ofport": 4000, "mac": mac(3), "vni": 100},
            {"name": "vm4", "ofport": 12, "mac": mac(1), "vni": 200},
        ],
        "remote": [
            {"vni": 100, "mac": FAR, "vtep": REMOTES[0]},
            {"vni": 100, "mac": "52:54:00:00:01:02", "vtep": REMOTES[0]},
            {"vni": 100, "mac": "52:54:00:00:01:03", "vtep": REMOTES[1]},
        ],
        "neighbour": [{"address": vtep, "mac": f"52:54:00:bb:00:0{vtep[-1]}"} for vtep in REMOTES],
    }
)
PORTS = {UPLINK: UPLINK_PORT, PEER: PEER_PORT, **{vm.name: vm.ofport for vm in INTENT.vms}}


class Switch:
    """A private ovsdb-server and ovs-vswitchd with one bridge, as ``INTENT`` needs it, of dummy ports."""

    def __init__(self, system: System, directory: Path, side: Side) -> None:
        self.system = system
        self.dir = directory / side
        self.dir.mkdir()
        self.pids: list[int] = []
        self.env = {f"OVS_{name}": str(self.dir) for name in ("RUNDIR", "DBDIR", "LOGDIR")}
        self.link = "pstream" if side is Side.A else "stream"
        self.peer_socket = f"{'punix' if side is Side.A else 'unix'}:{directory}/peer.sock"
        self.read: dict[str, int] = {}
        self.openflow = OpenFlow(system, self.dir / "br0.mgmt")

    def start(self) -> None:
        database, server = self.dir / "conf.db", self.dir / "db.sock"
        self.system.run(["ovsdb-tool", "create", str(database), SCHEMA])
        self._spawn("ovsdb-server", str(database), f"--remote=punix:{server}", f"--unixctl={self.dir}/ovsdb.ctl")
        eventually(server.exists, "ovsdb-server listens")
        self.vsctl("--no-wait", "init")
        self._spawn(
            "ovs-vswitchd", f"unix:{server}", "--enable-dummy", "--disable-system", f"--unixctl={self.dir}/vswitchd.ctl"
        )
        self.vsctl(*self._setup())
        self.appctl("netdev-dummy/ip4addr", "br0", f"{VTEP}/24")
        self.appctl("ovs/route/add", f"{VTEP}/24", "br0")
        for neighbour in INTENT.neighbours:
            assert neighbour.mac is not None
            self.appctl("tnl/neigh/set", "br0", neighbour.address, neighbour.mac)

    def _setup(self) -> list[str]:
        other_config = [f"other_config:{key}={value}" for key, value in REQUIRED_OTHER_CONFIG.items()]
        setup = ["set", "Open_vSwitch", ".", *other_config, "--", "add-br", "br0", "--", "set", "Bridge", "br0"]
        setup += ["datapath_type=dummy", "fail_mode=secure", f"other_config:hwaddr={VTEP_MAC}"]
        for name, number in PORTS.items():
            setup += ["--", "add-port", "br0", name, "--", "set", "Interface", name, "type=dummy"]
            setup += [f"ofport_request={number}", f"options:tx_pcap={self.dir}/{name}.pcap"]
        setup += ["--", "set", "Interface", PEER, f"options:{self.link}={self.peer_socket}"]
        setup += ["--", "add-port", "br0", VXLAN, "--", "set", "Interface", VXLAN, "type=vxlan"]
        return [*setup, f"ofport_request={VXLAN_PORT}", "options:key=flow", "options:remote_ip=flow"]

    def stop(self) -> None:
        for pid in reversed(self.pids):
            self.system.kill(pid)

    def _spawn(self, *argv: str) -> None:
        self.pids.append(self.system.spawn(argv, log=self.dir / "log", env=self.env))

    def vsctl(self, *argv: str) -> str:
        return self.system.run(["ovs-vsctl", f"--db=unix:{self.dir}/db.sock", "--timeout=20", *argv]).stdout

    def appctl(self, *argv: str) -> str:
        return self.system.run(["ovs-appctl", "-t", f"{self.dir}/vswitchd.ctl", "-T", "20", *argv]).stdout

    def program(self, form: Form) -> None:
        self.openflow.replace(lines(render(INTENT, form)))

    def trace(self, flow: str) -> str:
        """The datapath actions for a flow, with names of ports."""
        text = self.appctl("ofproto/trace", "--names", "br0", flow)
        return next(line for line in text.splitlines() if line.startswith("Datapath actions: ")).partition(": ")[2]

    def inject(self, port: str, frame: bytes) -> None:
        self.appctl("netdev-dummy/receive", port, frame.hex())

    def sent(self, port: str) -> list[bytes]:
        """The frames sent by a port since the last call."""
        with (self.dir / f"{port}.pcap").open("rb") as file:
            file.seek(self.read.get(port, 24))
            data = file.read()
        frames, at = [], 0
        while at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 12], sys.byteorder)
            frames.append(data[at + 16 : at + 16 + size])
            at += 16 + size
        self.read[port] = self.read.get(port, 24) + at
        return frames


class Pair:
    def __init__(self, system: System, directory: Path) -> None:
        self.switches = {side: Switch(system, directory, side) for side in Side}

    def program(self, form: Form) -> None:
        for switch in self.switches.values():
            switch.program(form)

    def receivers(self, side: Side, port: str, frame: bytes) -> dict[tuple[Side, str], list[bytes]]:
        """What each VM's port and each uplink sent because of one frame.

        The peer link keeps the order, so after a last frame has come through it in both directions, none is left.
        """
        self._drain()
        self.switches[side].inject(port, frame)
        last = ethernet(mac(2), mac(1), payload=b"last")
        for end in Side:
            self.switches[end].inject("vm1", last)
        found: dict[tuple[Side, str], list[bytes]] = {}

        def settled() -> bool:
            for end, switch in self.switches.items():
                for name in PORTS:
                    if name != PEER:
                        found.setdefault((end, name), []).extend(switch.sent(name))
            return all(found[end, "vm2"].count(last) == 2 for end in Side)

        eventually(settled, "the last frames come through the peer link")
        kept = {place: [item for item in frames if item != last] for place, frames in found.items()}
        return {place: frames for place, frames in kept.items() if frames}

    def _drain(self) -> None:
        for switch in self.switches.values():
            for name in PORTS:
                switch.sent(name)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-of-"))
    pair = Pair(System(), directory)
    try:
        for switch in pair.switches.values():
            switch.start()
        far_end = pair.switches[Side.B]
        eventually(
            lambda: "connected" in far_end.appctl("netdev-dummy/conn-state", PEER).split(), "the peer ports connect"
        )
        yield pair
    finally:
        for switch in pair.switches.values():
            switch.stop()
        shutil.rmtree(directory)


@pytest.fixture
def switch(pair: Pair) -> Switch:
    return pair.switches[Side.A]


def raw(address: str) -> bytes:
    return bytes.fromhex(address.replace(":", ""))


def ethernet(destination: str, source: str, *, tags: bytes = b"", payload: bytes = b"payload") -> bytes:
    return (raw(destination) + raw(source) + tags + b"\x88\xb5" + payload).ljust(60, b"\0")


def checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    return ~(total + (total >> 16)) & 0xFFFF


def encapsulated(inner: bytes, vni: int, destination: str = VTEP) -> bytes:
    """``inner`` in VXLAN (RFC 7348) from the first remote VTEP."""
    vxlan = struct.pack("!II", 0x08000000, vni << 8) + inner
    udp = struct.pack("!HHHH", 50000, 4789, 8 + len(vxlan), 0) + vxlan
    addresses = socket.inet_aton(REMOTES[0]) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17)
    ip = head + struct.pack("!H", checksum(head + addresses)) + addresses
    return raw(VTEP_MAC) + raw("52:54:00:bb:00:02") + b"\x08\x00" + ip + udp


def decapsulated(outer: bytes) -> tuple[str, int, bytes]:
    """(destination VTEP, VNI, inner frame)."""
    assert outer[12:14] == b"\x08\x00"
    assert outer[36:38] == struct.pack("!H", 4789)
    return socket.inet_ntoa(outer[30:34]), int.from_bytes(outer[46:49], "big"), outer[50:]


def test_replace_dump_and_diff_agree(switch: Switch) -> None:
    for form, other in ((Form.FINAL, Form.WINDOW), (Form.WINDOW, Form.FINAL)):
        wanted = lines(render(INTENT, form))
        switch.openflow.replace(wanted)
        dump = switch.openflow.dump()
        assert len(dump) == len(wanted)
        assert dump == switch.openflow.dump()
        assert switch.openflow.diff(wanted) == []
        assert switch.openflow.diff(dump) == []
        assert switch.openflow.diff(lines(render(INTENT, other))) != []


def test_diff_shows_what_is_installed_only_and_what_is_wanted_only(switch: Switch) -> None:
    switch.openflow.replace(["table=0,priority=5,in_port=10 actions=output:11"])
    found = switch.openflow.diff(["table=0,priority=5,in_port=11 actions=output:10"])
    assert sorted(line[0] for line in found) == ["+", "-"]
    assert [line for line in found if line.startswith("+") and "in_port=11" in line]


def test_a_wrong_flow_changes_nothing(switch: Switch) -> None:
    switch.program(Form.FINAL)
    before = switch.openflow.dump()
    with pytest.raises(SwitchError, match="frobnicate"):
        switch.openflow.replace(["table=0,priority=1 actions=drop", "table=0,in_port=1 actions=frobnicate"])
    assert switch.openflow.dump() == before


def test_a_flow_that_the_switch_refuses_changes_nothing(switch: Switch) -> None:
    switch.program(Form.FINAL)
    before = switch.openflow.dump()
    with pytest.raises(SwitchError, match="replace-flows"):
        switch.openflow.replace(["table=0,priority=1 actions=drop", "table=0,in_port=1 actions=group:77"])
    assert switch.openflow.dump() == before


def test_a_missing_bridge_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match=r"gone\.mgmt"):
        OpenFlow(System(), tmp_path / "gone.mgmt").dump()


def test_ten_thousand_flows(switch: Switch) -> None:
    intent = Intent.model_validate(
        {
            "vtep": {"address": f"{VTEP}/24", "mac": VTEP_MAC},
            "vm": [{"name": f"v{n}", "ofport": n, "mac": mac(n), "vni": 100} for n in range(10, 255)],
            "remote": [
                {"vni": 100, "mac": f"52:54:02:00:{n >> 8:02x}:{n & 255:02x}", "vtep": f"172.30.{n % 250}.{n % 2 + 1}"}
                for n in range(10_000)
            ],
            "neighbour": [{"address": "172.31.0.254", "mac": "52:54:00:bb:00:fe"}],
            "route": [{"destination": "172.30.0.0/16", "gateway": "172.31.0.254"}],
        }
    )
    wanted = lines(render(intent, Form.WINDOW))
    assert len(wanted) > 10_000
    switch.openflow.replace(wanted)
    assert len(switch.openflow.dump()) == len(wanted)
    assert switch.openflow.diff(wanted) == []
    assert len(switch.openflow.diff(wanted[:-1])) == 1


@pytest.mark.parametrize("form", Form)
def test_trace(switch: Switch, form: Form) -> None:
    switch.program(form)

    def peer(ofport: int) -> str:
        return f",push_vlan(tpid=0x88a8,vid={ofport},pcp=0),peer,pop_vlan" if form is Form.WINDOW else ""

    def last(ofport: int) -> str:
        return peer(ofport).removesuffix(",pop_vlan")  # OVS leaves out what no output follows

    def frame(port: int, source: str, destination: str) -> str:
        return f"in_port={port},dl_src={source},dl_dst={destination}"

    assert switch.trace(frame(10, mac(1), mac(2))) in ("vm2" + last(11), "vm2" + peer(11))
    flood = switch.trace(frame(10, mac(1), BROADCAST))
    assert flood.startswith("vm2" + peer(11) + ",vm3" + peer(4000) + ",")
    assert flood.count("tnl_push(") == 2
    assert [flood.count(f"dst={vtep}") for vtep in REMOTES] == [1, 1]
    assert "vm1" not in flood
    assert "vm4" not in flood
    far = switch.trace(frame(10, mac(1), FAR))
    assert far.count("tnl_push(") == 1
    assert "vni=0x64" in far
    assert f"dst={REMOTES[0]}" in far
    assert switch.trace(frame(12, mac(1), BROADCAST)) == "drop"  # alone in its VNI
    assert switch.trace(frame(10, mac(2), BROADCAST)) == "drop"  # spoofed
    assert switch.trace(frame(10, mac(1), UNKNOWN)) == "drop"
    assert switch.trace("tun_id=200," + frame(VXLAN_PORT, FAR, mac(1))) in ("vm4" + last(12), "vm4" + peer(12))
    assert switch.trace("tun_id=100," + frame(VXLAN_PORT, UNKNOWN, FAR)) == "drop"  # split horizon
    assert switch.trace("tun_id=300," + frame(VXLAN_PORT, FAR, mac(1))) == "drop"
    underlay = f"udp,in_port={UPLINK_PORT},dl_dst={VTEP_MAC},nw_src={REMOTES[0]},nw_dst={VTEP},udp_dst="
    assert switch.trace(underlay + "4789").startswith("tnl_pop(")
    assert switch.trace(underlay + "53") == "drop"
    tagged = f"dl_vlan=11,{frame(PEER_PORT, mac(1), BROADCAST)}"
    assert switch.trace(tagged) == ("pop_vlan,vm2" if form is Form.WINDOW else "drop")
    assert switch.trace(tagged.replace("=11", "=13")) == "drop"


TAGS = {
    "untagged": b"",
    "802.1Q": bytes.fromhex("81002005"),
    "802.1ad": bytes.fromhex("88a8000b"),
    "QinQ": bytes.fromhex("88a8200581004006"),
    "three tags": bytes.fromhex("88a82005810040068100000b"),
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("side", Side)
def test_a_broadcast_from_a_vm_comes_unchanged_to_all_others_on_both_instances(
    pair: Pair, side: Side, tags: bytes
) -> None:
    pair.program(Form.WINDOW)
    frame = ethernet(BROADCAST, mac(1), tags=tags)
    got = pair.receivers(side, "vm1", frame)
    uplink = [decapsulated(outer) for outer in got.pop((side, UPLINK))]
    assert got == {(end, name): [frame] for end in Side for name in ("vm2", "vm3")}
    assert sorted(uplink) == [(vtep, 100, frame) for vtep in REMOTES]


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
def test_a_unicast_comes_unchanged_to_one_vm_on_both_instances(pair: Pair, tags: bytes) -> None:
    pair.program(Form.WINDOW)
    frame = ethernet(mac(3), mac(1), tags=tags)
    assert pair.receivers(Side.A, "vm1", frame) == {(end, "vm3"): [frame] for end in Side}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("side", Side)
def test_a_broadcast_from_the_tunnel_comes_unchanged_to_the_vms_of_its_vni(pair: Pair, side: Side, tags: bytes) -> None:
    pair.program(Form.WINDOW)
    frame = ethernet(BROADCAST, FAR, tags=tags)
    got = pair.receivers(side, UPLINK, encapsulated(frame, 100))
    assert got == {(end, name): [frame] for end in Side for name in ("vm1", "vm2", "vm3")}


def test_one_mac_in_two_vnis_is_two_receivers(pair: Pair) -> None:
    pair.program(Form.WINDOW)
    frame = ethernet(mac(1), FAR)
    for vni, name in ((100, "vm1"), (200, "vm4")):
        assert pair.receivers(Side.B, UPLINK, encapsulated(frame, vni)) == {(end, name): [frame] for end in Side}


def test_a_unicast_to_a_remote_mac_leaves_once(pair: Pair) -> None:
    pair.program(Form.WINDOW)
    frame = ethernet(FAR, mac(1))
    got = pair.receivers(Side.B, "vm1", frame)
    assert list(got) == [(Side.B, UPLINK)]
    assert [decapsulated(outer) for outer in got[Side.B, UPLINK]] == [(REMOTES[0], 100, frame)]


def test_drops_are_counted_and_named(switch: Switch) -> None:
    switch.program(Form.FINAL)
    names = {vm.ofport: vm.name for vm in INTENT.vms}
    before = {drop.name: drop.packets for drop in switch.openflow.drops(names)}
    assert "dropped: source MAC is not the VM's (VNI 100, VM vm1)" in before
    switch.inject("vm1", ethernet(BROADCAST, mac(2)))
    switch.inject("vm1", ethernet(UNKNOWN, mac(1)))
    switch.inject(UPLINK, encapsulated(ethernet(BROADCAST, FAR), 300))
    switch.inject(UPLINK, encapsulated(ethernet(BROADCAST, FAR), 100, destination="172.31.0.9"))
    expected = {
        cookie(Kind.DROP_SPOOFED, vni=100, ofport=10),
        cookie(Kind.DROP_UNKNOWN_FROM_VM, vni=100),
        cookie(Kind.DROP_UNKNOWN_VNI),
        cookie(Kind.DROP_UNDERLAY),
    }

    def counted() -> bool:
        grown = {drop.cookie for drop in switch.openflow.drops(names) if drop.packets == before[drop.name] + 1}
        return grown == expected

    eventually(counted, "the drops are counted")


def test_many_frames_are_sent_at_once_and_in_order(pair: Pair) -> None:
    switch = pair.switches[Side.A]
    frames = [ethernet(mac(1), mac(9), payload=number.to_bytes(2, "big") * 700) for number in range(200)]
    for port in ("vm1", "vm2"):
        switch.sent(port)
    switch.openflow.packet_outs((frame, f"output:{PORTS['vm1' if number % 2 else 'vm2']}")
                                for number, frame in enumerate(frames))  # fmt: skip
    found: dict[str, list[bytes]] = {"vm1": [], "vm2": []}

    def all_came() -> bool:
        for port, got in found.items():
            got += switch.sent(port)
        return sum(map(len, found.values())) >= len(frames)

    eventually(all_came, "the frames come")
    assert found == {"vm1": frames[1::2], "vm2": frames[::2]}
