"""Reads the facts about a host whose switch others installed and programmed. Nothing is changed or disturbed."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.config import Config, read_active
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.stock.database import Database, read
from ovs_hotswap.stock.facts import Facts, Pipeline
from ovs_hotswap.stock.pipeline import read_pipeline
from ovs_hotswap.stock.qemu import confinement, with_qemus
from ovs_hotswap.stock.switch import read_switch
from ovs_hotswap.stock.vms import stock_vms
from ovs_hotswap.switch.paths import InstancePaths, StockRecord
from ovs_hotswap.system import System, files

_NOT_THERE = 0  # no process has this pid


def running_paths(config: Config, system: System) -> InstancePaths:
    """Return the files of the switch that serves the VMs: of the active instance, or of the distribution's switch if
    ovs-hotswap has not taken anything over yet. Raises HostError, StateUnknown."""
    with files(config.active_file):
        active = read_active(config)
    return stock_paths(config, system) if active is None else InstancePaths.of(config, active)


def stock_paths(config: Config, system: System) -> InstancePaths:
    """Return the files of the distribution's switch that runs now."""
    run_dir = config.stock.run_dir
    pids = [system.read_pid(run_dir / f"{name}.pid") or _NOT_THERE for name in ("ovs-vswitchd", "ovsdb-server")]
    return InstancePaths.of_stock(config, StockRecord(side=Side.A, pid=pids[0], born=None, ovsdb_pid=pids[1],
                                                      ovsdb_born=None))  # fmt: skip


def survey(paths: InstancePaths, system: System, broker: int | None = None) -> Facts:
    """Return the facts about the switch with these files. ``broker``: the pid of this program's broker, if it runs.

    What cannot be read is in ``Facts.unreadable``; nothing is raised for it. What the log tells of the VMs is not among
    the facts yet (``upgrade.stock_collect``).
    """
    unreadable: list[str] = []
    database = _database(paths.db_socket, unreadable)
    switch = read_switch(paths, system, database, unreadable)
    if database is None:
        return Facts(switch, confinement=confinement(), unreadable=tuple(unreadable))
    vms = stock_vms(database, paths.run_dir)
    try:
        vms = with_qemus(vms, system, broker)
    except HotswapError as error:
        unreadable.append(error.message)
    pipeline = Pipeline()
    if switch.vswitchd_pid is not None:
        pipeline = read_pipeline(database, paths.run_dir, switch.vswitchd_pid, system, unreadable)
    return Facts(switch, vms, pipeline, confinement(), tuple(unreadable))


def _database(socket: Path, unreadable: list[str]) -> Database | None:
    try:
        return read(socket)
    except SwitchError as error:
        unreadable.append(error.message)
        return None
