"""One look at the host for its metrics: cheap questions, each of which may stay without an answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ovs_hotswap.backends import BackendMode, VmStatus
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.config import Config, Program
from ovs_hotswap.counters.reading import PARTS, CounterReader
from ovs_hotswap.counters.values import SwitchCounters
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import event_log
from ovs_hotswap.host.host import Host
from ovs_hotswap.metrics.history import Ended, EventsRead, History, with_events, with_upgrades
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent, load_intent
from ovs_hotswap.overlay.ports import UPLINK
from ovs_hotswap.plan.journal import Journals, parse
from ovs_hotswap.plan.records import Phase
from ovs_hotswap.switch.paths import InstanceRecord, read_record
from ovs_hotswap.system import System, files, host_error
from ovs_hotswap.uplink.base import make_uplink
from ovs_hotswap.vm_ports import VmPort
from ovs_hotswap.watchdog import report

Kind = TypeVar("Kind")
_TIMEOUT_S = 1.0  # for each of a few questions: a scrape must end within the ten seconds that Prometheus waits
_RARELY = frozenset({"ports", "flows"})  # what costs most
_RARELY_LOOKS = 4
_SETTLED_LOOKS, _SETTLED_S = 2, 10.0  # other_config:stats-update-interval is 5 s by default
_HOST_PARTS = ("active", "uplink", "vms", "intent", "broker", "journal")


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upgrade that is under way or was interrupted. ``started``: seconds since the epoch."""

    started: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. A field is ``None`` if it could not be read, and then its name is in ``unknown``.

    ``time``: seconds since the epoch. ``watch``: the document of `watch status`. ``records``: what each side was
    started with. ``counters``: of each side. ``ports``: of the VMs, by name; ``vnis``: their VNIs, where the intent has
    them. ``readable``: whether the journal could be read; if so, ``unfinished`` is ``None`` where no upgrade is.
    ``unknown``: why a part could not be read, by the part and its side, or an empty text for the host.
    """

    time: float
    watch: Mapping[str, Any]
    active: Side | None = None
    uplink: Side | None = None
    vms: tuple[VmStatus, ...] | None = None
    broker: BrokerStatus | None = None
    readable: bool = True
    unfinished: Unfinished | None = None
    records: Mapping[Side, InstanceRecord] = field(default_factory=dict)
    counters: Mapping[Side, SwitchCounters] = field(default_factory=dict)
    ports: Mapping[str, VmPort] | None = None
    vnis: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(slots=True)
class Rest:
    """For how many looks a side has served no VM, and since when (monotonic). ``unknown``: why a part that is read
    rarely could not be read last."""

    looks: int = 0
    since: float = -math.inf
    unknown: Mapping[str, str] = field(default_factory=dict)

    def skips(self, now: float, *, rests: bool) -> bool:
        """Whether what is read rarely is left out at this look. ``rests``: the side serves no VM. What it counted when
        it did is in the database some seconds later."""
        if not rests:
            self.looks, self.since = 0, now
            return False
        self.looks += 1
        settled = self.looks > _SETTLED_LOOKS and now - self.since >= _SETTLED_S
        return settled and self.looks % _RARELY_LOOKS != 0


class HostReader:
    """Looks at a host again and again. The overlay intent is read again only when its file has changed, and the ports
    and flows of an instance that serves no VM at one look of four: their counters change little, and cost the most."""

    def __init__(self, config: Config, system: System, *, make_host: Callable[..., Host] = Host) -> None:
        self._config, self._system, self._make_host = config, system, make_host
        self._intent: tuple[tuple[int, int], Intent] | None = None
        self._rests = {side: Rest() for side in Side}

    def look(self) -> Look:
        """Return what can be seen now. Raises StateUnknown only if it cannot be read what the two instances of a host
        that others program are (``switch.paths.read_stock``)."""
        unknown: dict[tuple[str, str], str] = {}

        def tried(part: str, act: Callable[[], Kind]) -> Kind | None:
            try:
                return act()
            except (HotswapError, OSError) as fault:
                unknown[part, ""] = (host_error(fault) if isinstance(fault, OSError) else fault).message
                return None

        config, system = self._config, self._system
        overlay = config.program is Program.OVERLAY
        intent = tried("intent", self._present_intent) if overlay else None
        host = self._make_host(config, system, quick=True, intent=intent)
        known = intent is not None or not overlay
        ports = tried("intent", lambda: host.vm_ports) if known else None
        vms = tried("vms", lambda: tuple(host.backends.vms(read=False)))
        broker = config.backend is BackendMode.BROKER
        silent = unknown.get(("vms", "")) if broker else None
        if silent is not None:
            unknown["broker", ""] = silent  # it is not asked twice
        journal = tried("journal", lambda: (Journals(config.state_dir, system).read(),))
        active = tried("active", host.recorded_active)
        serving = {active, *(vm.owner for vm in vms or ())}
        sure = vms is not None and active is not None and journal == (None,) and config.uplink.driver != "exclusive"
        counters = {side: self._counters(host, side, rests=sure and side not in serving) for side in Side}
        for side, each in counters.items():
            if each.process is not None:
                unknown |= {(part, side.value): why for part, why in each.unknown.items()}
        try:
            return Look(
                time=system.wall(),
                watch=report.read(config, system),
                active=active,
                uplink=tried("uplink", lambda: self._uplink_side(host, counters)) if known and self._steers else None,
                vms=vms,
                broker=tried("broker", lambda: host.broker.status()) if broker and silent is None else None,
                readable=journal is not None,
                unfinished=_unfinished(journal[0]) if journal else None,
                records={side: found for side in Side if (found := read_record(host.instances[side].paths.record))},
                counters=counters,
                ports=None if ports is None else {port.name: port for port in ports},
                vnis={} if intent is None else {vm.name: vm.vni for vm in intent.vms},
                unknown=unknown,
            )
        finally:
            if broker:
                host.broker.close()

    @property
    def _steers(self) -> bool:
        return self._config.program is Program.OVERLAY and self._config.uplink.driver != "none"

    def _uplink_side(self, host: Host, counters: Mapping[Side, SwitchCounters]) -> Side | None:
        """Return the side to which the uplink is steered, without a question to a switch that may hang. The connection
        to the kernel ends with the answer: each scrape has a thread of its own, and such a connection belongs to one
        thread. Raises UplinkError."""
        driver = self._config.uplink.driver
        if driver == "exclusive":
            found = [side for side, each in counters.items() if each.process and UPLINK in (each.ports or {})]
            return found[0] if len(found) == 1 else None
        return make_uplink(self._config, host.intent, host.uplink_ends, quick=driver == "announce").owner()

    def _counters(self, host: Host, side: Side, *, rests: bool) -> SwitchCounters:
        """Return what a side has counted. A bridge that others program has no flows of the overlay."""
        rest, overlay = self._rests[side], self._config.program is Program.OVERLAY
        skips = rest.skips(self._system.monotonic(), rests=rests)
        leave = {"conntrack" if overlay else "flows", *(_RARELY if skips else ())}
        reader = CounterReader(host.instances[side].paths, self._system, self._config.bridge, timeout=_TIMEOUT_S)
        found = reader.look([part for part in PARTS if part not in leave])
        if skips and found.process is not None:
            return replace(found, unknown={**found.unknown, **rest.unknown})
        rest.unknown = {part: why for part, why in found.unknown.items() if part in _RARELY}
        return found

    def _present_intent(self) -> Intent:
        path = self._config.overlay
        with files(path):
            found = path.stat()
        mark = found.st_ino, found.st_mtime_ns
        if self._intent is None or self._intent[0] != mark:
            self._intent = mark, load_intent(path, self._config)
        return self._intent[1]

    def history(self, before: History) -> History:
        """Return ``before`` with what has ended or happened since; at the first look nothing counts. Journals and
        events that cannot be read now are read at a later look."""
        journals = Journals(self._config.state_dir, self._system).history()  # the newest first
        if not before.begun:
            read = self._with_events(before).read
            return replace(before, begun=True, journal=journals[0].name if journals else "", read=read)
        new = sorted(path for path in journals if path.name > before.journal)
        return self._with_events(with_upgrades(before, _ended(new)))

    def _with_events(self, history: History) -> History:
        """Read the events behind those that are counted. A file that was renamed since is read to its end first."""
        paths = event_log.older_events_path(self._config), event_log.events_path(self._config)
        for path in paths:
            try:
                with path.open("rb") as file:
                    found = os.fstat(file.fileno())
                    here = EventsRead(found.st_ino, 0)
                    if here.inode == history.read.inode and found.st_size >= history.read.offset:
                        here = history.read  # a shorter file is another one, to which the system gave the same inode
                    elif path == paths[0] and history.read.inode:  # renamed before the last look
                        continue
                    file.seek(here.offset)
                    whole, _, _ = file.read().rpartition(b"\n")
            except OSError:
                continue
            end = here.offset + len(whole) + 1 if whole else here.offset
            history = with_events(history, event_log.parsed(whole.splitlines()), EventsRead(here.inode, end))
        return history


def _unfinished(contents: Any) -> Unfinished | None:
    if contents is None:
        return None
    return Unfinished(contents.header.started, bool(contents.standing.failure))


def _ended(paths: list[Path]) -> Iterator[Ended]:
    for path in paths:
        try:
            contents = parse(path.read_bytes(), str(path))
            if contents is None:
                continue
            standing = contents.standing
        except (OSError, HotswapError):
            continue
        if contents.header.kind == "upgrade":
            yield Ended.of(path.name, Phase(standing.phase), contents.records, standing.facts)


def every_part(config: Config, running: Callable[[Side], bool]) -> Iterator[tuple[str, str]]:
    """Yield each part of a look that may be unknown, with its side: what does not apply to a host is left out."""
    overlay = config.program is Program.OVERLAY
    leave = set() if overlay and config.uplink.driver != "none" else {"uplink"}
    leave |= set() if config.backend is BackendMode.BROKER else {"broker"}
    yield from ((part, "") for part in _HOST_PARTS if part not in leave)
    for side in Side:
        if running(side):
            yield from ((part, side.value) for part in PARTS if part != ("conntrack" if overlay else "flows"))
