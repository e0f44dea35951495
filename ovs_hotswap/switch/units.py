"""The systemd unit that an instance lives in, where systemd runs the host.

A process belongs to the control group of whoever started it, and ends with it: with the SSH session, or when the
watchdog's service is restarted. So where the template unit is installed, systemd starts the instance. What it is to
start is an *order*, a file that the unit's command carries out; a *fault*, another one, brings the error back to
whoever gave the order.

The network namespace is another unit's: it is made and removed in the host's mount namespace, where all see it, and it
outlives the processes, so that the uplink's device can be taken out of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from ovs_hotswap.config import DEFAULT_RUN_DIR, Config, Strict
from ovs_hotswap.errors import HotswapError, SwitchError, error_classes
from ovs_hotswap.model import Release, Side
from ovs_hotswap.sd import BOOTED
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.system import System

_ASK_S = 10.0
_STOP_S = 100.0  # systemd kills what does not end within TimeoutStopSec=, 90 s by default
_MARGIN_S = 30.0  # for systemd itself and for undoing a start that failed


class Order(Strict):
    """Start ``release`` as ``config`` says: the configuration of whoever orders it, which may have changed since."""

    release: Release
    config: Config


class Fault(Strict):
    """Why an order was not carried out: a HotswapError, by its exit code, and what was noted on it."""

    exit_code: int
    message: str
    hint: str | None
    notes: list[str]

    @classmethod
    def of(cls, error: HotswapError) -> Fault:
        notes = list(getattr(error, "__notes__", ()))
        return cls(exit_code=error.exit_code, message=error.message, hint=error.hint, notes=notes)

    @property
    def error(self) -> HotswapError:
        kind = next((kind for kind in error_classes() if kind.exit_code == self.exit_code), HotswapError)
        error = kind(self.message, hint=self.hint)
        for note in self.notes:
            error.add_note(note)
        return error


class GivenNamespaces(Namespaces):
    """For the unit's own command: the instance's namespace is there before it, and stays."""

    def create(self, name: str) -> None:
        self.set_loopback_up(name)

    def remove(self, name: str) -> None:
        pass


class InstanceUnit:
    """``ovs-hotswap-instance@SIDE.service``, and the unit of its namespace. ``run_dir``: the run directory that the
    installed units are made for."""

    def __init__(self, side: Side, system: System, *, booted: Path = BOOTED, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self._side, self._system, self._booted, self._run_dir = side, system, booted, run_dir
        self._order = run_dir / f"order-{side}.json"
        self._fault = run_dir / f"fault-{side}.json"
        self.name = f"ovs-hotswap-instance@{side}.service"
        self._namespace = f"ovs-hotswap-netns@{side}.service"

    def serves(self, config: Config) -> bool:
        """Whether instances of this configuration are started by systemd: it runs the host, it has the unit, and the
        unit's run directory is the configuration's. A lab has a directory of its own."""
        if config.run_dir != self._run_dir or not self._booted.exists():
            return False
        return self._show("LoadState") == "loaded"

    def starting(self) -> bool:
        return self._show("ActiveState") == "activating"

    def start(self, release: Release, config: Config) -> None:
        """Have the order carried out. Raises what carrying it out raised, or SwitchError. The caller undoes."""
        self._fault.unlink(missing_ok=True)
        self._system.write_atomic(self._order, Order(release=release, config=config).model_dump_json())
        try:
            done = self._system.run(
                ["systemctl", "start", self.name], timeout=config.upgrade.ready_s + _MARGIN_S, check=False
            )
        finally:
            self._order.unlink(missing_ok=True)
        if done.status != 0:
            raise self._failure(done.stderr)

    def end(self) -> None:
        """End whatever is in the unit, a start under way included. Raises CommandError."""
        self._stop(self.name)

    def remove_namespace(self) -> None:
        """Raises CommandError."""
        self._stop(self._namespace)

    def clear(self) -> None:
        """Have systemd forget how the units ended."""
        self._system.run(["systemctl", "reset-failed", self.name, self._namespace], timeout=_ASK_S, check=False)

    def carry_out(self, act: Callable[[Order], None]) -> None:
        """For the unit's own command: ``act`` on the order. Raises SwitchError if there is none, and what ``act``
        raises, which the one who gave the order gets too."""
        try:
            order = Order.model_validate_json(self._order.read_text())
        except (OSError, ValidationError) as error:
            raise SwitchError(
                f"there is no order to start instance {self._side}",
                hint=f"`ovs-hotswap instance start {self._side}` gives one",
            ) from error
        try:
            act(order)
        except HotswapError as error:
            self._system.write_atomic(self._fault, Fault.of(error).model_dump_json())
            raise

    def _failure(self, output: str) -> HotswapError:
        with contextlib.suppress(OSError, ValidationError):
            fault = Fault.model_validate_json(self._fault.read_text())
            self._fault.unlink()
            return fault.error
        lines = output.strip().splitlines()
        return SwitchError(
            f"instance {self._side}: {self.name} did not start: {lines[0] if lines else 'systemctl says nothing'}",
            hint=f"`systemctl status {self.name}`, `journalctl -u {self.name}`",
        )

    def _stop(self, unit: str) -> None:
        self._system.run(["systemctl", "stop", unit], timeout=_STOP_S)

    def _show(self, prop: str) -> str:
        argv = ["systemctl", "show", f"--property={prop}", "--value", self.name]
        return self._system.run(argv, timeout=_ASK_S, check=False).stdout.strip()
