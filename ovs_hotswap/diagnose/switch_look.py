"""A look at the active instance for `diagnose`: its counters twice, and between these everything else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ovs_hotswap.clone.dumps import parse_ports
from ovs_hotswap.counters.reading import PARTS, CounterReader
from ovs_hotswap.counters.values import PortCounters, SwitchCounters
from ovs_hotswap.diagnose import cores, megaflows
from ovs_hotswap.diagnose.facts import CoreUse, Hop, Port, Switch, Unseen, Wanted
from ovs_hotswap.diagnose.host_faults import STARVED
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import flow_tables
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.datapath import USERSPACE, DatapathPort, parse_numbers, ports_with_mtus
from ovs_hotswap.switch.openflow import WITH_BUNDLES, OpenFlow
from ovs_hotswap.switch.pmd import RxQueue, parse_pmd_iterations, parse_pmd_rxqs
from ovs_hotswap.switch.rpc import quick_call
from ovs_hotswap.switch.tunnel import parse_neighbours, parse_routes

_ANSWER_S = 1.0
_MOST_FLOWS = 20_000  # of the datapath: to dump these takes the switch's main thread about 0.1 s
_FLOWS = re.compile(r"^\s*flows:\s*(\d+)$", re.MULTILINE)

Part = TypeVar("Part")


def appctl(host: Host, side: Side, command: str, *words: str) -> str:
    """Ask the main thread of a side. Raises SwitchError, and NoAnswer after a second."""
    return str(quick_call(host.control(side), command, list(words), timeout=_ANSWER_S))


class SwitchLook:
    """A look at the instance of a side. ``pause`` waits between the two looks at its counters."""

    def __init__(self, host: Host, side: Side, wanted: Wanted, pause: Callable[[], None]) -> None:
        self._host, self._side, self._wanted, self._pause = host, side, wanted, pause
        self._instance = host.instances[side]
        bridges = {vm.bridge for vm in wanted.vms.values()} | ({wanted.bridge} - {""})
        self._bridges = sorted(bridges)
        self._reader = CounterReader(self._instance.paths, host.system, wanted.bridge, timeout=_ANSWER_S)
        self._unseen: list[Unseen] = []

    def switch(self) -> tuple[Switch, tuple[Unseen, ...]]:
        """Return what was seen, and the parts that could not be read, which are ``None``."""
        paths, pid, clock = self._instance.paths, self._instance.pid(), self._host.system.monotonic
        found = Switch(self._side, str(paths.run_dir), str(paths.vswitchd_ctl), self._instance.life(),
                       database=self._instance.database_pid() is not None)  # fmt: skip
        if found.life is not Life.RUNS or pid is None:
            return found, ()
        try:
            self._ask("version")
        except SwitchError as error:
            return replace(found, silent=error.message), ()
        begun, times, rounds = clock(), cores.times(pid), self._tried("Its PMD threads", self._iterations)
        before, at = self._counters(), clock()
        found = replace(
            found, before=before, ports=self._tried("Its ports", self._ports),
            differences=self._tried("Its flows", self._differences) if self._wanted.overlay else (),
            routes=self._tried("Its routes", self._routes), neighbours=self._tried("Its neighbours", self._neighbours),
        )  # fmt: skip
        self._pause()
        uses = cores.uses(times, cores.times(pid), clock() - begun)
        watched, after = clock() - at, self._counters()
        later = self._tried("Its PMD threads", self._iterations)
        self._unseen += [Unseen(f"Its counters ({part})", why) for part, why in after.unknown.items()]
        found = replace(
            found, after=after, watched=watched, megaflows=self._tried("The flows of its datapath", self._megaflows),
            cores=tuple(self._with_others(each, pid) for each in uses),
            standing=tuple(core for core, count in (later or {}).items() if (rounds or {}).get(core) == count),
        )  # fmt: skip
        return found, tuple(self._unseen)

    @staticmethod
    def _with_others(use: CoreUse, pid: int) -> CoreUse:
        return replace(use, others=cores.others(use.core, pid)) if use.waits >= STARVED else use

    def _ask(self, command: str, *words: str) -> str:
        return appctl(self._host, self._side, command, *words)

    def _tried(self, part: str, read: Callable[[], Part]) -> Part | None:
        try:
            return read()
        except HotswapError as error:
            self._unseen.append(Unseen(part, error.message, error.hint))
            return None

    def _counters(self) -> SwitchCounters:
        """The counters, with the statistics that ports have at this moment instead of those of the database."""
        found = self._reader.look([part for part in PARTS if part != "flows" or self._wanted.overlay])
        for bridge in self._bridges if found.ports is not None else ():
            present = self._tried("Its ports' counters", partial(self._reader.present_ports, bridge))
            found = replace(found, ports=self._freshened(found.ports or {}, bridge, present or {}))
        return found

    def _freshened(
        self, ports: Mapping[str, PortCounters], bridge: str, present: Mapping[int, Mapping[str, int]]
    ) -> dict[str, PortCounters]:
        """An OpenFlow number is that of one bridge only, so only ports that are known to be of this one are changed."""
        names = {vm.name for vm in self._wanted.vms.values() if vm.bridge == bridge}
        names |= set(self._wanted.fixed_ports) | set(self._wanted.uplinks) if bridge == self._wanted.bridge else set()
        fresh = {name: now for name, port in ports.items() if name in names and (now := present.get(port.ofport or 0))}
        return {name: replace(port, statistics=fresh.get(name, port.statistics)) for name, port in ports.items()}

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
        flags = {bridge: parse_ports(self._openflow(bridge).port_descriptions()) for bridge in self._bridges}
        known = {vm.name: str(vm.ofport) for vm in self._wanted.vms.values()}
        known |= {name: str(number) for name, number in self._wanted.fixed_ports.items()}
        bridges = {vm.name: vm.bridge for vm in self._wanted.vms.values()}
        return {
            name: Port(name, bridge := bridges.get(name, self._wanted.bridge), True, numbers.get(name, ""), port.mtu,
                       flags.get(bridge, {}).get(known.get(name, ""), frozenset()), len(queues.get(name, ())))
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
            raise SwitchError(f"there are {counted[1]}: to read more than {_MOST_FLOWS} would stop its main thread")
        return megaflows.parse(self._ask("dpctl/dump-flows", USERSPACE))
