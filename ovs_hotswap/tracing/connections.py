"""Finds a packet's connection in the switch's connection table. This module is pure.

The table says what a packet is that comes now. So it is asked only where no flow of the datapath shows what connection
tracking said of the packet when it came.
"""

from __future__ import annotations

from collections.abc import Iterable

from ovs_hotswap.clone.conntrack_entries import Entry, Tuple
from ovs_hotswap.tracing.fields import Fields

ORIGINAL, REPLY = "est,trk", "est,rpl,trk"
"""The states of a packet of a known connection, as ``ofproto/trace`` takes them (`--ct-next`)."""


def state_of(entries: Iterable[Entry], found: Fields) -> str | None:
    """Return the state of a packet of one of the connections; ``None`` if it is of none, or begins one."""
    if found.begins or found.addresses is None:
        return None
    for entry in entries:
        if entry.protocol == found.protocol:
            for tuple_, state in ((entry.original, ORIGINAL), (entry.reply, REPLY)):
                if _is(tuple_, found):
                    return state
    return None


def _is(tuple_: Tuple, found: Fields) -> bool:
    """Whether the packet has these addresses and ports. ICMP has an identifier instead, which is not compared."""
    if (tuple_.source, tuple_.target) != found.addresses:
        return False
    return found.ports is None or (tuple_.source_port, tuple_.target_port) == found.ports
