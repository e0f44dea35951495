"""Starting and stopping the broker.

If its unit is installed, systemd runs the broker; otherwise a supervisor of this program does, in the background. Both
keep the broker's connections when it ends, and start it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import System
from ovs_hotswap.trust import own_directory
from ovs_hotswap.waiting import wait_until

_POLL_S = 0.05
_GRACE_S = 15.0  # for a supervisor whose broker ends
_ANSWER_S = 10.0  # for a broker that has waited for its switches
UNIT = "ovs-hotswap-broker.service"


def start_broker(config: Config, system: System, config_path: Path, timeout: float) -> BrokerStatus:
    """Start a broker unless one runs, and return its status.

    Raises BrokerError if none answers within ``timeout`` seconds.
    """
    unit = Unit(UNIT, system)
    if unit.serves(config):
        return _by_systemd(unit, config, timeout, "start")
    own_directory(config.run_dir)
    log = config.run_dir / "broker.log"
    pid = _supervisor(config, system) or _broker(config, system)
    begun = pid is None
    if pid is None:
        pid = _supervise(config, system, config_path)

    def answer() -> BrokerStatus | None:
        alive = system.alive(pid)
        try:
            status = _status(config)
        except BrokerError as error:
            if not alive:
                raise ended("the broker", log) from error
            return None
        return status if not begun or not alive or _supervisor(config, system) is not None else None

    status = wait_until(answer, timeout, system, poll_s=_POLL_S)
    if status is None:
        raise BrokerError(f"the broker does not answer after {timeout:g} s", hint=f"see {log}")
    return status


def replace_broker(config: Config, system: System, config_path: Path, timeout: float) -> BrokerStatus:
    """Have a new process take over from the running broker, and return the status of the new one.

    Under systemd the unit is restarted, and gets what its descriptor store holds: a successor outside of the unit would
    end with this session, and the unit would start a third broker. Raises BrokerError; the old broker then continues.
    """
    unit = Unit(UNIT, system)
    if unit.serves(config):
        return _by_systemd(unit, config, timeout, "restart")
    before = _status(config)
    if before.kept_by_systemd:
        raise BrokerError("only systemd can replace this broker, because it keeps the broker's descriptors",
                          hint="`systemctl restart ovs-hotswap-broker`")  # fmt: skip
    log = config.run_dir / "broker.log"
    pid = _supervise(config, system, config_path, "--take-over")

    def successor() -> BrokerStatus | None:
        if not system.alive(pid):
            raise ended("the new broker", log)
        with contextlib.suppress(BrokerError):
            status = _status(config)
            if status.pid != before.pid and _supervisor(config, system) == pid:
                return status
        return None

    status = wait_until(successor, timeout, system, poll_s=_POLL_S)
    if status is None:
        raise BrokerError(f"the new broker, below process {pid}, has not taken over after {timeout:g} s",
                          hint=f"see {log}")  # fmt: skip
    return status


def stop_broker(config: Config, system: System) -> bool:
    """End the broker after all switches have released all rings; return whether there was a broker.

    Raises BrokerError if the user is not root, or if a switch does not release its rings: the broker then continues.
    Raises CommandError if the broker does not die.
    """
    if os.geteuid() != 0:
        raise BrokerError("only root may stop the broker: every VM loses its network", hint="run it with `sudo`")
    unit = Unit(UNIT, system)
    if unit.serves(config):
        there = unit.active() not in {"inactive", "failed"}
        if there:
            _withdraw(config, system)
        unit.stop()
        return there
    pid = _supervisor(config, system) or _broker(config, system)
    if pid is None:
        return False
    _withdraw(config, system)
    system.kill(pid, grace=_GRACE_S)
    return True


def _withdraw(config: Config, system: System) -> None:
    """Have the broker take all rings back, and close its connections to the QEMUs."""
    try:
        with BrokerClient(config.broker_socket, config.broker.fence_ms / 1e3 + _ANSWER_S) as client:
            client.call("withdraw")
    except BrokerError as error:
        pid = _broker(config, system)
        hangs = f"if it hangs: `kill -KILL {pid}`; its supervisor then starts another, which continues from there"
        raise BrokerError(f"the broker keeps running: {error.message}", hint=error.hint or hangs) from error


def _supervise(config: Config, system: System, config_path: Path, *more: str) -> int:
    log = config.run_dir / "broker.log"
    program = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(config_path)]
    return system.spawn([*program, "broker", "supervise", "--log-file", str(log), *more], log=log)


def _supervisor(config: Config, system: System) -> int | None:
    """Return the process that keeps the broker running, or ``None``."""
    return system.read_writer(config.run_dir / "supervisor.pid", "supervise")


def _broker(config: Config, system: System) -> int | None:
    return system.read_writer(config.run_dir / "broker.pid", "broker")


def _by_systemd(unit: Unit, config: Config, timeout: float, verb: str) -> BrokerStatus:
    complaint = unit.start(timeout, verb)
    if complaint is not None:
        raise BrokerError(f"{unit.name} did not {verb}: {complaint}", hint=unit.hint)
    return _status(config)


def _status(config: Config) -> BrokerStatus:
    with BrokerClient(config.broker_socket) as client:
        return client.status()


def ended(which: str, log: Path) -> BrokerError:
    """Return the error with which a broker ended, and its hint, from the end of its log. ``which`` names the broker."""
    lines, hint = log.read_text(errors="replace").strip().splitlines(), f"see {log}"
    if len(lines) > 1 and lines[-1].startswith("hint: "):
        hint = f"{lines.pop().removeprefix('hint: ')} ({hint})"
    why = lines[-1].removeprefix("error: ") if lines else "it says nothing"
    return BrokerError(f"{which} ended: {why}", hint=hint)
