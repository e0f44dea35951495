"""One instance: a private ovsdb-server and ovs-vswitchd (DPDK) in a network namespace and run directory of their own.

If systemd runs the host, the processes live in a unit of their own (``units``). ``start`` and ``stop`` undo each other.
``start`` records what it is about to do before it does it. ``stop`` undoes the part that was done, even if the instance
was killed, only half started, or started by another process.
One process at a time may start or stop a side: the caller holds the lock.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.config import Config, InstanceConfig
from ovs_hotswap.errors import CommandError, HotswapError, SwitchError
from ovs_hotswap.model import Life, Release, Side
from ovs_hotswap.priority import other_cores
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch import devargs, launch
from ovs_hotswap.switch.logscan import fatal, telling_cause
from ovs_hotswap.switch.machine_parts import cpu_mask, numa_nodes, socket_limit, socket_mem
from ovs_hotswap.switch.memory import Reservation
from ovs_hotswap.switch.netns import Namespaces, namespaces_of
from ovs_hotswap.switch.ovsdb import ROOT_TABLES, TABLES, SwitchDb
from ovs_hotswap.switch.paths import InstancePaths, InstanceRecord, keep_log_of, read_record, seen_in_trees
from ovs_hotswap.switch.release import programs
from ovs_hotswap.switch.rpc import hangs, listens
from ovs_hotswap.switch.units import InstanceUnit
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.switch.uplink_devices import UplinkDevices, bonded_at_start
from ovs_hotswap.system import System, files
from ovs_hotswap.uplink.vf_care import VfCare
from ovs_hotswap.waiting import wait_until

_EXIT_S = 2.0  # for the answer to `exit`: a main thread that is not blocked answers within milliseconds
_END_S = 20.0  # from the reply to the end of the process: about 20 ms for each vhost-user port
_POLL_S = 0.02
_STATUS_S = 1.0
_logger = logging.getLogger(__name__)
RESTORE_WAIT = "flow-restore-wait"
"""A key of Open_vSwitch.other_config: ovs-vswitchd forwards nothing while it is true (ovs-vswitchd.conf.db(5))."""
_LOG_TAIL = 1 << 18  # bytes of the log that are searched for a cause


class State(enum.StrEnum):
    """The state of an instance. ``DEAD``: its ovs-vswitchd has ended, and ``stop`` was not called yet."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """A status. ``started``: in seconds since the epoch. ``dpdk_initialized``: ``None`` if the database is silent."""

    side: Side
    state: State
    vswitchd_pid: int | None = None
    ovsdb_pid: int | None = None
    release: Release | None = None
    dpdk_initialized: bool | None = None
    started: float | None = None


class Instance:
    """The instance of one side. ``paths`` has its files, sockets and namespace, whether it runs or not. Its processes
    live in ``unit`` if that unit serves ``config``; else they are the caller's. ``memory`` returns how much huge page
    memory it takes when it is started; without it, it takes all that the configuration allows. ``vfs`` sets its VFs
    before the start, and puts them back afterwards; without it they stay as they are. ``fill_database`` writes
    into the empty database with which a release starts, before its ovs-vswitchd does. ``keeps_database`` says whether
    it starts with the one that it had last, if that is there; it forwards nothing then until it has its flows
    (``RESTORE_WAIT``)."""

    ours = True
    """Whether ovs-hotswap starts its processes."""

    def __init__(
        self,
        config: Config,
        side: Side,
        system: System,
        *,
        unit: InstanceUnit | None = None,
        namespaces: Namespaces | None = None,
        memory: Callable[[], Reservation] | None = None,
        fill_database: Callable[[Release], None] | None = None,
        keeps_database: Callable[[], bool] = lambda: False,
        vfs: VfCare | None = None,
        connect: Callable[[Path, float, Callable[[], bool], Sequence[str]], SwitchDb] = SwitchDb,
        control: Callable[..., str] = appctl,
        hangs: Callable[[Path], bool] = hangs,
    ) -> None:
        self._config = config
        self._side = side
        self._system = system
        self._own_unit = unit
        self._memory, self._vfs = memory, vfs
        self._fill_database, self._keeps_database = fill_database, keeps_database
        self._connect = connect
        self._control, self._hangs = control, hangs
        self.paths = InstancePaths.of(config, side)
        self._namespaces = namespaces or namespaces_of(self.paths.netns)
        self.devices = UplinkDevices(config, side, system, self._namespaces, self.paths)

    @property
    def side(self) -> Side:
        return self._side

    def database(self, timeout: float = 5.0, tables: Sequence[str] = TABLES) -> SwitchDb:
        """Return a connection to the database, a context manager. All ``tables`` of hundreds of ports take a second."""
        return self._connect(self.paths.db_socket, timeout, lambda: self.life() is Life.RUNS, tables)

    @property
    def starting(self) -> str:
        """The command that starts the instance, as a hint."""
        return f"`ovs-hotswap instance start {self._side}`"

    def life(self) -> Life:
        """Return whether ovs-vswitchd runs, is stopped, or has ended."""
        pid = self.pid()
        if pid is None:
            return Life.DEAD
        return Life.STOPPED if self._system.stopped(pid) else Life.RUNS

    def listens(self) -> bool:
        """Return whether ovs-vswitchd takes commands. One that ends in order takes none in its last milliseconds."""
        return listens(self.paths.vswitchd_ctl)

    def status(self) -> InstanceStatus:
        """Return the status of the instance. A part that is missing or does not answer is no error."""
        record = read_record(self.paths.record)
        vswitchd, ovsdb = self.pid(), self.database_pid()
        initialized = None
        if ovsdb is not None:
            with contextlib.suppress(HotswapError), self.database(_STATUS_S, ROOT_TABLES) as database:
                initialized = database.state().dpdk_initialized
        release, started = (record.software, record.started) if record else (None, None)
        state = self._state(record, vswitchd, initialized)
        return InstanceStatus(side=self._side, state=state, vswitchd_pid=vswitchd, ovsdb_pid=ovsdb, release=release,
                              dpdk_initialized=initialized, started=started)  # fmt: skip

    def pid(self) -> int | None:
        """Return the pid of ovs-vswitchd, or ``None`` if it is not alive. The database is not asked."""
        return self._pid(self.paths.vswitchd_pid)

    def database_pid(self) -> int | None:
        """Return the pid of ovsdb-server, or ``None`` if it is not alive."""
        return self._pid(self.paths.ovsdb_pid)

    def release(self) -> Release | None:
        """Return the release of a running or dead instance; ``None`` if it was not started or has been stopped."""
        record = read_record(self.paths.record)
        return record.software if record else None

    def start(self, release: Release) -> None:
        """Start ``release`` and return when DPDK is initialized. The caller then adds the bridge and the ports.

        Raises SwitchError if the side runs already, or if it is not ready within ``upgrade.ready_s``: then with the
        line of the log that says why, after undoing everything. The log is kept in the state directory.
        """
        state = self.status().state
        if state in (State.RUNNING, State.STARTING):
            raise SwitchError(
                f"instance {self._side} is {state} already", hint=f"`ovs-hotswap instance stop {self._side}`"
            )
        self._clear()  # so no process of this side has the VFs that are set now
        unit = self.unit()
        try:
            launch.make_places(release, seen_in_trees(self._config, self.paths))
            if self._vfs is not None:
                self._vfs.take()
            if unit is None:
                self._bring_up(release)
            else:
                unit.start(release, self._config)
        except BaseException as error:
            self._undo(error, unit)
            raise

    def bring_up(self, release: Release) -> None:
        """Start a side that is known to be stopped. This is for the unit's own command, which runs in the unit."""
        try:
            self._bring_up(release)
        except BaseException as error:
            self._undo(error, None)
            raise

    def stop(self, *, keep_log: bool = False) -> None:
        """End both processes and undo all that ``start`` did. It is no error if that was done already.

        With ``keep_log``, or if ovs-vswitchd had ended by itself, its log is kept as ``paths.saved_log``. If a part
        cannot be undone, the others are undone nevertheless; then the first failure is raised (SwitchError or
        CommandError), and ``stop`` can be called again. A VF that cannot be put back is only logged, and the next
        ``stop`` tries it again: the standby can be started nevertheless.
        """
        self._clear(keep_log=keep_log)
        self._give_vfs_back()

    def _clear(self, *, keep_log: bool = False) -> None:
        """Do what ``stop`` does, and leave the VFs as they are."""
        record = read_record(self.paths.record)
        crashed = record is not None and not self._owned(self.paths.vswitchd_pid)
        unit = self.unit()
        if unit is not None and unit.starting():  # the process that ordered the start was killed
            unit.end()
        self._take_down(unit, keep_log=keep_log or crashed)
        if unit is not None:
            unit.clear()

    def outdated(self) -> bool:
        """Whether a file from which ovs-vswitchd runs was replaced or removed since its start, as the upgrade of a
        package does: an executable mapping then belongs to a deleted file (proc_pid_maps(5))."""
        pid = self.pid()
        return pid is not None and self._system.runs_deleted_files(pid)

    def has_memory(self) -> bool:
        """Whether ovs-vswitchd could still touch a guest's rings. While it is ending, it soon cannot."""
        pid = self.pid()
        return pid is not None and self._system.has_memory(pid)

    def kill(self) -> None:
        """Kill ovs-vswitchd and return when it has no memory, as a failover must before it gives rings away.

        Everything else stays for ``stop``. Raises CommandError if it does not end.
        """
        for pid in self._owned(self.paths.vswitchd_pid):
            self._system.end(pid)

    def lacks_database(self) -> bool:
        """Whether ovs-vswitchd lives without its ovsdb-server: it then forwards, but accepts no flows
        (vswitchd/bridge.c: bridge_run returns before it serves OpenFlow) and no ports."""
        return self.has_memory() and self.database_pid() is None

    def restart_ovsdb(self) -> None:
        """Start ovsdb-server again if it is missing or hangs. ovs-vswitchd connects again by itself, within eight
        seconds (lib/reconnect.h). Raises SwitchError."""
        release, unit, database = self.release(), self.unit(), self.database_pid()
        if database is not None and self.has_memory() and self._hangs(self.paths.db_socket):
            self._system.end(database)
        if release is None or not self.lacks_database():
            return
        if unit is not None:
            unit.restart_ovsdb(release, self._config)
        else:
            self._start_database(release, self._system.monotonic() + self._config.upgrade.ready_s)

    def restart(self) -> None:
        """Restart ovs-vswitchd without a handover: it starts again with its database, without flows and tunnels.

        Every VM that it serves is cut off. Raises SwitchError if it does not run or does not start again, or if it is a
        unit of systemd, which ends with its ovs-vswitchd.
        """
        release = self.status().release
        if release is None:
            raise SwitchError(f"instance {self._side} does not run", hint=f"`ovs-hotswap instance start {self._side}`")
        unit = self.unit()
        if unit is not None:
            raise SwitchError(f"instance {self._side} is {unit.name}", hint="stop it, then start it")
        with self.database() as database:
            self._end(self.paths.vswitchd_pid, self.paths.vswitchd_ctl)
            end = self._system.monotonic() + self._config.upgrade.ready_s
            self._start_vswitchd(release, database, end)

    # -- starting

    def _bring_up(self, release: Release) -> None:
        end = self._system.monotonic() + self._config.upgrade.ready_s
        paths = self.paths
        with files(paths.run_dir):
            paths.run_dir.mkdir(parents=True)
        record = self._record(release)
        self._namespaces.create(paths.netns)
        if self._config.uplink.both_open:  # otherwise the other instance may have it now
            self.devices.take(record)
        kept = paths.db_file.exists() and self._keeps_database()
        if not kept:
            with files(paths.db_file):
                paths.db_file.parent.mkdir(parents=True, exist_ok=True)
                paths.db_file.unlink(missing_ok=True)
            software = programs(release)
            self._run(release, [software.ovsdb_tool, "create", str(paths.db_file), software.schema], end)
        self._start_database(release, end)
        if self._fill_database is not None and not kept:
            self._fill_database(release)
        with self.database(max(end - self._system.monotonic(), _POLL_S)) as database:
            waits = {RESTORE_WAIT: "true"} if kept else {}
            database.set_other_config({**self._other_config(release), **waits})
            self._start_vswitchd(release, database, end)
        ready = (read_record(paths.record) or record).model_copy(update={"ready": True, "starter_born": None})
        self._system.write_atomic(paths.record, ready.model_dump_json(exclude_defaults=True))

    def _start_database(self, release: Release, end: float) -> None:
        paths = self.paths
        arguments = launch.daemon(paths.ovsdb_ctl, paths.ovsdb_pid, paths.ovsdb_log)
        server = programs(release).ovsdb_server
        self._run(release, [server, str(paths.db_file), f"--remote=punix:{paths.db_socket}", *arguments], end)

    def _start_vswitchd(self, release: Release, database: SwitchDb, end: float) -> None:
        """Start ovs-vswitchd: its command returns when the daemon has read its configuration, or has aborted."""
        arguments = launch.daemon(self.paths.vswitchd_ctl, self.paths.vswitchd_pid, self.paths.log)
        self._run(release, [programs(release).vswitchd, f"unix:{self.paths.db_socket}", *arguments], end)
        self._wait_ready(release, database, end)

    def _record(self, release: Release) -> InstanceRecord:
        record = InstanceRecord(
            release=release.name,
            root=release.root,
            prefix=release.prefix,
            ovs_version=release.ovs_version,
            dpdk_version=release.dpdk_version,
            started=self._system.wall(),
            starter=os.getpid(),
            starter_born=start_time(os.getpid()),
        )
        self._system.write_atomic(self.paths.record, record.model_dump_json())
        return record

    def _at_start(self) -> Sequence[str]:
        """Return the DPDK devices that the instance is to have from its start."""
        devices = self._instance.devices
        return devices if self._config.uplink.both_open else devargs.instead_of(devices)

    def _other_config(self, release: Release) -> dict[str, str]:
        """Return the settings that ovs-vswitchd reads only when it starts DPDK, and the configured settings. They are
        described in ovs-vswitchd.conf.db(5).

        ``--in-memory`` (DPDK, Linux EAL parameters) keeps no file in hugetlbfs: a killed process's huge pages are free
        at once. Without ``dpdk-lcore-mask`` the main thread keeps all cores (lib/dpdk.c, dpdk_init__).
        """
        instance = self._instance
        memory = Reservation(instance.memory_mb, 0) if self._memory is None else self._memory()
        nodes = numa_nodes(instance.pmd_cores)
        shared = {} if memory.shared_mtu is None else {"shared-mempool-config": str(memory.shared_mtu)}
        given = devargs.arguments(instance.dpdk_extra, self._at_start(), release.dpdk_version, devargs.is_iavf)
        prefix = self.paths.netns or f"ovsh-{self._side}"
        extra = " ".join([f"--file-prefix={prefix} --in-memory --single-file-segments -n 1",
                          *bonded_at_start(self._config, self._side), given])  # fmt: skip
        return {
            **self._config.other_config(self._side),
            "dpdk-init": "true",
            "dpdk-socket-mem": socket_mem(memory.mib, nodes),
            "dpdk-socket-limit": socket_limit(memory.mib, [*nodes, *numa_nodes()]),
            "dpdk-extra": extra.strip(),
            "pmd-cpu-mask": cpu_mask(instance.pmd_cores),
            **shared,
        }

    def _run(self, release: Release, argv: list[str], end: float) -> None:
        program = Path(argv[0]).name
        cores = other_cores([core for side in Side for core in self._config.instance(side).pmd_cores])
        command = launch.command(release, self.paths.netns, seen_in_trees(self._config, self.paths), argv, cores)
        environment, left = launch.environment(self.paths.run_dir), max(end - self._system.monotonic(), _POLL_S)
        try:
            done = self._system.run(command, timeout=left, check=False, env=environment)
        except CommandError as error:
            raise self._failure(release, program, error.message) from error
        if done.status != 0:
            raise self._failure(release, program, f"exit {done.status}", f"{done.stderr}\n{done.stdout}")

    def _wait_ready(self, release: Release, database: SwitchDb, end: float) -> None:
        while not database.state().dpdk_initialized:
            program = Path(programs(release).vswitchd).name
            if self._pid(self.paths.vswitchd_pid) is None:
                raise self._failure(release, program, "it ended by itself")
            if fatal(self._log_tail()):
                raise self._failure(release, program, "DPDK is not initialized")
            if self._system.monotonic() >= end:
                within = f"{self._config.upgrade.ready_s:g} s"
                raise self._failure(release, program, f"DPDK is not initialized within {within}")
            self._system.sleep(_POLL_S)

    def _failure(self, release: Release, program: str, otherwise: str, output: str = "") -> SwitchError:
        cause = telling_cause(self._log_tail(), output, otherwise)
        return SwitchError(
            f"instance {self._side}: {program} of release {release.label} did not start: {cause.text}",
            hint=f"{cause.hint}; log: {self.paths.saved_log}",
        )

    def _log_tail(self) -> str:
        try:
            with self.paths.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _undo(self, error: BaseException, unit: InstanceUnit | None) -> None:
        try:
            if unit is not None:  # it stays as failed, for `systemctl status` to show
                unit.end()
            self._take_down(unit, keep_log=True)
            self._give_vfs_back()
        except HotswapError as second:
            error.add_note(f"and undoing it failed: {second.message}")

    # -- stopping

    def _take_down(self, unit: InstanceUnit | None, *, keep_log: bool) -> None:
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._end(self.paths.vswitchd_pid, self.paths.vswitchd_ctl),
            lambda: self._end(self.paths.ovsdb_pid, self.paths.ovsdb_ctl),
            self.devices.give_back,
        )
        failures: list[HotswapError] = []
        for step in steps:
            try:
                step()
            except HotswapError as error:
                failures.append(error)
        if failures:  # a process or device is still in the namespace: keep the record, for another call of ``stop``
            raise failures[0]
        if unit is not None:
            unit.end()
            unit.remove_namespace()
        self._namespaces.remove(self.paths.netns)
        self._remove_files(keep_log=keep_log)

    def _give_vfs_back(self) -> None:
        for complaint in () if self._vfs is None else self._vfs.give_back():
            _logger.warning("%s", complaint)

    def _end(self, pid_file: Path, ctl: Path) -> None:
        """End the daemon of this pid file by the command `exit`, and if it does not answer, by signals."""
        owned = self._owned(pid_file)
        if owned:
            with contextlib.suppress(SwitchError):
                self._control(ctl, "exit", timeout=_EXIT_S)
                wait_until(lambda: not any(map(self._system.alive, owned)), _END_S, self._system)
        for pid in owned:
            if self._system.alive(pid) and self._is_ours(pid, pid_file):
                self._system.kill(pid, grace=1.0)

    def _remove_files(self, *, keep_log: bool) -> None:
        """Remove the files. If the log cannot be kept, the instance can be started again nevertheless."""
        if keep_log:
            try:
                keep_log_of(self.paths)
            except OSError as error:
                _logger.warning("%s is not kept: %s", self.paths.log, error.strerror)
        with files(self.paths.run_dir), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.paths.run_dir)

    # -- looking

    def unit(self) -> InstanceUnit | None:
        """Return the unit if it starts the processes, else ``None``. It is looked up each time, because it may be
        installed at any time. Raises CommandError."""
        return self._own_unit if self._own_unit is not None and self._own_unit.serves(self._config) else None

    @property
    def _instance(self) -> InstanceConfig:
        return self._config.instance(self._side)

    def _state(self, record: InstanceRecord | None, vswitchd: int | None, initialized: bool | None) -> State:
        if vswitchd is not None:
            return State.STARTING if initialized is False else State.RUNNING
        if record is None:
            return State.STOPPED
        other = not record.ready and record.starter != os.getpid()
        starting = other and self._system.is_still(record.starter, record.starter_born)
        return State.STARTING if starting else State.DEAD

    def _pid(self, pid_file: Path) -> int | None:
        """Return the pid of this pid file's daemon, or ``None`` if it is not alive."""
        pid = self._system.read_pid(pid_file)
        return pid if pid is not None and launch.names(self._system.cmdline(pid), pid_file) else None

    def _owned(self, pid_file: Path) -> list[int]:
        """Return the pids of this pid file's daemon, even if the file is missing or stale."""
        return [pid for pid in self._system.pids() if self._is_ours(pid, pid_file) and self._system.alive(pid)]

    def _is_ours(self, pid: int, pid_file: Path) -> bool:
        """Whether ``pid`` is proven to be the daemon of this pid file: its command line names the file, and the file
        names it or it lives in the instance's namespace. A reused pid, or a namesake in a container, fails that."""
        if not launch.names(self._system.cmdline(pid), pid_file):
            return False
        return self._system.read_pid(pid_file) == pid or self._namespaces.holds(self.paths.netns, pid)
