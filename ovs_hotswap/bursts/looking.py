"""Looks at a switch many times in a few seconds: at the counters of its ports and PMD threads.

Nothing is changed and no lock is taken. A look is one question to the main thread for the PMD threads and one for the
ports of each bridge; the scheduler's account is read from ``/proc``. The next look waits for the interval, and for nine
times as long as the last look took: so a switch with many ports is asked less often, and at most for a tenth of the
time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ovs_hotswap.backends import RingStatus
from ovs_hotswap.bursts import texts
from ovs_hotswap.bursts.losses import FULL
from ovs_hotswap.bursts.target import ANSWER_S, Target, bridge_of, target
from ovs_hotswap.bursts.values import NIC, VM_PORT, Cost, Look, Port, Unseen, Window
from ovs_hotswap.clone.rows import ROOT, Rows, single
from ovs_hotswap.config import Config
from ovs_hotswap.counters.reading import CounterReader
from ovs_hotswap.diagnose import cores
from ovs_hotswap.errors import ConfigError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.switch.port_stats import PortStatistics
from ovs_hotswap.switch.rxqs import RxQueue, parse_pmd_rxqs
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

_REST = 9  # times as long as a look
_ROUNDING = 1e-6
_METRICS = "pmd-perf-metrics"
_RING_LOOKS, _RING_INTERVAL_S, _RING_REST = 10, 0.03, 3
"""How often rings are looked at, and the least time between two such looks: also so many times as long as one took."""
_NO_ROOM = 16  # the part of a ring that is free at most if it counts as full
_FEW_PORTS = 4  # of a bridge, which are asked for one by one if not all are to be known

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class _Guests:
    """What is known of VMs. ``receive`` and ``send``: the shortest ring of each kind, by VM."""

    receive: Mapping[str, int] = field(default_factory=dict)
    send: Mapping[str, int] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()


class Looking:
    """A time of looking at the host of a configuration. ``seconds``: its length. ``interval``: the least time between
    two looks, in seconds. ``vm``: whose port alone is looked at, beside those of devices."""

    def __init__(self, config: Config, system: System, seconds: float, interval: float, vm: str | None = None) -> None:
        self._host, self._system = Host(config, system, quick=True), system
        self._seconds, self._interval, self._vm = seconds, interval, vm
        self._unseen: list[Unseen] = []
        self.target: Target

    def window(self) -> Window:
        """Return what was seen. Raises SwitchError if no switch forwards or its database does not answer, StateUnknown
        if it is not known which one does, and ConfigError for a VM that has no port."""
        self._unseen.clear()
        here = self.target = target(self._host)
        rows = here.rows()
        config = dict(single_row(rows).get("other_config", {}))
        guests = self._guests()
        queues = self._tried("Its receive queues", lambda: parse_pmd_rxqs(here.ask("dpif-netdev/pmd-rxq-show"))) or {}
        ports = {name: port for name, port in ports_of(rows, queues, guests).items()
                 if self._vm is None or port.type == NIC or name == self._vm}  # fmt: skip
        if self._vm is not None and self._vm not in ports:
            raise ConfigError(f"there is no VM {self._vm} on this host", hint="`ovs-hotswap vm list` lists them")
        reader = CounterReader(here.paths, self._system, self._host.config.bridge, timeout=ANSWER_S)
        pools = self._tried("Its packet pools", reader.pools) or ()
        key = self._tried("Its version", here.sleep_key) or "pmd-sleep-max"
        words = () if config.get(_METRICS) == "true" else ("-nh",)
        before = self._tried("The work of its PMD threads", lambda: here.ask("dpif-netdev/pmd-perf-show", *words))
        looks, cost = self._looks(here, reader, ports)
        ports = self._with_fullness(ports, looks)
        after = self._tried("The work of its PMD threads", lambda: here.ask("dpif-netdev/pmd-perf-show", *words))
        return Window(
            looks, ports, config, str(here.paths.vswitchd_ctl), str(here.paths.db_socket), key,
            texts.grown(texts.sleeps(before or ""), texts.sleeps(after or "")),
            texts.grown(texts.fills(before or ""), texts.fills(after or "")),
            tuple(guests.send.get(name, 0) for name in ports if guests.send.get(name)), tuple(pools), cost,
            tuple(dict.fromkeys(self._unseen)), self._upgrading(),
        )  # fmt: skip

    def _looks(self, here: Target, reader: CounterReader, ports: Mapping[str, Port]) -> tuple[tuple[Look, ...], Cost]:
        clock, cpu, found, took = self._system.monotonic, time.process_time, [], 0.0
        begun, begun_cpu = clock(), cpu()
        try:
            with _statistics(here, ports, whole=self._vm is None) as counters:
                while True:
                    started = clock()
                    found.append(Look(started, reader.pmds(), counters(), cores.times(here.pid)))
                    took += (last := clock() - started)
                    pause = max(self._interval - last, _REST * last)
                    if clock() + pause > begun + self._seconds + _ROUNDING and len(found) > 1:
                        break
                    self._system.sleep(pause)
        except SwitchError as error:
            self._unseen.append(Unseen("Its counters", error.message, error.hint))
        used = (cpu() - begun_cpu) / max(clock() - begun, 1e-6)
        return tuple(found), Cost(len(found), round(1e3 * took / max(len(found), 1), 2), round(used, 4))

    def _guests(self) -> _Guests:
        """The rings of VMs are the broker's to know. Without it, their lengths are unknown, and nothing else is."""
        try:
            statuses = self._host.backends.vms(read=False)
        except HotswapError as error:
            if self.target.side is not None:  # otherwise there need not be a broker yet
                self._unseen.append(Unseen("The VMs' rings", error.message, error.hint))
            return _Guests()
        sizes = {way: {vm.name: min(found) for vm in statuses if (found := [
                     ring.size for ring in vm.rings if ring.size and ring.started and ring.index % 2 == way])}
                 for way in (0, 1)}  # fmt: skip
        side = self.target.side
        elsewhere = {vm.name for vm in statuses if side is not None and vm.owner not in (None, side)}
        return _Guests(sizes[0], sizes[1], frozenset(elsewhere))

    def _with_fullness(self, ports: dict[str, Port], looks: Sequence[Look]) -> dict[str, Port]:
        """The ports, those of VMs that lost packets with how often their rings were full. A burst fills a ring for
        moments; a ring that is full at most looks is that of a guest which is too slow. Reading rings is work for the
        broker, so it is done where packets were lost alone."""
        lost = {name for name, port in ports.items() if port.vm is not None and not port.elsewhere
                and len(looks) > 1 and _grew(looks, name, FULL)}  # fmt: skip
        if not lost or self.target.side is None:
            return ports
        full, clock = dict.fromkeys(lost, 0), self._system.monotonic
        try:
            for _ in range(_RING_LOOKS):
                started = clock()
                for vm in self._host.backends.vms():
                    if vm.name in lost and any(_is_full(ring) for ring in vm.rings):
                        full[vm.name] += 1
                took = clock() - started
                self._system.sleep(max(_RING_INTERVAL_S - took, _RING_REST * took))
        except HotswapError:  # that it does not answer is known already
            return ports
        return {name: replace(port, full=full[name] / _RING_LOOKS) if name in lost else port
                for name, port in ports.items()}  # fmt: skip

    def _upgrading(self) -> bool:
        try:
            return Upgrader(self._host).unfinished() is not None
        except StateUnknown:
            return True

    def _tried(self, part: str, read: Callable[[], Part]) -> Part | None:
        try:
            return read()
        except HotswapError as error:
            self._unseen.append(Unseen(part, error.message, error.hint))
            return None


def _grew(looks: Sequence[Look], port: str, counter: str) -> bool:
    first, last = ((look.ports or {}).get(port, {}).get(counter, 0) for look in (looks[0], looks[-1]))
    return last > first


def _is_full(ring: RingStatus) -> bool:
    """Whether a guest's receive ring has no buffers for the switch: those that it made available and the switch has not
    used. A ring that is not enabled gets nothing."""
    if ring.index % 2 or not ring.enabled or None in (ring.size, ring.available, ring.used):
        return False
    return ((ring.available or 0) - (ring.used or 0)) & 0xFFFF <= (ring.size or 0) // _NO_ROOM


def single_row(rows: Rows) -> Mapping[str, Mapping[str, str]]:
    return next(iter(rows[ROOT].values()), {})


def ports_of(rows: Rows, queues: Mapping[str, tuple[RxQueue, ...]], guests: _Guests) -> dict[str, Port]:
    """Return the ports of devices and of VMs by name; those that the switch has not made are left out."""
    bridges, found = bridge_of(rows), {}
    for uuid, row in rows["Interface"].items():
        name, kind, number = str(single(row, "name")), str(single(row, "type")), single(row, "ofport")
        if kind not in (NIC, VM_PORT) or uuid not in bridges or not isinstance(number, int) or number < 0:
            continue
        status = row.get("status") or {}
        found[name] = Port(
            name, kind, bridges[uuid], number, status.get("driver_name"), row.get("options") or {},
            row.get("other_config") or {}, _number(status.get("max_rx_queues")), queues.get(name, ()),
            guests.receive.get(name), name in guests.elsewhere, _number(status.get("numa_id") or status.get("numa")),
        )  # fmt: skip
    return dict(sorted(found.items()))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


@contextlib.contextmanager
def _statistics(
    here: Target, ports: Mapping[str, Port], *, whole: bool
) -> Iterator[Callable[[], dict[str, dict[str, int]]]]:  # fmt: skip
    """Yield what returns the counters of all ``ports`` by name. ``whole``: whole bridges are asked for. Raises
    SwitchError."""
    by_bridge: dict[str, dict[int, str]] = {}
    for port in ports.values():
        by_bridge.setdefault(port.bridge, {})[port.ofport] = port.name
    with contextlib.ExitStack() as opened:
        connections = {
            bridge: opened.enter_context(PortStatistics(here.paths.mgmt(bridge), timeout=ANSWER_S))
            for bridge in by_bridge
        }

        def read() -> dict[str, dict[str, int]]:
            found = {}
            for bridge, names in by_bridge.items():
                one_by_one = not whole and len(names) <= _FEW_PORTS
                asked = sorted(names) if one_by_one else [None]
                for number in asked:
                    for there, counted in connections[bridge].read(number).items():
                        if there in names:
                            found[names[there]] = counted
            return found

        yield read
