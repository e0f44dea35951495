"""Finds the flows of the datapath that a packet passed. This module is pure.

Flows with the same recirculation number do not overlap, so of those that were used since the packet came, at most one
was the packet's. But a flow matches only the fields that mattered: several may fit what is seen of a packet behind the
switch, and the states of connection tracking are not seen at all. Flows that fit and do the same with the packet are
kept together (``Hop``). If they do different things, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovs_hotswap.diagnose.megaflows import outputs
from ovs_hotswap.tracing.datapath import Flow, changes, matches
from ovs_hotswap.tracing.fields import Fields

_NOT_LONGER_AGO_S = 1.0  # than the packet came: the flow's time is from another clock than the packet's
_DEEPEST = 16  # recirculations


@dataclass(frozen=True, slots=True)
class Hop:
    """A lookup of a packet. ``others``: flows that fit the packet as well as ``flow`` and do the same with it, except
    for what they tell connection tracking."""

    flow: Flow
    others: tuple[Flow, ...] = ()

    @property
    def states(self) -> tuple[str, ...]:
        """The flags of connection tracking that the packet may have had; none if they did not matter."""
        return tuple(dict.fromkeys(each.state for each in (self.flow, *self.others) if each.state is not None))


@dataclass(frozen=True, slots=True)
class Way:
    """The lookups of a packet, in their order. ``complete``: it is not looked up again after the last one."""

    hops: tuple[Hop, ...]

    @property
    def flows(self) -> tuple[Flow, ...]:
        return tuple(each.flow for each in self.hops)

    @property
    def complete(self) -> bool:
        return bool(self.hops) and self.flows[-1].next is None

    @property
    def several(self) -> bool:
        """Whether more than one flow fits somewhere."""
        return any(each.others for each in self.hops)


def sent(flows: Sequence[Flow], in_port: str, found: Fields, age_s: float) -> Way | None:
    """Return the way of a packet that the port with this number of the datapath received ``age_s`` seconds before the
    flows were read; ``None`` if it is not clear."""
    fresh = [each for each in flows if _is_fresh(each, age_s) and each.in_port == in_port and not each.tunnel]
    hop = _hop([each for each in fresh if _begins(each) and matches(each, found)], found)
    return None if hop is None else Way((hop, *_continued(hop, fresh, found)))


def _continued(hop: Hop, flows: Sequence[Flow], found: Fields) -> Iterator[Hop]:
    """Yield the lookups that follow, as far as they are clear."""
    changed = changes(hop.flow.actions)
    for _ in range(_DEEPEST):
        following = hop.flow.next
        if following is None:
            return
        fitting = [each for each in flows if each.recirculated == following and matches(each, found, changed)]
        if (after := _hop(fitting, found)) is None:
            return
        yield after
        hop, changed = after, changed | changes(after.flow.actions)


def received(flows: Sequence[Flow], port: str, found: Fields, age_s: float) -> Way | None:
    """Return the way of a packet that the datapath output to the port with this number, as ``sent`` does."""
    fresh = [each for each in flows if _is_fresh(each, age_s)]
    paths = [
        path
        for first in fresh
        if _begins(first)
        for path in _paths((first,), fresh)
        if port in outputs(path[-1].actions) and _fits(path, found)
    ]
    # What comes by a port whose senders are checked has a flow with its source. A flow without one, as of a tunnel, may
    # fit the packet too, and is not of it.
    return _merged(paths, found) or _merged([path for path in paths if _names_source(path[0])], found)


Path = tuple[Flow, ...]


def _paths(path: Path, flows: Sequence[Flow]) -> Iterator[Path]:
    """Yield all sequences of flows that begin so and end with one after which there is no lookup."""
    last = path[-1]
    if last.next is None:
        yield path
    elif len(path) <= _DEEPEST:
        for each in flows:
            if (each.recirculated, each.in_port, each.tunnel) == (last.next, last.in_port, last.tunnel):
                yield from _paths((*path, each), flows)


def _fits(path: Path, found: Fields) -> bool:
    changed = set().union(*(changes(each.actions) for each in path))
    return all(matches(each, found, changed) for each in path)


def _merged(paths: Sequence[Path], found: Fields) -> Way | None:
    """Return the one way of which all of the paths are."""
    if not paths or len({(path[0].in_port, path[0].tunnel, len(path)) for path in paths}) > 1:
        return None
    hops = [_hop(column, found) for column in zip(*paths, strict=True)]
    return None if None in hops else Way(tuple(hop for hop in hops if hop is not None))


def _hop(candidates: Sequence[Flow], found: Fields) -> Hop | None:
    """Return the lookup for which these flows fit; ``None`` if there is none, or if they do different things."""
    several = list({each.text: each for each in candidates}.values())
    if len(several) > 1 and found.begins:  # the packet that begins a connection is the only one that is new to it
        several = [each for each in several if "+new" in (each.state or "")] or several
    if not several or any(_done(each) != _done(several[0]) for each in several):
        return None
    return Hop(several[0], tuple(several[1:]))


def _done(flow: Flow) -> tuple[frozenset[str], str | None]:
    """Return where packets go: out, and to which lookup."""
    return frozenset(outputs(flow.actions)), flow.next


def _begins(flow: Flow) -> bool:
    return flow.recirculated == "0x0"


def _is_fresh(flow: Flow, age_s: float) -> bool:
    """Whether a packet that came ``age_s`` seconds ago can have been one of the flow's."""
    return flow.used_s is not None and flow.used_s <= age_s + _NOT_LONGER_AGO_S


def _names_source(flow: Flow) -> bool:
    """Whether the flow matches the whole MAC of the sender."""
    found = flow.groups.get("eth", "").partition("src=")[2].partition(",")[0]
    return bool(found) and "/" not in found
