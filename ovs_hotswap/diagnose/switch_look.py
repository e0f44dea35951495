"""A look at the active instance for `diagnose`: first at what it is, then at its counters, twice.

Open vSwitch adds packets of its caches to the counters of flows every half second (ofproto-dpif-upcall.c,
udpif_revalidator). So the first look at counters comes so long after the beginning: what was dropped before that is in
the counters then, and what they grow by was dropped while we looked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ovs_hotswap.clone.dumps import parse_ports
from ovs_hotswap.counters.reading import PARTS, CounterReader
from ovs_hotswap.counters.values import SwitchCounters
from ovs_hotswap.diagnose import core_use, cores, megaflows
from ovs_hotswap.diagnose.facts import CoreUse, Hop, Port, Switch, Unseen, Wanted
from ovs_hotswap.diagnose.host_faults import STARVED
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import flow_tables
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.column_values import uuids
from ovs_hotswap.switch.datapath import USERSPACE, DatapathPort, parse_numbers, ports_with_mtus
from ovs_hotswap.switch.openflow import WITH_BUNDLES, OpenFlow
from ovs_hotswap.switch.pmd import parse_pmd_iterations
from ovs_hotswap.switch.rpc import quick_call, transact
from ovs_hotswap.switch.rxqs import RxQueue, parse_pmd_rxqs
from ovs_hotswap.switch.tunnel import parse_neighbours, parse_routes

_ANSWER_S = 1.0
_LATE_S = 0.5  # until packets are in the counters of flows
_MOST_FLOWS = 20_000  # of the datapath: to dump these takes the switch's main thread about 0.1 s
_FLOWS = re.compile(r"^\s*flows:\s*(\d+)$", re.MULTILINE)

Part = TypeVar("Part")


def appctl(host: Host, side: Side, command: str, *words: str) -> str:
    """Ask the main thread of a side. Raises SwitchError, and NoAnswer after a second."""
    return str(quick_call(host.control(side), command, list(words), timeout=_ANSWER_S))


class SwitchLook:
    """A look at the instance of a side. ``seconds``: between the two looks at its counters."""

    def __init__(self, host: Host, side: Side, wanted: Wanted, seconds: float) -> None:
        self._host, self._side, self._wanted, self._seconds = host, side, wanted, seconds
        self._instance = host.instances[side]
        self._served = self._instance.database_pid() is not None
        self._reader = CounterReader(self._instance.paths, host.system, wanted.bridge, timeout=_ANSWER_S)
        self._unseen: list[Unseen] = []
        self._omitted: list[str] = []
        self._bridge_of: Mapping[str, str] = {vm.name: vm.bridge for vm in wanted.vms.values()}

    def switch(self) -> tuple[Switch, tuple[Unseen, ...]]:
        """Return what was seen, and the parts that could not be read, which are ``None``."""
        paths, pid, clock = self._instance.paths, self._instance.pid(), self._host.system.monotonic
        found = Switch(self._side, str(paths.run_dir), str(paths.vswitchd_ctl), str(paths.log), self._instance.life(),
                       database=self._served)  # fmt: skip
        if found.life is not Life.RUNS or pid is None:
            return found, ()
        try:
            self._ask("version")
        except SwitchError as error:
            return replace(found, silent=error.message), ()
        begun = clock()
        if self._served:
            self._bridge_of = self._tried("bridges", self._bridges_of_ports) or self._bridge_of
        else:  # it then serves no OpenFlow either (``Instance.lacks_database``), and each question would take seconds
            self._omitted.append(f"instance {self._side} has no ovsdb-server, so its flows and the counters of its "
                                 "ports were not read")  # fmt: skip
        found = replace(
            found, ports=self._tried("ports", self._ports),
            differences=self._tried("flows", self._differences) if self._wanted.overlay and self._served else (),
            routes=self._tried("routes", self._routes), neighbours=self._tried("neighbours", self._neighbours),
        )  # fmt: skip
        self._host.system.sleep(max(0.0, _LATE_S - (clock() - begun)))
        times, rounds, at = cores.times(pid), self._tried("PMD threads", self._iterations), clock()
        before = self._counters()
        self._host.system.sleep(self._seconds)
        after, watched = self._counters(), clock() - at
        later = self._tried("PMD threads", self._iterations)
        moved = {core for core, count in (later or {}).items() if (rounds or {}).get(core, count) != count}
        uses = core_use.uses(times, cores.times(pid), clock() - at, moved)
        before, after = self._read_twice(before, after)
        found = replace(
            found, before=before, after=after, watched=watched, cores=self._with_others(uses, pid),
            megaflows=self._tried("datapath flows", self._megaflows),
            standing=tuple(sorted((rounds or {}).keys() & (later or {}).keys() - moved)),
        )  # fmt: skip
        if not times and rounds:
            self._omitted.append("the kernel does not say how long PMD threads wait for their cores")
        return replace(found, omitted=tuple(self._omitted)), tuple(self._unseen)

    @staticmethod
    def _with_others(uses: tuple[CoreUse, ...], pid: int) -> tuple[CoreUse, ...]:
        named = cores.others([use.core for use in uses if use.waits >= STARVED], pid)
        return tuple(replace(use, others=named.get(use.core, ())) for use in uses)

    def _ask(self, command: str, *words: str) -> str:
        return appctl(self._host, self._side, command, *words)

    def _tried(self, part: str, read: Callable[[], Part]) -> Part | None:
        try:
            return read()
        except HotswapError as error:
            self._miss(part, error.message, error.hint)
            return None

    def _miss(self, part: str, why: str, command: str | None = None) -> None:
        """Note that a part could not be read, once."""
        found = Unseen(f"The {part} of instance {self._side}", why, command)
        if found not in self._unseen:
            self._unseen.append(found)

    @property
    def _bridges(self) -> list[str]:
        """The bridges with ports of VMs and uplinks."""
        names = (*self._wanted.vms, *self._wanted.uplinks)
        return sorted({self._bridge_of.get(name, self._wanted.bridge) for name in names} - {""})

    def _counters(self) -> SwitchCounters:
        """The counters, with the statistics that ports have at this moment. Those of the database are up to five
        seconds old: a port of which there are no others has none."""
        left_out = {"ports", "flows"} if not self._served else {"flows"} if not self._wanted.overlay else set()
        found = self._reader.look([part for part in PARTS if part not in left_out])
        if found.ports is None:
            return found
        present: dict[str, Mapping[int, Mapping[str, int]]] = {
            bridge: self._tried("port counters", partial(self._reader.present_ports, bridge)) or {}
            for bridge in self._bridges
        }
        return replace(found, ports={
            name: replace(port, statistics=present.get(self._bridge_of.get(name, ""), {}).get(port.ofport or 0, {}))
            for name, port in found.ports.items()
        })  # fmt: skip

    def _read_twice(self, before: SwitchCounters, after: SwitchCounters) -> tuple[SwitchCounters, SwitchCounters]:
        """Name what could not be read, once, and keep statistics of a port only if both looks have them."""
        unknown = {**before.unknown, **after.unknown}
        for part, why in unknown.items():
            self._miss(f"counters ({part})", why, f"its log: {self._instance.paths.log}")
        both = {name for name, port in (before.ports or {}).items() if port.statistics} & {
            name for name, port in (after.ports or {}).items() if port.statistics}  # fmt: skip
        return _only(before, both), _only(after, both)

    def _bridges_of_ports(self) -> dict[str, str]:
        """The bridge of each interface, by name."""
        columns = {"Bridge": ["name", "ports"], "Port": ["_uuid", "interfaces"], "Interface": ["_uuid", "name"]}
        selects = [{"op": "select", "table": table, "where": [], "columns": each} for table, each in columns.items()]
        answers = transact(self._instance.paths.db_socket, selects, timeout=_ANSWER_S)
        bridges, ports, interfaces = (answer["rows"] for answer in answers)
        bridge_of = {uuid: row["name"] for row in bridges for uuid in uuids(row["ports"])}
        port_of = {uuid: row["_uuid"][1] for row in ports for uuid in uuids(row["interfaces"])}
        found = ((row["name"], bridge_of.get(port_of.get(row["_uuid"][1], ""))) for row in interfaces)
        return {name: bridge for name, bridge in found if bridge is not None}

    def _iterations(self) -> dict[int, int]:
        """How often each PMD thread that has queues to poll has gone through them, by core."""
        polled = {queue.core for port in self._queues().values() for queue in port if queue.enabled}
        found = parse_pmd_iterations(self._ask("dpif-netdev/pmd-perf-show", "-nh"))
        return {core: count for core, count in found.items() if core in polled}

    def _queues(self) -> Mapping[str, tuple[RxQueue, ...]]:
        return parse_pmd_rxqs(self._ask("dpif-netdev/pmd-rxq-show"))

    def _ports(self) -> dict[str, Port]:
        """The ports of VMs and uplinks, and all others that the datapath has."""
        numbers = parse_numbers(self._ask("dpctl/show", USERSPACE))
        found: Mapping[str, DatapathPort] = ports_with_mtus(self._instance.paths, timeout=_ANSWER_S)
        queues = self._queues()
        bridges = self._bridges if self._served else ()
        flags = {bridge: parse_ports(self._openflow(bridge).port_descriptions()) for bridge in bridges}
        known = {vm.name: str(vm.ofport) for vm in self._wanted.vms.values()}
        known |= {name: str(number) for name, number in self._wanted.fixed_ports.items()}
        return {
            name: Port(name, bridge := self._bridge_of.get(name, self._wanted.bridge), True, numbers.get(name, ""),
                       port.mtu, flags.get(bridge, {}).get(known.get(name, ""), frozenset()),
                       sum(queue.enabled for queue in queues.get(name, ())))
            for name, port in found.items()
        }  # fmt: skip

    def _openflow(self, bridge: str) -> OpenFlow:
        mgmt = self._instance.paths.mgmt(bridge)
        return OpenFlow(self._host.system, mgmt, timeout=2 * _ANSWER_S, versions=WITH_BUNDLES)

    def _differences(self) -> tuple[str, ...]:
        return tuple(flow_tables.differences(self._host, self._side, Form.FINAL))

    def _routes(self) -> tuple[Hop, ...]:
        found = parse_routes(self._ask("ovs/route/show"))
        return tuple(Hop(each.destination, each.gateway) for each in found)

    def _neighbours(self) -> dict[str, str]:
        return {each.address: each.mac for each in parse_neighbours(self._ask("tnl/neigh/show"))}

    def _megaflows(self) -> tuple[megaflows.MegaFlow, ...] | None:
        counted = _FLOWS.search(self._ask("dpctl/show", USERSPACE))
        if counted is not None and int(counted[1]) > _MOST_FLOWS:
            self._omitted.append(
                f"the datapath has {counted[1]} flows, and more than {_MOST_FLOWS} are not read, because the switch's "
                "main thread would stand for so long: whose packets were dropped is known from other counters alone"
            )
            return None
        return megaflows.parse(self._ask("dpctl/dump-flows", USERSPACE))


def _only(counters: SwitchCounters, names: Collection[str]) -> SwitchCounters:
    if counters.ports is None:
        return counters
    return replace(counters, ports={
        name: port if name in names else replace(port, statistics={}) for name, port in counters.ports.items()
    })  # fmt: skip
