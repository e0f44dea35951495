"""The switch whose packets are watched: the active instance, or a distribution's switch that was not taken over yet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ovs_hotswap.clone.rows import ROOT, Rows, parse_rows, refs, single
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.paths import InstancePaths, StockRecord
from ovs_hotswap.switch.pmd import pmd_sleep_key
from ovs_hotswap.switch.rpc import quick_call, transact
from ovs_hotswap.switch.stock_instance import processes
from ovs_hotswap.system import System

ANSWER_S = 1.0
_VERSION = re.compile(r"\(Open vSwitch\) (\d+\.\d+\S*)")
_COLUMNS = {
    ROOT: ("_uuid", "other_config"), "Bridge": ("_uuid", "name", "ports"), "Port": ("_uuid", "name", "interfaces"),
    "Interface": ("_uuid", "name", "type", "ofport", "options", "other_config", "status"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A switch that runs. ``side``: ``None`` if it is no instance of this host yet. ``pid``: of its ovs-vswitchd."""

    side: Side | None
    paths: InstancePaths
    pid: int

    def ask(self, command: str, *words: str) -> str:
        """Ask its main thread. Raises SwitchError, and NoAnswer after a second."""
        return str(quick_call(self.paths.vswitchd_ctl, command, list(words), timeout=ANSWER_S))

    def sleep_key(self) -> str:
        """Return the key of ``other_config`` by which its idle PMD threads sleep. Raises SwitchError."""
        found = _VERSION.search(self.ask("version"))
        return pmd_sleep_key(found[1] if found else "")

    def rows(self) -> Rows:
        """Return its bridges, ports and interfaces as its database has them. Raises SwitchError."""
        selects = [{"op": "select", "table": table, "where": [], "columns": list(columns)}
                   for table, columns in _COLUMNS.items()]  # fmt: skip
        answers = transact(self.paths.db_socket, selects, timeout=ANSWER_S)
        try:
            return parse_rows({table: answer["rows"] for table, answer in zip(_COLUMNS, answers, strict=True)})
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SwitchError(f"{self.paths.db_socket}: not a database of Open vSwitch: {error!r}",
                              hint="`ovs-hotswap instance list`") from error  # fmt: skip


def target(host: Host) -> Target:
    """Return the switch that forwards. Raises SwitchError if none runs, and StateUnknown if it is not known which."""
    side = host.recorded_active()
    if side is None:
        return _stock(host.config, host.system)
    instance = host.instances[side]
    pid, life = instance.pid(), instance.life()
    if pid is None or life is not Life.RUNS:
        raise SwitchError(f"instance {side}, which is active, {life.value}", hint="`ovs-hotswap diagnose`")
    return Target(side, instance.paths, pid)


def _stock(config: Config, system: System) -> Target:
    if config.program is not Program.CLONE:
        raise SwitchError("no instance is active", hint="`ovs-hotswap instance start a`")
    pid, database = processes(config, system)
    record = StockRecord(side=Side.A, pid=pid, born=start_time(pid), ovsdb_pid=database,
                         ovsdb_born=start_time(database))  # fmt: skip
    return Target(None, InstancePaths.of_stock(config, record), pid)


def bridge_of(rows: Rows) -> dict[str, str]:
    """Return the name of each interface's bridge, by the UUID of the interface."""
    found = {}
    for bridge in rows["Bridge"].values():
        for port in refs(bridge.get("ports", ())):
            for interface in refs(rows["Port"].get(port.uuid, {}).get("interfaces", ())):
                found[interface.uuid] = str(single(bridge, "name"))
    return found
