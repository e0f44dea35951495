"""A small interpreter of the flows of wire mode: two switches with a bridge and a carrier each, mirrors, patch ports
and the link between them. It reads the lines that go to ovs-ofctl, and shares no code with what renders them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

LINK = 4000
_MOST = 1000  # frames on their way, by which a loop is seen


@dataclass(frozen=True)
class Frame:
    """``tag``: ours. ``own_tag``: whether the guest's frame has one. ``misread``: a switch that looks at one tag only
    (``vlan-limit`` 1) has looked at ours, and so does not know what is behind it."""

    number: int
    multicast: bool = False
    own_tag: bool = False
    mark: int = 0
    tag: int | None = None
    reg0: int = 0
    misread: bool = False


@dataclass(frozen=True)
class Rule:
    table: int
    priority: int
    match: Mapping[str, str]
    actions: Sequence[str]

    @classmethod
    def of(cls, line: str) -> Rule:
        head, actions = line.split(" actions=")
        fields = dict(item.partition("=")[::2] for item in head.split(","))
        assert fields.pop("cookie")
        return cls(
            int(fields.pop("table")), int(fields.pop("priority")), fields, re.findall(r"[^,(]+(?:\([^)]*\))?", actions)
        )

    def fits(self, port: int, frame: Frame) -> bool:
        seen = {"in_port": port, "pkt_mark": frame.mark, "dl_vlan": frame.tag, "reg0": frame.reg0}
        for name, value in self.match.items():
            if name == "dl_dst":
                assert value == "01:00:00:00:00:00/01:00:00:00:00:00"
                fit = frame.multicast
            elif name == "dl_type":  # the guest's tag, where ours is the only one that the switch looks at
                fit = value == "0x8100" and frame.own_tag and frame.tag is not None
            else:
                fit = int(value, 0) == seen[name]
            if not fit:
                return False
        return True


def changed(action: str, port: int, frame: Frame) -> tuple[int, Frame]:
    """What an action makes of in_port and a frame."""
    if action == "pop_vlan":
        return port, replace(frame, tag=None, misread=frame.own_tag)
    if action == "push_vlan:0x88a8":
        return port, replace(frame, tag=0)
    found = re.fullmatch(r"set_field:(\w+)->(\w+)", action)
    assert found is not None, action
    value = int(found[1], 0)
    if found[2] == "in_port":
        return value, frame
    if found[2] == "pkt_mark":
        return port, replace(frame, mark=value)
    if found[2] == "reg0":
        return port, replace(frame, reg0=value)
    assert found[2] == "vlan_vid"
    assert value & 0x1000
    return port, replace(frame, tag=value & 0xFFF)


Pipeline = Callable[[int, Frame], Iterable[int]]


@dataclass
class Switch:
    """``carried``: patch ports by the ports that they are for; ``mirrored``: those of these ports that have mirrors.
    ``sent``: what left by each port, ``processed``: the frames that this pipeline has seen with their ports."""

    pipeline: Pipeline
    patches: Mapping[int, tuple[int, int]]  # port: (patch port on the bridge, patch port on the carrier)
    mirrored: frozenset[int]
    bridge: list[Rule] = field(default_factory=list)
    carrier: list[Rule] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    processed: list[tuple[int, int]] = field(default_factory=list)
    link: deque[Frame] = field(default_factory=deque)
    misread: bool = False

    def receive(self, port: int, frame: Frame) -> None:
        self._on_bridge(port, frame)

    def from_link(self, frame: Frame) -> None:
        self._run(self.carrier, 0, LINK, replace(frame, mark=0, reg0=0), carrier=True)

    def _on_bridge(self, port: int, frame: Frame) -> None:
        self._run(self.bridge, 0, port, frame, carrier=False)

    def _run(self, rules: Sequence[Rule], table: int, port: int, frame: Frame, *, carrier: bool) -> None:
        fit = [rule for rule in rules if rule.table == table and rule.fits(port, frame)]
        if not fit:
            if not carrier:
                self._foreign(port, frame)
            return
        best = max(rule.priority for rule in fit)
        chosen = [rule for rule in fit if rule.priority == best]
        assert len(chosen) == 1, f"not one flow alone: {chosen}"
        for action in chosen[0].actions:
            if action == "resubmit(,0)":
                self._run(rules, 0, port, frame, carrier=carrier)
            elif action == "group:1":  # the switch parses the frame again
                self._run(rules, 1, port, replace(frame, misread=False), carrier=carrier)
            elif action.startswith("output:"):
                self._output(int(action.removeprefix("output:")), port, frame, carrier=carrier)
            elif action != "drop":
                port, frame = changed(action, port, frame)

    def _foreign(self, port: int, frame: Frame) -> None:
        self.processed.append((frame.number, port))
        self.misread = self.misread or frame.misread
        for target in self.pipeline(port, frame):
            self._output(target, port, frame, carrier=False)

    def _output(self, target: int, source: int, frame: Frame, *, carrier: bool) -> None:
        if target == source:
            return  # OpenFlow 1.4, 5.8: a frame does not leave by the port on which it came
        if carrier:
            if target == LINK:
                assert len(self.link) < _MOST, "frames go round"
                self.link.append(frame)
            else:
                near = next(near for near, far in self.patches.values() if far == target)
                self._on_bridge(near, replace(frame, reg0=0))
            return
        for near, far in self.patches.values():
            if target == near:
                self._run(self.carrier, 0, far, replace(frame, reg0=0), carrier=True)
                return
        self.sent.append((frame.number, target))
        if target in self.mirrored:
            self._run(self.carrier, 0, self.patches[target][1], replace(frame, reg0=0), carrier=True)
