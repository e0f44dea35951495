"""The systemd unit in which an instance lives, if systemd runs the host.

A process belongs to the control group of the process that started it, and ends with that group: with the SSH session,
or when the watchdog's service is restarted. So if the template unit is installed, systemd starts the instance. An
*order* is a file that says what to start, and that the unit's command carries out; a *fault* is a file that returns the
error to the process that gave the order.

The network namespace belongs to another unit: it is made and removed in the host's mount namespace, where all processes
see it, and it outlives the instance's processes, so that the uplink's device can be taken out of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from ovs_hotswap.config import DEFAULT_RUN_DIR, Config
from ovs_hotswap.errors import HotswapError, SwitchError, from_document, to_document
from ovs_hotswap.model import Release, Side
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict

_MARGIN_S = 30.0  # for systemd itself and for undoing a start that failed


class StartRequest(Strict):
    """An order to start ``release`` with ``config``, the configuration of the process that gives the order."""

    release: Release
    config: Config


class PreexistingNamespaces(Namespaces):
    """Namespaces for the unit's own command: the instance's namespace exists before the command, and stays after it."""

    def create(self, name: str) -> None:
        self.set_loopback_up(name)

    def remove(self, name: str) -> None:
        pass


class InstanceUnit:
    """The unit ``ovs-hotswap-instance@SIDE.service``, and the unit of its namespace.

    ``run_dir`` is the run directory for which the installed units are made.
    """

    def __init__(self, side: Side, system: System, *, booted: Path = BOOTED, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self._side, self._system = side, system
        self._order = run_dir / f"order-{side}.json"
        self._fault = run_dir / f"fault-{side}.json"
        self._processes, self._namespace = (
            Unit(f"ovs-hotswap-{what}@{side}.service", system, booted=booted, run_dir=run_dir)
            for what in ("instance", "netns")
        )
        self.name = self._processes.name

    def serves(self, config: Config) -> bool:
        """Whether systemd starts instances of this configuration."""
        return self._processes.serves(config)

    def descriptors(self) -> int:
        """Return ``LimitNOFILE=`` of the unit, which a drop-in may have changed."""
        return self._processes.descriptors()

    def control_group(self) -> str:
        return self._processes.control_group()

    def starting(self) -> bool:
        return self._processes.active() == "activating"

    def start(self, release: Release, config: Config) -> None:
        """Have the unit start the instance. Raises the error of the start, or SwitchError; the caller undoes it."""
        self._have_done("start", release, config)

    def restart_ovsdb(self, release: Release, config: Config) -> None:
        """Have the unit start those processes again that ended. Raises as ``start`` does."""
        self._have_done("reload", release, config)

    def _have_done(self, verb: str, release: Release, config: Config) -> None:
        self._fault.unlink(missing_ok=True)
        self._order.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self._order, StartRequest(release=release, config=config).model_dump_json())
        try:
            complaint = self._processes.start(config.upgrade.ready_s + _MARGIN_S, verb)
        finally:
            self._order.unlink(missing_ok=True)
        if complaint is not None:
            raise self._failure(complaint, verb)

    def end(self) -> None:
        """End the processes, and a start that is under way. Raises CommandError."""
        self._processes.stop()

    def remove_namespace(self) -> None:
        """Have the unit of the namespace remove it. Raises CommandError."""
        self._namespace.stop()

    def clear(self) -> None:
        """Have systemd forget how the units ended."""
        self._processes.clear()
        self._namespace.clear()

    def carry_out(self, act: Callable[[StartRequest], None]) -> None:
        """Carry out the order with ``act``, in the unit's own command.

        Raises SwitchError if there is no order, and what ``act`` raises, which the process that gave the order gets,
        too.
        """
        try:
            order = StartRequest.model_validate_json(self._order.read_text())
        except (OSError, ValueError) as error:
            raise SwitchError(
                f"there is no order to start instance {self._side}",
                hint=f"`ovs-hotswap instance start {self._side}` gives one",
            ) from error
        try:
            act(order)
        except HotswapError as error:
            self._system.write_atomic(self._fault, json.dumps(to_document(error)))
            raise

    def _failure(self, complaint: str, verb: str) -> HotswapError:
        with contextlib.suppress(OSError, ValueError):
            fault = json.loads(self._fault.read_text())
            self._fault.unlink()
            if isinstance(fault, dict) and "message" in fault:
                return from_document(fault)
        unit = self._processes
        return SwitchError(f"instance {self._side}: {unit.name} did not {verb}: {complaint}", hint=unit.hint)
