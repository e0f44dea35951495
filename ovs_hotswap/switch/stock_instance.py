"""The distribution's own switch as one of the two instances, until it is retired.

It was started by the distribution, so its files are where ``config.stock`` says, its processes belong to its own units,
and it is never started by ovs-hotswap. A record in the run directory says which side it is.
"""

from __future__ import annotations

import shutil

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.paths import InstancePaths, InstanceRecord, StockRecord, read_stock
from ovs_hotswap.switch.units import InstanceUnit
from ovs_hotswap.system import System, files
from ovs_hotswap.waiting import wait_until

_RESTARTS_S = 2.0  # systemd waits a tenth of a second (systemd.service(5), RestartSec=)


def recognise(config: Config, system: System, side: Side, running: Release) -> StockRecord:
    """Record that the distribution's switch is the instance of ``side`` and runs ``running``. Nothing else changes.
    Raises what ``processes`` does, and HostError if the record cannot be written."""
    switch, database = processes(config, system)
    found = StockRecord(side=side, pid=switch, born=start_time(switch), ovsdb_pid=database,
                        ovsdb_born=start_time(database))  # fmt: skip
    record = InstanceRecord(release=running.name, root=running.root, prefix=running.prefix,
                            ovs_version=running.ovs_version, dpdk_version=running.dpdk_version,
                            started=system.wall(), starter=switch, ready=True)  # fmt: skip
    paths = InstancePaths.of_stock(config, found)
    with files(paths.record):
        paths.record.parent.mkdir(parents=True, exist_ok=True)
    system.write_atomic(paths.record, record.model_dump_json(exclude_defaults=True))
    system.write_atomic(config.stock_file, found.model_dump_json())
    return found


def processes(config: Config, system: System) -> tuple[int, int]:
    """Return the pids of the distribution's ovs-vswitchd and ovsdb-server. Raises SwitchError if one does not run."""

    def running(name: str) -> int:
        if (pid := system.read_pid(config.stock.run_dir / f"{name}.pid")) is not None:
            return pid
        raise SwitchError(
            f"{config.stock.run_dir}/{name}.pid: the distribution's {name} does not run",
            hint=f"`systemctl status {config.stock.unit}`",
        )

    return running("ovs-vswitchd"), running("ovsdb-server")


def forget(config: Config) -> None:
    """Undo ``recognise``, when the distribution's switch is no instance any longer. Raises HostError, StateUnknown."""
    stock = read_stock(config)
    if stock is None:
        return
    with files(config.stock_file):
        shutil.rmtree(config.side_dir(stock.side), ignore_errors=True)
        config.stock_file.unlink(missing_ok=True)


class StockInstance(Instance):
    """The distribution's switch. ``start`` refuses. ``stop`` ends its two processes by SIGKILL: one that is asked to
    exit removes the files at the well-known paths, which may lead to the other instance by then (lib/unixctl.c,
    lib/daemon-unix.c: ``unlink`` by path)."""

    ours = False

    def start(self, release: Release) -> None:
        raise SwitchError(
            f"instance {self.side} is the distribution's switch, which ovs-hotswap does not start", hint=self.starting
        )

    @property
    def starting(self) -> str:
        return f"`systemctl start {self._config.stock.unit}`"

    def pid(self) -> int | None:
        stock = read_stock(self._config)
        return None if stock is None or not self._system.is_still(stock.pid, stock.born) else stock.pid

    def database_pid(self) -> int | None:
        stock = read_stock(self._config)
        if stock is None or not self._system.is_still(stock.ovsdb_pid, stock.ovsdb_born):
            return None
        return stock.ovsdb_pid

    def unit(self) -> InstanceUnit | None:
        return None

    def kill(self) -> None:
        if (pid := self.pid()) is not None:
            self._system.end(pid)

    def stop(self, *, keep_log: bool = False) -> None:
        """End both processes and forget that they were an instance. It is no error if that was done already."""
        if (pid := self.pid()) is not None:
            self._system.kill(pid, grace=0)  # until it is dead: it closes its taps after it has lost its memory
        if (database := self.database_pid()) is not None:
            self._system.kill(database, grace=0)
        forget(self._config)

    def restart_ovsdb(self) -> None:
        """Wait a moment for the distribution to start it again. Raises SwitchError if it does not."""
        if not wait_until(lambda: not self.lacks_database(), _RESTARTS_S, self._system):
            raise SwitchError(
                "the distribution's ovsdb-server does not run",
                hint=f"`systemctl start ovsdb-server`, then `systemctl status {self._config.stock.unit}`",
            )


def instance_class(config: Config, side: Side) -> type[Instance]:
    """Return the class of a side's instance."""
    stock = read_stock(config)
    return StockInstance if stock is not None and stock.side is side else Instance
