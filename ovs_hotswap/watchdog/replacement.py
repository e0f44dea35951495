"""The two daemons of a host are replaced by this version of the program, as the scripts of its package ask for it.

VMs keep their network. A daemon that cannot be replaced keeps running what it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ovs_hotswap import __version__
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.broker.lifecycle import replace_broker
from ovs_hotswap.broker.persist.formats import FORMATS
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, BusyError, HotswapError, StateUnknown
from ovs_hotswap.host.host import WATCHDOG_S, Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.watchdog import report, status_file

WATCH = "ovs-hotswap-watch.service"
_BROKER_S = 20.0
_WATCH_S = 30.0
_POLL_S = 0.1

Say = Callable[[str], None]


def see_replaceable(host: Host) -> None:
    """Raise BusyError if the program's files must not be replaced now: an upgrade of the switch is under way, or is to
    be finished by the version that began it."""
    unfinished = Journals(host.config.state_dir, host.system).read()
    if unfinished is not None:
        raise BusyError(
            f"an upgrade of the switch is unfinished ({unfinished.standing.phase}), and the version that began it is "
            "to finish it", hint="`ovs-hotswap status`, then `ovs-hotswap resume` or `ovs-hotswap rollback`",
        )  # fmt: skip
    _see_idle(host)


def _see_idle(host: Host) -> None:
    """Raise BusyError if a command works on the instances. A task of the watchdog is waited for. The lock is not kept:
    without it the watchdog could not start an instance again."""
    with host.lock(WATCHDOG_S):
        pass


def see_removable(host: Host, unit: Unit | None = None) -> None:
    """Raise BusyError if VMs may depend on the program: an instance runs or is being started, or a watchdog runs that
    would start one."""
    _see_idle(host)
    active = host.recorded_active()
    running = sorted((side for side in Side if host.instances[side].pid() is not None), key=lambda side: side is active)
    if running:
        which = " and ".join(f"instance {side}" for side in running)
        ends = ["`systemctl disable --now ovs-hotswap-watch`"]
        ends += [f"`ovs-hotswap instance stop {side} --force`" for side in running]
        raise BusyError(f"{which} may serve VMs, which would lose their network",
                        hint=f"move the VMs to another host, or shut them down; then {', '.join(ends)}")  # fmt: skip
    unit = unit or Unit(WATCH, host.system)
    if report.read(host.config, host.system)["running"] and not unit.serves(host.config):
        raise BusyError("a watchdog runs that is not systemd's", hint="end its `watch run`")


def unreadable(found: BrokerStatus, own: Sequence[int] = FORMATS) -> str | None:
    """Why this version must not follow a broker that ends before its successor starts; ``None`` if it may. A broker of
    a version that does not report its formats writes those that this one reads."""
    if strange := sorted(set(found.formats) - set(own)):
        formats = " and ".join(map(str, strange))
        return f"the broker {found.version} may keep a state of format {formats}, which {__version__} cannot read"
    return None


def see_own_version(found: BrokerStatus) -> None:
    """Raise BrokerError if the broker that was started is not of this version: a unit in /etc may run another one."""
    if found.version != __version__:
        raise BrokerError(f"broker {found.version} was started, and not {__version__}",
                          hint="`systemctl cat ovs-hotswap-broker` shows which program its unit runs")  # fmt: skip


def replace_running_broker(config: Config, system: System, config_path: Path, say: Say) -> None:
    """Replace the broker if one runs. Raises HotswapError; then the broker from before runs, or systemd tries to start
    this one and keeps its connections."""
    if config.backend is not BackendMode.BROKER:
        return
    try:
        with BrokerClient(config.broker_socket) as client:
            before = client.status()
    except BrokerError as error:
        pid = system.read_writer(config.run_dir / "broker.pid", "broker")
        if pid is None:
            return  # a unit that fails is started again with this program by systemd
        raise BrokerError(f"the broker from before (process {pid}) runs, and what it may leave is not known: "
                          f"{error.message}", hint="`ovs-hotswap broker take-over` replaces it") from error  # fmt: skip
    if before.kept_by_systemd and (reason := unreadable(before)) is not None:
        raise BrokerError(reason, hint="install a version between the two first; its package replaces the broker")
    after = replace_broker(config, system, config_path, _BROKER_S)
    see_own_version(after)
    say(f"broker {after.version}, process {after.pid}, has taken over {after.vms} VMs from broker {before.version}")


def restart_running_watchdog(config: Config, system: System, say: Say, unit: Unit | None = None) -> None:
    """Restart the watchdog if one runs; both instances stay. Raises HotswapError."""
    unit = unit or Unit(WATCH, system)
    if not unit.serves(config) or unit.active() in ("inactive", "failed", "deactivating"):
        if report.read(config, system)["running"]:
            raise StateUnknown("the watchdog is not systemd's, and runs the version from before",
                               hint="end its `watch run` and start it again")  # fmt: skip
        return
    before = (status_file.read_state(config) or {}).get("pid")
    unit.order("restart")  # with mode = "required" it is ready only when a standby is

    def successor() -> bool:
        pid = (status_file.read_state(config) or {}).get("pid")
        ready = config.watch.mode == "required" or unit.active() == "active"
        return ready and pid != before and bool(report.read(config, system)["running"])

    if not wait_until(successor, _WATCH_S, system, poll_s=_POLL_S):
        raise StateUnknown(f"{WATCH} does not run {_WATCH_S:g} s after its restart", hint=unit.hint)
    say("the watchdog runs this version")


def replace_daemons(config: Config, system: System, config_path: Path, say: Say) -> list[HotswapError]:
    """Replace what runs, the broker first, and return the faults. Nothing is replaced while a command works on the
    instances, such as an upgrade of the switch that has begun since the files were replaced."""
    faults: list[HotswapError] = []
    try:
        _see_idle(Host(config, system))
    except BusyError as error:
        return [BusyError(f"broker and watchdog run the version from before: {error.message}",
                          hint="when it has ended: `ovs-hotswap package replace-daemons`")]  # fmt: skip
    for act in (
        partial(replace_running_broker, config, system, config_path, say),
        partial(restart_running_watchdog, config, system, say),
    ):
        try:
            act()
        except HotswapError as error:
            faults.append(error)
    return faults
