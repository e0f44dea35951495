"""The units of the distribution's switch, on a host whose switch ovs-hotswap upgrades.

Three things would cut every VM off: ``systemctl restart`` and the distribution's ``reload``, which ends the daemons and
starts others (ovs-systemd-reload); a package's script that does the same after an upgrade (Debian's
openvswitch-switch.postinst); and ``ovs-ctl stop``, which finds the daemons by the well-known pid files, even if these
lead to another instance (ovs-lib, stop_daemon). So:

- ``install``, for good: ``systemctl reload`` upgrades to what is installed.
- ``shield``, until the next boot: systemd refuses to stop or restart the units on request, and says so at once. Other
  units and the end of the host stop them as before.
- ``retire``, until the next boot, before the daemons are ended: systemd neither starts them again nor has ``ovs-ctl``
  stop what the well-known paths lead to.

After a boot the distribution's units start their switch, as they did before.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ovs_hotswap.errors import CommandError, SwitchError
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.system import System, files

PROGRAM = Path("/opt/ovs-hotswap/bin/ovs-hotswap")
_RELOAD, _SHIELD = "ovs-hotswap-reload.conf", "ovs-hotswap-shield.conf"  # one of the same name would hide the other
_DAEMONS = ("ovs-vswitchd", "ovsdb-server")
_ASK_S = 20.0
_HEAD = "# Written by ovs-hotswap, and removed by it.\n"


def reload_text(program: Path) -> str:
    """Return the drop-in by which ``systemctl reload`` upgrades to what is installed. This is pure."""
    command = f"{shlex.quote(str(program))} upgrade --release host"
    return f"{_HEAD}[Service]\nExecReload=\nExecReload={command}\n"


def shield_text(unit: str, program: Path, *, daemon: bool, retired: bool) -> str:
    """Return the drop-in of a unit while the host's switch is an instance of ovs-hotswap. This is pure.

    ``daemon``: it is the unit of a daemon, whose own reload ends it. ``retired``: its daemon is not the active one.
    """
    advice = (
        f"to upgrade without loss: {program.name} upgrade --release host; to give up: {program.name} stock unshield"
    )
    text = f"{_HEAD}[Unit]\nDescription=Open vSwitch ({unit}), which serves VMs; {advice}\nRefuseManualStop=yes\n"
    text += "[Service]\nExecReload=\n" if daemon else reload_text(program).removeprefix(_HEAD)
    if retired:
        text += "ExecStop=\nRestart=no\n"
    return text


def findings(installed: bool, shielded: Mapping[str, bool], adopted: bool) -> list[Finding]:
    """Return what ``check`` and ``doctor`` say of the units. This is pure.

    ``shielded``: by unit. ``adopted``: whether the host's switch is an instance of ovs-hotswap.
    """
    found = []
    if not installed:
        text = "`systemctl reload` of the distribution's switch starts other daemons, which cuts every VM off"
        found.append(Finding("stock units", Severity.WARNING, text, hint="`ovs-hotswap stock install`"))
    for unit, yes in shielded.items():
        if adopted and not yes:
            text = f"a restart of {unit}, also by an upgrade of its package, would cut every VM off"
            found.append(Finding("stock units", Severity.ERROR, text, hint="`ovs-hotswap stock shield`", item=unit))
    return found


class StockUnits:
    """The units of the distribution's switch: ``unit`` (``config.stock.unit``), and those of the two daemons where
    there are such. ``etc`` and ``run`` are where systemd reads drop-ins. Without systemd, nothing is done.

    Every method may be repeated. Each raises HostError if a file cannot be written, and SwitchError if systemd refuses.
    """

    def __init__(
        self, unit: str, system: System, program: Path = PROGRAM, *, etc: Path = Path("/etc/systemd/system"),
        run: Path = Path("/run/systemd/system"), booted: Path = BOOTED,
    ) -> None:  # fmt: skip
        self._unit, self._system, self._program = unit.removesuffix(".service"), system, program
        self._etc, self._run, self._booted = etc, run, booted

    @property
    def shield_file(self) -> Path:
        """The file that exists while the switch is shielded."""
        return self._shield_file(self._unit)

    def names(self) -> tuple[str, ...]:
        """The units that this host has; none without systemd."""
        if not self._booted.exists():
            return ()
        return tuple(name for name in dict.fromkeys((self._unit, *_DAEMONS))
                     if self._show(name, "LoadState") == "loaded")  # fmt: skip

    def install(self) -> None:
        """Have ``systemctl reload`` upgrade, for good. Its undo is ``remove``."""
        self._write({self._reload_file: reload_text(self._program)} if self.names() else {})

    def remove(self) -> None:
        self._clear([self._reload_file])

    def installed(self) -> bool:
        return self._reload_file.exists()

    def shield(self, *, retired: bool = False) -> None:
        """Have systemd refuse to stop the units on request, until the next boot. Its undo is ``unshield``."""
        self._write({self._shield_file(name):
                     shield_text(name, self._program, daemon=name in _DAEMONS, retired=retired)
                     for name in self.names()})  # fmt: skip

    def retire(self) -> None:
        """Have systemd leave the end of the daemons alone. It is called before they are ended; its undo, while they
        live, is ``shield``."""
        self.shield(retired=True)

    def unshield(self) -> None:
        self._clear([self._shield_file(name) for name in (self._unit, *_DAEMONS)])

    def shielded(self) -> dict[str, bool]:
        """Whether systemd refuses to stop each unit on request, by name."""
        return {name: self._show(name, "RefuseManualStop") == "yes" for name in self.names()}

    def forget_failures(self) -> None:
        """Have systemd forget that the daemons were killed."""
        for name in self.names():
            self._system.run(["systemctl", "reset-failed", name], timeout=_ASK_S, check=False)

    @property
    def _reload_file(self) -> Path:
        return self._etc / f"{self._unit}.service.d" / _RELOAD

    def _shield_file(self, name: str) -> Path:
        return self._run / f"{name}.service.d" / _SHIELD

    def _write(self, texts: Mapping[Path, str]) -> None:
        changed = False
        for path, text in texts.items():
            with files(path):
                if path.exists() and path.read_text() == text:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
            self._system.write_atomic(path, text)
            path.chmod(0o644)
            changed = True
        if changed:
            self._read_again()

    def _clear(self, paths: list[Path]) -> None:
        changed = False
        for path in paths:
            with files(path):
                if path.exists():
                    path.unlink()
                    changed = True
                if path.parent.exists() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
        if changed:
            self._read_again()

    def _read_again(self) -> None:
        if not self._booted.exists():
            return
        try:
            self._system.run(["systemctl", "daemon-reload"], timeout=_ASK_S)
        except CommandError as error:
            raise SwitchError(f"systemd has not read its units again: {error.message}",
                              hint="`systemctl daemon-reload`, then the command again") from error  # fmt: skip

    def _show(self, name: str, what: str) -> str:
        argv = ["systemctl", "show", f"--property={what}", "--value", f"{name}.service"]
        return self._system.run(argv, timeout=_ASK_S, check=False).stdout.strip()
