"""Asks a running switch for its counters. Nothing is changed, and no lock is taken that an upgrade or failover needs.

Each question has a deadline. The database answers for the ports, so that a switch whose main thread is busy or blocked
is asked as little as possible: what it writes there is up to five seconds old (``other_config:stats-update-interval``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ovs_hotswap.counters import texts
from ovs_hotswap.counters.values import ConntrackCounts, FlowCount, PmdCounters, PortCounters, SwitchCounters
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.overlay.tables import cookie_kind
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.datapath import USERSPACE
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.switch.openflow import WITH_BUNDLES, OpenFlow
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pools import parse_pools
from ovs_hotswap.switch.rpc import NoAnswer, quick_call, transact
from ovs_hotswap.system import System

Kind = TypeVar("Kind")

PARTS = ("coverage", "ports", "pmds", "pools", "conntrack", "flows")
"""The names of the parts of ``SwitchCounters``, which are those of the methods of ``CounterReader``. In this order they
are read: the coverage counters of a new process show whether the database has its ports' counters yet."""


class CounterReader:
    """Reads what the switch with these ``paths`` has counted. ``bridge``: the one with the overlay's flows. ``timeout``
    is in seconds and holds for each question. Every method raises SwitchError, and NoAnswer after the timeout."""

    def __init__(self, paths: InstancePaths, system: System, bridge: str, *, timeout: float = 2.0) -> None:
        self._paths, self._system, self._bridge, self._timeout = paths, system, bridge, timeout

    def process(self) -> tuple[int, int | None] | None:
        """Return the pid of ovs-vswitchd with its start time (``process_exit.start_time``); ``None`` if it has none."""
        pid = self._system.read_pid(self._paths.vswitchd_pid)
        return None if pid is None else (pid, start_time(pid))

    def ports(self, names: Collection[str] = ()) -> dict[str, PortCounters]:
        """Return all interfaces by name, or those of ``names`` that exist, as they are in the database."""
        wheres = [[["name", "==", name]] for name in names] or [[]]
        selects: list[dict[str, Any]] = [
            {"op": "select", "table": "Interface", "where": where, "columns": [*texts.PORT_COLUMNS]} for where in wheres
        ]
        answers = transact(self._paths.db_socket, selects, timeout=self._timeout)
        return self._read("Interface", lambda: texts.ports([row for answer in answers for row in answer["rows"]]))

    def present_ports(self, bridge: str | None = None) -> dict[int, dict[str, int]]:
        """Return the statistics of a bridge's ports at this moment, by OpenFlow number (``texts.port_statistics``). It
        costs the switch's main thread about 10 us a port, and a process here."""
        return texts.port_statistics(self._openflow(bridge).port_counters())

    def coverage(self) -> dict[str, int]:
        return self._told(texts.coverage, "coverage/show")

    def pmds(self) -> tuple[PmdCounters, ...]:
        return self._told(texts.pmds, "dpif-netdev/pmd-stats-show")

    def pools(self) -> tuple[PacketPool, ...]:
        """Return the shared packet pools; there are none before the first port."""
        return tuple(self._told(parse_pools, "netdev-dpdk/get-mempool-info"))

    def conntrack(self) -> ConntrackCounts:
        connections, most, limits = (
            self._appctl(f"dpctl/ct-get-{name}", USERSPACE) for name in ("nconns", "maxconns", "limits")
        )
        return self._read("dpctl/ct-get-nconns", lambda: texts.conntrack(connections, most, limits))

    def flows(self) -> tuple[FlowCount, ...]:
        """Return the packets of the overlay's flows, added up by cookie; none on a bridge that others program."""
        found = texts.flow_packets(self._openflow(None).dump_counted())
        kinds = ((cookie, kind, counts) for cookie, counts in sorted(found.items()) if (kind := cookie_kind(cookie)))
        return tuple(
            FlowCount(kind.name.lower(), cookie >> 16 & 0xFFFFFF, cookie & 0xFFFF, *counts)
            for cookie, kind, counts in kinds
        )

    def look(self, parts: Collection[str] = PARTS) -> SwitchCounters:
        """Return the ``parts`` that can be read, and why the others cannot. Raises nothing. A switch that does not run
        is not asked, and one whose main thread is silent is not asked again: all of it may take two timeouts."""
        process = self.process()
        if process is None:
            return SwitchCounters(None, unknown=dict.fromkeys(parts, "ovs-vswitchd does not run"))
        found: dict[str, Any] = {}
        unknown: dict[str, str] = {}
        silent: str | None = None
        for part in parts:
            if silent is not None and part != "ports":
                unknown[part] = silent
                continue
            try:
                found[part] = getattr(self, part)()
            except SwitchError as error:
                unknown[part] = error.message
                if isinstance(error, NoAnswer) and part != "ports":  # which are asked of the database
                    silent = error.message
        return SwitchCounters(process, **found, unknown=unknown)

    def _openflow(self, bridge: str | None) -> OpenFlow:
        mgmt = self._paths.mgmt(bridge or self._bridge)
        return OpenFlow(self._system, mgmt, timeout=self._timeout, versions=WITH_BUNDLES)

    def _appctl(self, command: str, *arguments: str) -> str:
        return str(quick_call(self._paths.vswitchd_ctl, command, list(arguments), timeout=self._timeout))

    def _told(self, read: Callable[[str], Kind], command: str) -> Kind:
        text = self._appctl(command)
        return self._read(command, lambda: read(text))

    def _read(self, what: str, read: Callable[[], Kind]) -> Kind:
        """Return what ``read`` makes of an answer. Raises SwitchError if the answer is of another form."""
        try:
            return read()
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SwitchError(
                f"{self._paths.vswitchd_ctl}: {what}: not what this version expects: {error}",
                hint="see which release runs: `ovs-hotswap instance list`",
            ) from error
