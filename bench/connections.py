"""How long it takes to make many connections on a switch, to read them, and to remove them again."""

from __future__ import annotations

from dataclasses import dataclass

from ovs_hotswap.clone import conntrack, state
from ovs_hotswap.clone.conntrack_entries import TCP, Dump, Entry, Tuple
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System

ZONES = 64


@dataclass(frozen=True, slots=True)
class Figures:
    """Times in seconds. ``made_s`` has the two dumps in it that find what is missing and what was made."""

    count: int
    made_s: float
    read_s: float
    removed_s: float

    def __str__(self) -> str:
        each = self.made_s / self.count * 1e6
        return (
            f"{self.count} connections: made in {self.made_s:.2f} s ({each:.0f} us each), read in {self.read_s:.2f} s, "
            f"removed in {self.removed_s:.2f} s"
        )


def established(count: int) -> tuple[Entry, ...]:
    """Connections of TCP, in ``ZONES`` zones, each with a mark."""
    entries = []
    for number in range(count):
        client = f"10.9.{number // 250 % 250}.{number % 250 + 1}"
        port = 1024 + number // 62500
        original, reply = Tuple(client, "10.200.0.1", port, 80), Tuple("10.200.0.1", client, 80, port)
        states = ("ESTABLISHED", "ESTABLISHED")
        entries.append(Entry(TCP, original, reply, 1000 + number % ZONES, number + 1, states=states))
    return tuple(entries)


def measure(system: System, paths: InstancePaths, count: int = 10_000) -> Figures:
    """Measure on a switch that has no connections in the zones from 1000. Raises SwitchError, also if a connection was
    not made."""
    wanted = conntrack.ConntrackState(Dump(established(count)), frozenset(), None, tcp_check=True)
    begin = system.monotonic()
    done = conntrack.apply(system, paths, wanted, cut=True)
    made = system.monotonic()
    conntrack.read(paths)
    read = system.monotonic()
    refused = (*done.refused, *state.undo(paths, done.undo))
    removed = system.monotonic()
    if refused:
        raise SwitchError(f"not all connections were made and removed: {refused[0]}")
    return Figures(count, made - begin, read - made, removed - read)
