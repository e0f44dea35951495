"""The new instance follows the active one until the cut.

Each round reads both sides and changes on the new one what differs, first in the database, then on each bridge. What
the new side is to be depends only on what the active one is now, and not on what it was: a change that a round misses
because it came later is seen by the next one, and no order of events can be mistaken. Nothing is ever changed on the
active side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ovs_hotswap.clone import database
from ovs_hotswap.clone.changes import Changes, kernel_bridges, ours
from ovs_hotswap.clone.compare import Commands, armed, commands, kept, late, pipeline_differences, with_ports
from ovs_hotswap.clone.dumps import Pipeline, is_ours
from ovs_hotswap.clone.pipeline import BridgePipeline
from ovs_hotswap.clone.rows import Rows, refs, single
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System

_LOCAL = 65534  # OpenFlow 1.0, OFPP_LOCAL
_LOOK_S = 0.05
_FLAGS = 13  # the first version of OpenFlow that shows a flow's flags, in tenths
_SHARE = 4  # of the time: the active switch's main thread answers to its users for the rest of it


class Bridge(Protocol):
    """What a follower needs of a ``BridgePipeline``."""

    def read(self, version: int | None = None, ours: Callable[[int], bool] = is_ours) -> Pipeline: ...

    def send(self, commands: Commands) -> None: ...


@dataclass(frozen=True, slots=True)
class Databases:
    """What a follower does with the databases; tests have others (``database``)."""

    bring: Callable[[InstancePaths, InstancePaths, Changes], list[str]] = database.bring
    differences: Callable[[InstancePaths, InstancePaths, Changes], list[str]] = database.differences
    rows: Callable[[InstancePaths], Rows] = lambda paths: database.read(paths).rows


@dataclass(frozen=True, slots=True)
class Round:
    """What differed when a round began, and was changed: texts of ``database`` and, by bridge, ``bridges``."""

    database: tuple[str, ...] = ()
    bridges: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.database or any(self.bridges.values()))

    @property
    def texts(self) -> list[str]:
        return [*self.database, *(f"{bridge}: {text}" for bridge, texts in self.bridges.items() for text in texts)]


@dataclass(frozen=True, slots=True)
class Settled:
    """``left``: what still differed at the end, or kept changing; empty if the new side is equal and nothing came for
    the quiet time. ``rounds``: how many were made."""

    left: tuple[str, ...]
    rounds: int


class Follower:
    """Keeps the new instance like the active one. ``changes`` is what is to be otherwise on the new side; ``ours`` says
    of a cookie whether a flow is ovs-hotswap's own. All methods raise SwitchError if a side does not answer."""

    def __init__(
        self,
        system: System,
        active: InstancePaths,
        new: InstancePaths,
        changes: Changes,
        *,
        own_cookie: Callable[[int], bool] = is_ours,
        bridge: Callable[[InstancePaths, str], Bridge] | None = None,
        databases: Databases = Databases(),
    ) -> None:
        self._system = system
        self._bridge = bridge or (lambda paths, name: BridgePipeline(system, paths, name))
        self._databases = databases
        self._active, self._new = active, new
        self.changes = changes
        self._own_cookie = own_cookie

    def round(self) -> Round:
        """Make the new side like the active one, once."""
        found = self._databases.bring(self._active, self._new, self.changes)
        rows = self._databases.rows(self._active)
        bridges = {}
        for name in foreign_bridges(rows):
            source, target = self._pair(name, rows)
            if differences := pipeline_differences(target, source):
                self._bridge(self._new, name).send(commands(target, source))
            bridges[name] = tuple(differences)
        return Round(tuple(found), bridges)

    def settle(self, quiet_s: float, timeout: float, alive: Callable[[], bool] = lambda: True) -> Settled:
        """Make rounds until one finds both sides equal and the active side as it was ``quiet_s`` before, or until
        ``timeout``. Between them it rests, so that reading takes a quarter of the time at most.

        A round that fails is made again: the active side may have changed under it (a group that is already gone). If
        the last one fails, or one of the sides is not ``alive`` any longer, its error is raised.
        """
        end, rounds, calm = self._system.monotonic() + timeout, 0, None
        while True:
            began = self._system.monotonic()
            try:
                texts = self.round().texts
            except SwitchError as error:
                if self._system.monotonic() >= end or not alive():
                    raise
                texts = [error.message]
            now, rounds = self._system.monotonic(), rounds + 1
            calm = None if texts else began if calm is None else calm
            if calm is not None and now - calm >= quiet_s:
                return Settled((), rounds)
            if now >= end:
                return Settled(tuple(texts) or ("the active side was not quiet for long enough",), rounds)
            self._system.sleep(min(max(_LOOK_S, (now - began) * (_SHARE - 1)), max(end - now, 0.0)))

    def equal(self, tries: int = 1) -> list[str]:
        """Return how the new side differs from what it is to be until the cut; empty if it does not. It is the last
        look before the cut, with the controller paused or without. With one try nothing is changed. With more, a round
        is made before each further one: an active side that is learning is seldom the same twice."""
        while (found := self._differences()) and tries > 1:
            self.round()
            tries -= 1
        return found

    def _differences(self) -> list[str]:
        found = [*self._databases.differences(self._active, self._new, self.changes)]
        rows = self._databases.rows(self._active)
        for name in foreign_bridges(rows):
            source, target = self._pair(name, rows)
            found += [f"{name}: {text}" for text in pipeline_differences(target, source)]
        return found

    def unseen(self) -> list[str]:
        """Return what cannot be read of the active side, and so is not copied: a text for each bridge."""
        old = [name for name in foreign_bridges(self._databases.rows(self._active))
               if self._bridge(self._active, name).read(ours=self._own_cookie).version < _FLAGS]  # fmt: skip
        return [f"bridge {name} allows no version of OpenFlow from 1.3 on: the flag send_flow_rem of its flows cannot"
                " be read, and is not copied" for name in old]  # fmt: skip

    def arm(self) -> int:
        """Start the flows' timeouts on the new side, right before the cut; return how many flows have any. From then on
        ``round`` would take them away again: only ``late`` may be used."""
        count = 0
        for name in foreign_bridges(self._databases.rows(self._active)):
            source = self._bridge(self._active, name).read(ours=self._own_cookie)
            self._bridge(self._new, name).send(armed(source))
            count += sum(flow.timed for flow in source.flows.values())
        return count

    def late(self) -> list[str]:
        """Do on the new side what the active one's controllers have changed since the cut, and return it.

        It serves while a controller that cannot be paused still programs the active side, and may be repeated. After
        the cut both sides learn and expire flows for themselves; what that can have made stays (``compare.late``). The
        databases are not looked at.
        """
        found: list[str] = []
        for name in foreign_bridges(self._databases.rows(self._active)):
            source = self._bridge(self._active, name).read(ours=self._own_cookie)
            target = self._bridge(self._new, name).read(source.version, self._own_cookie)
            source = late(target, source)
            if differences := pipeline_differences(target, source):
                self._bridge(self._new, name).send(commands(target, source))
                found += [f"{name}: {text}" for text in differences]
        return found

    def _pair(self, name: str, rows: Rows) -> tuple[Pipeline, Pipeline]:
        """Return what the new side's bridge is to be, and what it is."""
        source = self._bridge(self._active, name).read(ours=self._own_cookie)
        target = self._bridge(self._new, name).read(source.version, self._own_cookie)
        ports, there = foreign_ports(rows, name), foreign_ports(self._databases.rows(self._new), name)
        both = {port for port in ports if port in there}
        vms = vms_of(ports)
        return with_ports(kept(source), both, vms), with_ports(target, both, vms)


def vms_of(ports: Mapping[str, str]) -> set[str]:
    """Return the numbers of VMs' ports among those of ``foreign_ports``."""
    return {number for number, kind in ports.items() if kind == "dpdkvhostuserclient"}


def foreign_bridges(rows: Rows) -> list[str]:
    """Return the names of the bridges that are copied: others', of the userspace datapath. They are sorted."""
    own = ours(rows) | kernel_bridges(rows).keys()
    return sorted(str(single(row, "name")) for uuid, row in rows.get("Bridge", {}).items() if uuid not in own)


def foreign_ports(rows: Rows, bridge: str) -> dict[str, str]:
    """Return the ports of a bridge that are not parts of ovs-hotswap, by OpenFlow number as ``ovs-ofctl`` prints it,
    with their types."""
    own, ports, interfaces = ours(rows), rows.get("Port", {}), rows.get("Interface", {})
    row = next((row for row in rows.get("Bridge", {}).values() if single(row, "name") == bridge), {})
    members = {interface.uuid for port in refs(row.get("ports", ()))
               for interface in refs(ports.get(port.uuid, {}).get("interfaces", ()))}  # fmt: skip
    found = [interfaces[uuid] for uuid in members - own if uuid in interfaces]
    numbers = {single(each, "ofport"): str(single(each, "type")) for each in found}
    return {"LOCAL" if number == _LOCAL else str(number): kind for number, kind in numbers.items() if number}
