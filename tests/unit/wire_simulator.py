"""A small interpreter of the flows of wire mode: two switches with a bridge each, mirrors, patch ports and the link
between them. It reads the lines that go to ovs-ofctl, and shares no code with what renders them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

LINK = 64_200
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
    priority: int
    match: Mapping[str, str]
    actions: Sequence[str]
    table: int = 0

    @classmethod
    def of(cls, line: str) -> Rule:
        head, actions = line.split(" actions=")
        fields = dict(item.partition("=")[::2] for item in head.split(","))
        assert fields.pop("cookie")
        table = int(fields.pop("table"))
        return cls(int(fields.pop("priority")), fields, re.findall(r"[^,(]+(?:\([^)]*\))?", actions), table)

    def fits(self, port: int, frame: Frame) -> bool:
        seen = {"in_port": port, "pkt_mark": frame.mark, "dl_vlan": frame.tag, "reg0": frame.reg0}
        for name, value in self.match.items():
            if name == "dl_dst":
                assert value == "01:00:00:00:00:00/01:00:00:00:00:00"
                fit = frame.multicast
            elif name in ("ip", "ipv6"):  # all frames here are of IPv4
                fit = name == "ip"
            elif name == "vlan_tci":
                fit = value == ("0x1000/0x1000" if frame.own_tag else "0x0000/0x1000")
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
    """``patches``: the near and the far patch port of each port. ``mirrored``: the ports that have mirrors. ``sent``:
    frames with the ports by which they left. ``processed``: frames that the pipeline has seen, with their ports.
    ``misread``: whether the pipeline has seen a frame of which it does not know the own tag."""

    pipeline: Pipeline
    patches: Mapping[int, tuple[int, int]]
    mirrored: frozenset[int]
    rules: list[Rule] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    processed: list[tuple[int, int]] = field(default_factory=list)
    link: deque[Frame] = field(default_factory=deque)
    misread: bool = False
    copying: int = 0

    def receive(self, port: int, frame: Frame, table: int = 0) -> None:
        fit = [rule for rule in self.rules if rule.table == table and rule.fits(port, frame)]
        if not fit:
            self._foreign(port, frame)
            return
        best = max(rule.priority for rule in fit)
        chosen = [rule for rule in fit if rule.priority == best]
        assert len(chosen) == 1, f"not one flow alone: {chosen}"
        for action in chosen[0].actions:
            if action == "resubmit(,0)":
                self.receive(port, frame)
            elif action.startswith("ct("):  # the frame comes again, in a pass in which nothing is a copy
                self.copying, before = 0, self.copying
                self.receive(port, frame, int(action[3:].partition(",")[0].removeprefix("table=")))
                self.copying = before
            elif action.startswith("move:"):
                assert action == "move:NXM_NX_REG0[0..15]->NXM_OF_VLAN_TCI[]"
                frame = replace(frame, tag=frame.reg0 & 0xFFF)
            elif action.startswith("group:"):  # the switch parses the frame again, and then outputs it by reg0
                self._output(frame.reg0, port, replace(frame, misread=False))
            elif action.startswith("output:"):
                self._output(int(action.removeprefix("output:")), port, frame)
            elif action != "drop":
                header = not action.endswith(("->in_port", "->pkt_mark", "->reg0"))
                assert not (header and self.copying), "since 3.2 such a copy is sent again and again"
                port, frame = changed(action, port, frame)

    def from_link(self, frame: Frame) -> None:
        self.receive(LINK, replace(frame, mark=0, reg0=0))

    def _foreign(self, port: int, frame: Frame) -> None:
        self.processed.append((frame.number, port))
        self.misread = self.misread or frame.misread
        for target in self.pipeline(port, frame):
            self._output(target, port, frame)

    def _output(self, target: int, source: int, frame: Frame) -> None:
        if target == source:
            return  # OpenFlow 1.4, 5.8: a frame does not leave by the port on which it came
        if target == LINK:
            assert len(self.link) < _MOST, "frames go round"
            self.link.append(frame)
            return
        for pair in self.patches.values():
            if target in pair:
                self.receive(pair[1 - pair.index(target)], replace(frame, reg0=0))
                return
        self.sent.append((frame.number, target))
        if target in self.mirrored:
            self.copying += 1
            self.receive(self.patches[target][1], replace(frame, reg0=0))
            self.copying -= 1
