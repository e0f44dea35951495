"""Where an instance keeps its files, and the record of what it was started with."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.config import KEPT, Config, Program
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Device, Release, Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.vm_ports import read_ports

_LAST_WORDS = 1 << 14  # bytes


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The files and sockets of one instance. They have the same paths inside a release tree.

    ``netns`` is the name of a network namespace. ``run_dir`` is removed with the instance; ``saved_log`` outlives it.
    """

    run_dir: Path
    db_file: Path
    db_socket: Path
    ovsdb_ctl: Path
    ovsdb_pid: Path
    ovsdb_log: Path
    vswitchd_ctl: Path
    vswitchd_pid: Path
    log: Path
    record: Path
    saved_log: Path
    netns: str

    @classmethod
    def of(cls, config: Config, side: Side) -> InstancePaths:
        stock = read_stock(config)
        if stock is not None and stock.side is side:
            return cls.of_stock(config, stock)
        run_dir = config.side_dir(side)
        return cls(
            run_dir=run_dir,
            db_file=config.database_file(side),
            db_socket=run_dir / "db.sock",
            ovsdb_ctl=run_dir / "ovsdb-server.ctl",
            ovsdb_pid=run_dir / "ovsdb-server.pid",
            ovsdb_log=run_dir / "ovsdb-server.log",
            vswitchd_ctl=run_dir / "ovs-vswitchd.ctl",
            vswitchd_pid=run_dir / "ovs-vswitchd.pid",
            log=run_dir / "ovs-vswitchd.log",
            record=run_dir / "instance.json",
            saved_log=config.state_dir / f"ovs-vswitchd-{side}.log",
            netns=config.namespace(side),
        )

    def mgmt(self, bridge: str) -> Path:
        """The socket for OpenFlow of a bridge (ofproto/connmgr.c, ofconn management). That of a bridge which the
        distribution's switch has made since its files got second names is still at its well-known path only."""
        path = self.run_dir / f"{bridge}.mgmt"
        return _own_if_new(path, self.run_dir.parent) if self.run_dir.name == KEPT else path

    @classmethod
    def of_stock(cls, config: Config, stock: StockRecord) -> InstancePaths:
        """Return the files of the distribution's switch (ovs-lib, ovs-ctl; a control socket is named after its pid:
        lib/unixctl.c). Its record is among ours, and so is what is kept of its log. As soon as its files have second
        names, they have those: the well-known ones may lead to the other instance (``controllers.well_known``). Second
        names of daemons that were started again since are of no use until there are new ones."""
        own, kept = config.side_dir(stock.side), config.stock.kept_dir
        run_dir = config.stock.run_dir if _is_newer(config.stock.run_dir, kept) else kept
        return cls(
            run_dir=run_dir,
            db_file=config.stock.database,
            db_socket=run_dir / "db.sock",
            ovsdb_ctl=_own_if_new(run_dir / f"ovsdb-server.{stock.ovsdb_pid}.ctl", config.stock.run_dir),
            ovsdb_pid=run_dir / "ovsdb-server.pid",
            ovsdb_log=config.stock.log.with_name("ovsdb-server.log"),
            vswitchd_ctl=_own_if_new(run_dir / f"ovs-vswitchd.{stock.pid}.ctl", config.stock.run_dir),
            vswitchd_pid=run_dir / "ovs-vswitchd.pid",
            log=config.stock.log,
            record=own / "instance.json",
            saved_log=config.state_dir / f"ovs-vswitchd-{stock.side}.log",
            netns="",
        )


def _own_if_new(path: Path, run_dir: Path) -> Path:
    """Return the file at its well-known path if it is the distribution's own, and has no second name yet: of a daemon
    that was started again, or of a bridge that was added."""
    own = run_dir / path.name
    return own if not path.exists() and own.exists() and not own.is_symlink() else path


def _is_newer(run_dir: Path, kept: Path) -> bool:
    """Whether the database's socket at its well-known path is the distribution's own, and has no second name."""
    own, second = run_dir / "db.sock", kept / "db.sock"
    return not second.exists() or (own.exists() and not own.is_symlink() and not own.samefile(second))


def seen_in_trees(config: Config, paths: InstancePaths) -> list[Path]:
    """Return the directories of the host that a program of a release's tree sees: the run directory, and on a host that
    others program those of the VMs' sockets and of the database. Raises ConfigError."""
    if config.program is not Program.CLONE:
        return [config.run_dir]
    sockets = {port.socket.parent for port in read_ports(config) if port.socket.parent.is_dir()}
    return [config.run_dir, paths.db_file.parent, *sorted(sockets)]


class StockRecord(Strict, extra="ignore"):
    """The record of the distribution's switch as one of the two instances. ``born`` and ``ovsdb_born``: the start times
    of its processes (``process_exit.start_time``), so that another process with a pid is not taken for one of them."""

    side: Side
    pid: int
    born: int | None
    ovsdb_pid: int
    ovsdb_born: int | None


def read_stock(config: Config) -> StockRecord | None:
    """Return the record; ``None`` if the distribution's switch is no instance of this host. A daemon that died and that
    the distribution has started again since is there with its new process. Raises StateUnknown if the record cannot be
    read: without it, nothing is known about a side."""
    found = recorded_stock(config)
    return None if found is None else _followed(config, found)


def recorded_stock(config: Config) -> StockRecord | None:
    """Return the record as it was written. Raises what ``read_stock`` does."""
    if config.program is not Program.CLONE:
        return None
    try:
        return StockRecord.model_validate_json(config.stock_file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateUnknown(
            f"{config.stock_file}: {error}", hint="`ovs-vsctl show` and `pidof ovs-vswitchd` show the switches that run"
        ) from error


def _followed(config: Config, record: StockRecord) -> StockRecord:
    system = System()
    changed: dict[str, int | None] = {}
    for name, pid, born in (("", record.pid, record.born), ("ovsdb_", record.ovsdb_pid, record.ovsdb_born)):
        daemon = "ovsdb-server" if name else "ovs-vswitchd"
        pid_file = config.stock.run_dir / f"{daemon}.pid"
        if system.is_still(pid, born) or pid_file.is_symlink():  # a link leads to the other instance
            continue
        now = system.read_pid(pid_file)
        if now is not None and Path(next(iter(system.cmdline(now)), "")).name.startswith(daemon):
            changed |= {f"{name}pid": now, f"{name}born": start_time(now)}
    return record.model_copy(update=changed) if changed else record


class InstanceRecord(Strict, extra="ignore"):
    """The record of what an instance was started with.

    It is written before anything is made, so that ``stop`` can undo any part of it. ``started`` is in seconds since the
    epoch. ``root`` and ``prefix`` are those of the release. ``starter`` is the pid of the process that starts the
    instance, ``starter_born`` its start time (``process_exit.start_time``), and ``ready`` whether it has finished.
    ``uplink`` is the network device as it was before, ``second`` that of a second NIC. Keys that only a newer version
    of this program writes are ignored.
    """

    release: str
    root: str | None
    ovs_version: str
    dpdk_version: str
    started: float
    starter: int
    starter_born: int | None = None
    ready: bool = False
    prefix: str | None = None
    uplink: Device | None = None
    second: Device | None = None

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for device in (self.uplink, self.second) if device is not None)

    @property
    def software(self) -> Release:
        return Release(self.release, self.root, self.ovs_version, self.dpdk_version, self.prefix)


def read_record(path: Path) -> InstanceRecord | None:
    """Return the record, or ``None`` if there is none that can be read."""
    try:
        return InstanceRecord.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None


def older(log: Path) -> Path:
    """Return the name to which a log that has become too long is renamed."""
    return log.with_name(f"{log.name}.1")


def log_in_use(log: Path) -> Path:
    """Return the file to which a daemon logs: the renamed one until the daemon has made ``log`` again."""
    return log if log.exists() or not older(log).exists() else older(log)


def keep_log_of(paths: InstancePaths) -> None:
    """Move the log, if there is one, to where it outlives the instance. Raises OSError.

    If the disk is full, only as much of its end is kept as there is room for.
    """
    log = log_in_use(paths.log)
    if not log.exists():
        return
    paths.saved_log.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.move(log, paths.saved_log)
    except OSError:
        with log.open("rb") as source, paths.saved_log.open("wb") as target:
            source.seek(max(0, os.fstat(source.fileno()).st_size - _LAST_WORDS))
            target.write(source.read())
