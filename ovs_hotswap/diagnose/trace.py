"""Reads the output of ``ofproto/trace`` and tells it in words. This module is pure.

The text has a block for each bridge (and, after a recirculation, again), with a line for each table that is entered,
below it the actions, and below an action, behind ``->``, ``>>`` or ``>>>>``, what became of it (ofproto/
ofproto-dpif-trace.c, oftrace_node_print_details; ofproto-dpif-xlate.c, xlate_report_table). It ends with the actions of
the datapath. A nested lookup is indented.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

_BRIDGE = re.compile(r'^bridge\("(?P<name>[^"]+)"\)$')
_TABLE = re.compile(r"^(?P<number>\d+)\. (?P<rest>.*)$")
_RULE = re.compile(r"^(?:(?P<match>\S.*), )?priority (?P<priority>\d+)(?:, cookie (?P<cookie>0x[0-9a-f]+))?$")
_NOTE = re.compile(r"^(?:->|>>>>|>>) (?P<text>.*?)(?: <<<<)?$")
_RESUMED = re.compile(r"^recirc\((?P<id>0x[0-9a-f]+)\)(?: - (?P<how>.*))?$")
_LAST = "Datapath actions: "
_FAILED = re.compile(r"^Translation failed \((?P<why>.*)\), packet is dropped\.$")
_INNERMOST = re.compile(r"\([^()]*\)")
_OUTPUTS = {"tnl_push", "tnl_pop", "clone", "lb_output"}  # lib/odp-util.c, format_odp_action
_OUTPUT = re.compile(r"^output:(?P<port>\w+)")
_TUNNEL = re.compile(r"^tunneling to (?P<address>\S+) via (?P<bridge>\S+)")
_NO_NEIGHBOUR = re.compile(r"^neighbor cache miss for (?P<address>\S+) on bridge")
_REFUSED = (
    (re.compile(r"^native tunnel routing failed"), "the switch has no route to the tunnel's other end"),
    (_NO_NEIGHBOUR, "the switch does not know the MAC of {address}, the next hop"),
    (re.compile(r"^Not tunneling to our own address"), "the tunnel would end on this host itself"),
    (re.compile(r"^OFPPC_NO_FWD set"), "the port has the OpenFlow flag NO_FWD, so nothing is sent to it"),
    (re.compile(r"^Nonexistent output port"), "there is no such port"),
    (re.compile(r"^(?:over max translation depth|over \d+ resubmit actions)"), "the flows lead in a circle"),
    (re.compile(r"^(?P<text>.*\b(?:dropping|skipping output)\b.*)"), "{text}"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One table that the packet met. ``match`` is empty if the flow matches everything; ``priority`` is ``None`` if no
    flow matched. ``actions``: each with its notes."""

    bridge: str
    table: int
    match: str
    priority: int | None
    cookie: int
    actions: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def drops(self) -> bool:
        return [action for action, _ in self.actions] == ["drop"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace. ``datapath``: what the datapath would do, of the last part that is known. ``failure``: why the switch
    gave the packet up, or an empty text. ``resumed``: how often it was recirculated, as connection tracking does."""

    steps: tuple[Step, ...]
    datapath: tuple[str, ...]
    failure: str = ""
    resumed: tuple[str, ...] = ()

    @property
    def notes(self) -> Iterator[str]:
        for step in self.steps:
            for _, notes in step.actions:
                yield from notes

    @property
    def delivered(self) -> bool | None:
        """Whether a copy of the packet leaves by a port; ``None`` if the text was not understood."""
        if not self.datapath:
            return None
        return not self.failure and any(_leaves(each) for each in self.datapath)

    @property
    def missing_neighbour(self) -> str | None:
        """The next hop whose MAC is not known to the switch."""
        return next((found["address"] for each in self.notes if (found := _NO_NEIGHBOUR.match(each))), None)


def _leaves(actions: str) -> bool:
    """Whether the datapath's actions output the packet: to a port, which is a number, or into or out of a tunnel."""
    before = None
    while actions != before:
        before, actions = actions, _INNERMOST.sub("", actions)
    return any(word.isdecimal() or word in _OUTPUTS for word in map(str.strip, actions.split(",")))


def parse(text: str) -> Trace:
    """Return the trace. A line of a form that is not known is left out."""
    bridge, steps, datapath, resumed, failure = "", list[_Open](), list[str](), list[str](), ""
    for line in text.splitlines():
        words = line.strip()
        if found := _BRIDGE.match(words):
            bridge = found["name"]
        elif found := _RESUMED.match(words):
            resumed.append(found["how"] or "resumed")
        elif words.startswith(_LAST):
            datapath.append(words.removeprefix(_LAST))
        elif found := _FAILED.match(words):
            failure = found["why"]
        elif bridge and (found := _TABLE.match(words)) and (step := _step(bridge, found)) is not None:
            steps.append(step)
        elif steps and words and not datapath[len(resumed) :] and not _heading(words):
            steps[-1].take(words)
    return Trace(tuple(each.closed() for each in steps), tuple(datapath), failure, tuple(resumed))


def _heading(words: str) -> bool:
    return set(words) <= set("-=") or words.startswith(("Flow: ", "Final flow: ", "Megaflow: "))


@dataclass
class _Open:
    """A step that is being read."""

    bridge: str
    table: int
    match: str
    priority: int | None
    cookie: int
    actions: list[tuple[str, list[str]]] = field(default_factory=list)

    def take(self, words: str) -> None:
        note = _NOTE.match(words)
        if note is None:
            self.actions.append((words, []))
        elif self.actions:
            self.actions[-1][1].append(note["text"])

    def closed(self) -> Step:
        actions = tuple((action, tuple(notes)) for action, notes in self.actions)
        return Step(self.bridge, self.table, self.match, self.priority, self.cookie, actions)


def _step(bridge: str, found: re.Match[str]) -> _Open | None:
    number, rest = int(found["number"]), found["rest"]
    if rest.startswith(("No match", "Packets are IP fragments")):
        return _Open(bridge, number, rest, None, 0)
    rule = _RULE.match(rest)
    if rule is None:
        return None
    return _Open(bridge, number, rule["match"] or "", int(rule["priority"]), int(rule["cookie"] or "0", 16))


# ---------------------------------------------------------------------------------------------------------- in words


def told(
    trace: Trace, meaning: Callable[[int], str | None], ports: Mapping[tuple[str, str], str]
) -> tuple[str, ...]:  # fmt: skip
    """Return what happens to the packet, a sentence for each step. ``meaning``: what the flows with a cookie do, if
    they are flows of ours. ``ports``: the names of ports, by bridge and OpenFlow number."""
    found: list[str] = []
    for step in trace.steps:
        found.append(_told_step(step, meaning, ports))
    found += [f"The packet is recirculated: {how}." for how in trace.resumed if how]
    return (*found, _end(trace))


def _told_step(
    step: Step, meaning: Callable[[int], str | None], ports: Mapping[tuple[str, str], str]
) -> str:  # fmt: skip
    where = f"Bridge {step.bridge}, table {step.table}: "
    if step.priority is None:
        return f"{where}no flow matches, so the packet is dropped."
    known = meaning(step.cookie) if step.cookie else None
    which = known or f"the flow of priority {step.priority} that matches {step.match or 'everything'}"
    done = [text for action, notes in step.actions if (text := _told_action(action, notes, step.bridge, ports))]
    return f"{where}{which}{': ' if done else ''}{'; '.join(done)}."


def _told_action(action: str, notes: tuple[str, ...], bridge: str, ports: Mapping[tuple[str, str], str]) -> str:
    """Return an action in words; empty if it only prepares others."""
    refused = next((text for note in notes if (text := _refused(note))), "")
    tunnel = next((found["address"] for note in notes if (found := _TUNNEL.match(note))), None)
    if action == "drop":
        return "it is dropped"
    if output := _OUTPUT.match(action):
        port = ports.get((bridge, output["port"]), f"port {output['port']}")
        what = f"into the tunnel to {tunnel}" if tunnel is not None else f"out by {port}"
        return f"{what}, but {refused}" if refused else what
    if action == "NORMAL":
        said = refused or next(iter(notes), "")
        return f"as a learning switch does ({said})" if said else "as a learning switch does"
    if action.startswith("CONTROLLER"):
        return "to the controller"
    if action.startswith(("ct(", "group:", "meter:", "learn(")):
        return action
    return refused


def _refused(note: str) -> str:
    for pattern, text in _REFUSED:
        if found := pattern.match(note):
            return text.format(**found.groupdict())
    return ""


def _end(trace: Trace) -> str:
    if trace.delivered is None:
        return "What becomes of the packet is not known: the switch did not say."
    if trace.failure:
        return f"The switch gives the packet up: {trace.failure}."
    if trace.delivered:
        return "So the packet leaves this switch."
    if (address := trace.missing_neighbour) is not None:
        return f"So the packet is dropped until {address} has answered who it is."
    return "So the packet is dropped."
