"""What `trace` prints for people. This module is pure but for the clock's zone."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator

from ovs_hotswap.tracing.found import Basis, Direction, Ended, Packet, Path, Trace

_ARROWS = {Direction.SENT: "sent", Direction.RECEIVED: "received", Direction.UNKNOWN: "seen"}
_ENDED = {
    Ended.COUNT: "the number of packets that was asked for has come",
    Ended.SECONDS: "the time is over",
    Ended.RATE: "the switch copied too many packets a second",
    Ended.REMOVED: "an upgrade began, or the instance ended",
    Ended.INTERRUPTED: "it was interrupted",
}
_BASIS = {
    Basis.AGREES: "seen in the datapath, and the flow tables agree",
    Basis.DIFFERS: "seen in the datapath",
    Basis.DATAPATH: "seen in the datapath",
    Basis.INFERRED: "inferred from the flow tables",
    Basis.UNKNOWN: "not known",
}
_HEADER = re.compile(r"\btnl_push\(.*?,out_port\(\d+\)\)")  # whose other end is named already
_RECORDED = {
    True: "the switch recorded that it made them of these flows",
    False: "the switch recorded other flows of which it made them",
}


def packet_lines(packet: Packet, path: Path, new: bool, width: int = 100) -> Iterator[str]:
    """Yield the lines of a packet. A way that was shown already is only named."""
    clock = time.strftime("%H:%M:%S", time.localtime(packet.time)) + f"{packet.time % 1:.6f}"[1:]
    what = f"{clock}  {_ARROWS[packet.direction]:<8}  {packet.text}, {packet.bytes} bytes"
    if not new:
        yield f"{what}  (way {path.number})"
        return
    yield what
    yield from _way(path, width)


def _way(path: Path, width: int) -> Iterator[str]:
    yield from _wrapped(f"  way {path.number}: ", outcome(path), width)
    for number, step in enumerate(path.steps, 1):
        yield from _wrapped(f"    {number}. ", step, width)
    for each in path.conntrack:
        yield from _wrapped("    conntrack: ", each, width)
    for flow in path.datapath:
        last = "no packet yet" if flow.used_s is None else f"the last {flow.used_s:g} s ago"
        yield from _wrapped(
            "    datapath: ", f"{_HEADER.sub('tnl_push(...)', flow.actions)} ({flow.packets} packets, {last})", width
        )
    if path.steps_recorded is False:
        for each in path.recorded:
            yield from _wrapped("    recorded: ", each, width)
    record = None if path.steps_recorded is None else _RECORDED[path.steps_recorded]
    more = [text for text in (record, path.note) if text]
    yield from _wrapped("    known: ", "; ".join([_BASIS[path.basis], *more]), width)


def outcome(path: Path) -> str:
    """Return where the packets came in and went out."""
    came = f"in by {path.port_in}" if path.port_in is not None else "in by a port that is not known"
    if path.dropped:
        return f"{came}, dropped"
    if path.ports_out:
        return f"{came}, out by {', '.join(path.ports_out)}"
    return f"{came}; where it went is not known"


def summary(found: Trace, width: int = 100) -> Iterator[str]:
    yield ""
    seen = sum(each.basis.seen for each in found.paths)
    yield from _wrapped(
        "",
        f"{len(found.packets)} packets in {found.seconds:.1f} s by {len(found.paths)} ways, {seen} of them seen in the"
        f" datapath; the switch copied {found.copied}. It ended because {_ENDED[found.ended]}.",
        width,
    )  # fmt: skip
    for text in found.limits:
        yield from _wrapped("- ", text, width)


def _wrapped(start: str, text: str, width: int) -> Iterator[str]:
    parts = textwrap.wrap(text, max(40, width - len(start)), break_on_hyphens=False, break_long_words=False)
    for number, part in enumerate(parts):
        yield (start if not number else " " * len(start)) + part
