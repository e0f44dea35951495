"""Reads the running switch: its two processes, versions, log, cores and memory. Nothing is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ovs_hotswap.background import threads_of
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.process_exit import locks_memory
from ovs_hotswap.stock.database import Database, first
from ovs_hotswap.stock.facts import StockLog, StockSwitch
from ovs_hotswap.switch.drivers import lacks_driver
from ovs_hotswap.switch.monitors import monitor_of
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import vhost_log_level
from ovs_hotswap.switch.threads import is_pmd
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System

_PROC = Path("/proc")
_VERSION = re.compile(r"\(Open vSwitch\) (\S+)")
_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")
_MODULE = re.compile(r"^dpdk\s+\S+\s+\S+\s+(?P<file>\S+)", re.MULTILINE)


def read_switch(paths: InstancePaths, system: System, database: Database | None, unreadable: list[str]) -> StockSwitch:
    """Return the facts. What cannot be read is appended to ``unreadable``."""
    pid, ovsdb = system.read_pid(paths.vswitchd_pid), system.read_pid(paths.ovsdb_pid)
    argv = system.cmdline(pid) if pid is not None else []
    root: Mapping[str, object] = database.root if database is not None else {}
    return StockSwitch(
        vswitchd_pid=pid,
        ovsdb_pid=ovsdb,
        ovs_version=_ask(paths, "version", _VERSION, unreadable) if pid is not None else None,
        dpdk_version=dpdk_version(str(first(root.get("dpdk_version")) or "")),
        dpdk_ready=bool(root.get("dpdk_initialized")),
        database=served_database(system.cmdline(ovsdb)) if ovsdb is not None else None,
        pmd_cores=_pmd_cores(pid) if pid is not None else (),
        other_config=_map(root.get("other_config")),
        external_ids=_map(root.get("external_ids")),
        log=_log(paths, pid, argv, unreadable),
        unit=unit_of(_text(_PROC / str(pid) / "cgroup")) if pid is not None else None,
        monitor=None if pid is None else monitor_of(pid, system),
        locks_memory=pid is not None and locks_memory(pid),
        lacks_memif=pid is not None and lacks_driver(pid, "memif"),
        lacks_af_packet=pid is not None and lacks_driver(pid, "af_packet"),
    )


def _map(value: object) -> dict[str, str]:
    return {str(key): str(held) for key, held in value.items()} if isinstance(value, Mapping) else {}


def dpdk_version(text: str) -> str | None:
    """Return the number in ``Open_vSwitch.dpdk_version``, as in ``DPDK 22.11.9``."""
    return text.removeprefix("DPDK ").strip() or None


def served_database(argv: list[str]) -> str | None:
    """Return the file that an ovsdb-server serves: its first argument that is no option (ovsdb-server(1)), or else the
    default of the distribution."""
    return next((word for word in argv[1:] if word.startswith("/")), "/etc/openvswitch/conf.db")


def unit_of(cgroup: str) -> str | None:
    """Return the unit of systemd in the text of /proc/PID/cgroup; ``None`` if there is none."""
    found = _UNIT.findall(cgroup)
    return found[-1] if found else None


def log_argument(argv: list[str]) -> str | None:
    """Return the file that the daemon was told to log to: ``--log-file`` alone stands for the distribution's file."""
    for word in argv:
        if word == "--log-file":
            return "/var/log/openvswitch/ovs-vswitchd.log"
        if word.startswith("--log-file="):
            return word.partition("=")[2]
    return None


def file_level(listing: str) -> str | None:
    """Return the level of the module ``dpdk`` for the log file, from vlog/list (columns: console, syslog, file)."""
    found = _MODULE.search(listing)
    return found["file"] if found else None


def _log(paths: InstancePaths, pid: int | None, argv: list[str], unreadable: list[str]) -> StockLog:
    if pid is None:
        return StockLog(None, None, None)
    told = log_argument(argv)
    level = vhost = None
    try:
        level = file_level(appctl(paths.vswitchd_ctl, "vlog/list"))
        vhost = vhost_log_level(paths.vswitchd_ctl)
    except SwitchError as error:
        unreadable.append(error.message)
    return StockLog(None if told is None else _open_log(pid, told), level, vhost)


def _open_log(pid: int, told: str) -> str | None:
    """Return the file that the process has open as its log, under the name that it has now. ``vlog/close`` closes it;
    after a rotation without ``vlog/reopen`` it has another name, or none."""
    directory = _PROC / str(pid) / "fd"
    stem = os.path.basename(told)
    try:
        targets = [os.readlink(directory / name) for name in os.listdir(directory)]
    except OSError:
        return told
    return next((target for target in targets if os.path.basename(target).startswith(stem)), None)


def _ask(paths: InstancePaths, command: str, pattern: re.Pattern[str], unreadable: list[str]) -> str | None:
    try:
        found = pattern.search(appctl(paths.vswitchd_ctl, command))
    except SwitchError as error:
        unreadable.append(error.message)
        return None
    return found[1] if found else None


def _pmd_cores(pid: int) -> tuple[int, ...]:
    cores: set[int] = set()
    for thread, name in threads_of(pid):
        if is_pmd(name):
            try:
                cores |= os.sched_getaffinity(thread)
            except OSError:  # it has just ended
                continue
    return tuple(sorted(cores))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
