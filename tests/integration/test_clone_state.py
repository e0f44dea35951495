"""The run-time state of one real switch, made again on another one, while connections use it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from bench.connections import measure
from ovs_hotswap.clone import state
from ovs_hotswap.clone.applied import Applied
from ovs_hotswap.clone.conntrack_entries import ICMP, TCP, UDP, Entry
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.state_bed import VLAN, StateBed, mac, state_bed

_ANSWER_S = 5.0
LABEL = 0xFEDC0000_00000000_00000000_00000001
# Zone 5 is a stateful filter, zone 6 translates the source of what goes to port 7000, zone 7 has FTP.
ESTABLISHED = (
    "table=0,priority=1 actions=NORMAL",
    "table=0,priority=5,ip actions=ct(table=1,zone=5)",
    "table=0,priority=5,udp6 actions=ct(table=1,zone=5)",
    "table=0,priority=9,udp,tp_dst=7000 actions=ct(table=2,zone=6,nat)",
    "table=0,priority=9,udp,tp_src=7000 actions=ct(table=2,zone=6,nat)",
    "table=0,priority=9,tcp,tp_dst=21 actions=ct(table=3,zone=7)",
    "table=0,priority=9,tcp,tp_src=21 actions=ct(table=3,zone=7)",
    "table=0,priority=9,tcp,tp_dst=20 actions=ct(table=3,zone=7)",
    "table=0,priority=9,tcp,tp_src=20 actions=ct(table=3,zone=7)",
    f"table=1,priority=5,ct_state=+trk+est-inv,ct_mark=0x7,ct_label={LABEL:#x} actions=NORMAL",
    "table=2,priority=5,ct_state=+trk+est-inv actions=NORMAL",
    "table=3,priority=5,ct_state=+trk+est-inv actions=NORMAL",
)
COMMIT = f"ct(commit,zone=5,exec(set_field:0x7->ct_mark,set_field:{LABEL:#x}->ct_label)),NORMAL"
NEW = (
    f"table=1,priority=5,ct_state=+trk+new,in_port=1,ip actions={COMMIT}",
    f"table=1,priority=5,ct_state=+trk+new,in_port=1,ipv6 actions={COMMIT}",
    "table=2,priority=5,ct_state=+trk+new,in_port=1,ip actions=ct(commit,zone=6,nat(src=10.0.0.99)),NORMAL",
    "table=3,priority=5,ct_state=+trk+new,in_port=1,tcp actions=ct(commit,zone=7,alg=ftp),NORMAL",
    "table=3,priority=9,ct_state=+trk+new+rel,tcp actions=ct(commit,zone=7),NORMAL",
)


@dataclass
class Pair:
    """Two sockets of vm1 and vm2 that are in a connection."""

    one: socket.socket
    two: socket.socket
    rounds: int = field(default=0)

    def exchange(self) -> bool:
        """Send something in either direction; return whether it arrives."""
        for source, target in ((self.one, self.two), (self.two, self.one)):
            self.rounds += 1
            text = f"round {self.rounds}".encode()
            source.send(text)
            try:
                if target.recv(1 << 12) != text:
                    return False
            except OSError:
                return False
        return True


@dataclass
class Guests:
    bed: StateBed
    pairs: dict[str, Pair]

    def udp(self, port: int, own: int, family: int = socket.AF_INET) -> Pair:
        """A connection from port ``own`` of vm1 to ``port`` of vm2, which is used at once."""
        first, second = ("10.0.0.1", "10.0.0.2") if family == socket.AF_INET else ("fd00::1", "fd00::2")
        one, two = self._bound("vm1", first, own, family), self._bound("vm2", second, port, family)
        one.connect((second, port))
        one.send(b"first")
        text, sender = two.recvfrom(1 << 12)
        assert text == b"first"
        two.connect(sender)
        pair = Pair(one, two)
        assert pair.exchange()
        return pair

    def tcp(self, port: int, client: str = "vm1", server: str = "vm2", own: int = 0) -> Pair:
        addresses = {"vm1": "10.0.0.1", "vm2": "10.0.0.2"}
        with self.bed.at(server, lambda: socket.create_server((addresses[server], port))) as listener:
            listener.settimeout(_ANSWER_S)
            here = (addresses[client], own)
            one = self.bed.at(client, lambda: socket.create_connection((addresses[server], port), _ANSWER_S, here))
            two, _ = listener.accept()
        two.settimeout(_ANSWER_S)
        return Pair(one, two) if client == "vm1" else Pair(two, one)

    def _bound(self, guest: str, address: str, port: int, family: int) -> socket.socket:
        made = self.bed.at(guest, lambda: socket.socket(family, socket.SOCK_DGRAM))
        made.bind((address, port))
        made.settimeout(_ANSWER_S)
        return made


@pytest.fixture(scope="module")
def guests(system: System) -> Iterator[Guests]:
    """The guests are on switch a, and have used connections of all kinds. Switch b lets nothing begin."""
    with state_bed(system) as bed:
        bed.set_flows("a", *ESTABLISHED, *NEW)
        bed.set_flows("b", *ESTABLISHED)
        made = Guests(bed, {})
        made.pairs |= {
            "udp": made.udp(5000, 4000),
            "udp6": made.udp(5001, 4001, socket.AF_INET6),
            "translated": made.udp(7000, 4002),
            "tcp": made.tcp(5000),
            "ftp": made.tcp(21),
        }
        assert made.pairs["tcp"].exchange()
        made.pairs["ftp"].one.send(b"PORT 10,0,0,1,30,97\r\n")  # port 7777 (RFC 959, 4.1.2)
        made.pairs["ftp"].two.recv(1 << 12)
        made.pairs["ftp data"] = made.tcp(7777, client="vm2", server="vm1", own=20)
        assert bed.ping("vm1", "10.0.0.2", 77)
        for command in (("vlog/set", "bridge:file:dbg"), ("dpctl/ct-set-maxconns", "200000"),
                        ("dpctl/ct-set-limits", "zone=9,limit=5"), ("fdb/add", "br0", "vm3", "9", mac(9)),
                        ("tnl/neigh/set", "br0", "172.31.0.9", mac(8)), ("vlog/disable-rate-limit", "dpif"),
                        ("ovs/route/add", "192.0.2.0/24", "br0", "172.31.0.9")):  # fmt: skip
            bed.ask("a", *command)
        yield made
        for pair in made.pairs.values():
            pair.one.close()
            pair.two.close()


def of(entries: tuple[Entry, ...], zone: int, protocol: int) -> list[Entry]:
    return [entry for entry in entries if (entry.zone, entry.protocol) == (zone, protocol)]


def given(done: Applied) -> str:
    return "; ".join(done.done)


def test_everything_is_given_and_nothing_leaves_the_new_side(guests: Guests, system: System) -> None:
    bed, new = guests.bed, guests.bed.paths("b")
    before = state.read(new)
    active = state.read(bed.paths("a"))
    sent = [bed.received(guest, "b") for guest in ("vm1", "vm2", "vm3")]
    done = state.apply(new, active, system, cut=False)
    assert [bed.received(guest, "b") for guest in ("vm1", "vm2", "vm3")] == sent

    own = state.read(new)
    assert set(own.fdb) >= {entry for entry in active.fdb if entry.vlan == VLAN or entry.static}
    entries = own.conntrack.dump.entries
    assert {(entry.mark, entry.labels) for entry in entries if entry.zone == 5} == {(7, LABEL)}
    assert [entry.states for entry in of(entries, 5, TCP)] == [("ESTABLISHED", "ESTABLISHED")]
    assert len(of(entries, 5, UDP)) == 2
    assert of(entries, 5, ICMP)[0].original.icmp == (77, 8, 0)
    assert of(entries, 6, UDP)[0].reply.target == "10.0.0.99"
    assert {entry.helper for entry in of(entries, 7, TCP)} == {"ftp", None}
    # The data connection of FTP is there, but no longer as a related one.
    assert len(done.refused) == 1
    assert "no longer related" in done.refused[0]
    assert state.differences(new, active) == ("the new side does not check TCP sequence numbers",)

    # Each act is undone.
    assert state.undo(new, done.undo) == ()
    after = state.read(new)
    assert (after.fdb, after.conntrack) == (before.fdb, before.conntrack)
    values = [{name: held.value for name, held in each.items() if "neighbour" not in name}
              for each in (before.settings, after.settings)]  # fmt: skip
    assert values[0] == values[1]


def test_connections_continue_on_the_new_side(guests: Guests, system: System) -> None:
    bed, new = guests.bed, guests.bed.paths("b")
    state.apply(new, state.read(bed.paths("a")), system, cut=False)
    guests.pairs["late"] = guests.udp(5002, 4003)  # begins between the last dump and the cut
    bed.move("b")
    state.apply(new, state.read(bed.paths("a")), system, cut=True)
    assert [name for name, pair in guests.pairs.items() if not pair.exchange()] == []
    assert bed.ping("vm1", "10.0.0.2", 77)
    assert [bed.resets(guest) for guest in ("vm1", "vm2")] == [0, 0]
    # What is not known to be established does not pass.
    assert not bed.ping("vm1", "10.0.0.2", 78)


def test_no_frame_for_a_known_address_is_flooded(guests: Guests) -> None:
    """The last frame is to an address that no switch knows, so all earlier ones have been seen when it comes."""
    unknown = mac(50)
    with guests.bed.listening("vm3", "b") as others:
        for _ in range(10):
            guests.bed.send("vm1", "b", mac(2))
        guests.bed.send("vm1", "b", unknown)
        assert wait_until(others, _ANSWER_S) == [unknown]


def test_many_connections_are_made_and_removed(guests: Guests, system: System) -> None:
    before = state.read(guests.bed.paths("b")).conntrack.dump.entries
    figures = measure(system, guests.bed.paths("b"), 10_000)
    print(figures)
    kept = {entry.key for entry in state.read(guests.bed.paths("b")).conntrack.dump.entries}
    assert {entry.zone for entry in before} == {5, 6, 7}
    assert {zone for zone, _, _ in kept} == {5, 6, 7}
