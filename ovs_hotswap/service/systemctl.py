"""A unit of the systemd that runs this host, as systemctl(1) shows and changes it."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.config import DEFAULT_RUN_DIR, Config
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.system import System

_ASK_S = 10.0
_STOP_S = 100.0  # systemd kills what does not end within TimeoutStopSec=, 90 s by default


class Unit:
    """A unit of this package. ``run_dir``: the run directory for which the installed units are made."""

    def __init__(self, name: str, system: System, *, booted: Path = BOOTED, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self._system, self._booted, self._run_dir = system, booted, run_dir
        self.name = name

    def serves(self, config: Config) -> bool:
        """Whether this unit runs what ``config`` describes: systemd runs the host and has the unit, and the unit has
        the configuration's run directory. A lab has a run directory of its own."""
        if config.run_dir != self._run_dir or not self._booted.exists():
            return False
        return self._show("LoadState") == "loaded"

    def active(self) -> str:
        """The unit's ``ActiveState``: active, activating, inactive, failed and others (org.freedesktop.systemd1(5))."""
        return self._show("ActiveState")

    def stale(self) -> bool:
        """Whether systemd has not read the unit's files since they were changed (``NeedDaemonReload``)."""
        return self._show("NeedDaemonReload") == "yes"

    def descriptors(self) -> int:
        """The hard limit of descriptors of the unit's processes (systemd.exec(5), ``LimitNOFILE=``)."""
        found = self._show("LimitNOFILE")
        return int(found) if found.isdecimal() else 1 << 30  # infinity

    def control_group(self) -> str:
        """The path of the unit's control group. If the unit is not active, it is the path that the group will have:
        each dash in the name of a slice stands for one level (systemd.slice(5))."""
        if found := self._show("ControlGroup"):
            return found
        stem = (self._show("Slice") or "system.slice").removesuffix(".slice")
        parts = [] if stem == "-" else stem.split("-")
        slices = ["-".join(parts[: end + 1]) + ".slice" for end in range(len(parts))]
        return "/" + "/".join([*slices, self.name])

    def hidden_directories(self) -> dict[str, str]:
        """The directories of the host that the unit's processes do not see, each with the setting that hides it
        (systemd.exec(5))."""
        hidden: dict[str, str] = {}
        if self._show("PrivateTmp") not in ("no", ""):
            hidden |= dict.fromkeys(("/tmp", "/var/tmp"), "PrivateTmp=")
        if self._show("ProtectHome") in ("yes", "tmpfs"):
            hidden |= dict.fromkeys(("/home", "/root", "/run/user"), "ProtectHome=")
        return hidden

    def writes_below(self) -> list[str] | None:
        """The directories in which the unit's processes may write, besides those that it makes for itself; ``None`` if
        they may write everywhere (systemd.exec(5), ``ProtectSystem=``, ``ReadWritePaths=``)."""
        if self._show("ProtectSystem") != "strict":
            return None
        return [path.lstrip("-+") for path in self._show("ReadWritePaths").split()]

    def capabilities(self) -> frozenset[str]:
        """The capabilities that the unit's processes may have, such as ``cap_net_admin`` (systemd.exec(5),
        ``CapabilityBoundingSet=``); empty if systemd does not say."""
        return frozenset(self._show("CapabilityBoundingSet").lower().split())

    def kernel_tunables_are_read_only(self) -> bool:
        """Whether the unit's processes cannot write to /sys (systemd.exec(5), ``ProtectKernelTunables=``)."""
        return self._show("ProtectKernelTunables") == "yes"

    def job(self) -> str:
        """What systemd is doing with the unit: start, stop, restart and others (org.freedesktop.systemd1(5),
        ``JobType``); empty if there is no job. Raises CommandError."""
        argv = ["systemctl", "list-jobs", "--no-legend", "--plain", self.name]
        words = self._system.run(argv, timeout=_ASK_S).stdout.split()  # number, unit, type, state
        return words[2] if len(words) == 4 else ""

    def start(self, timeout: float, verb: str = "start") -> str | None:
        """Start the unit, or ``restart`` it, and wait until it reports that it is ready. Returns systemctl's message if
        this fails, otherwise ``None``. Raises CommandError after ``timeout`` seconds."""
        done = self._system.run(["systemctl", verb, self.name], timeout=timeout, check=False)
        if done.status == 0:
            return None
        return next(iter(done.stderr.strip().splitlines()), "systemctl says nothing")

    def order(self, verb: str) -> None:
        """Give the order to ``start`` or ``restart`` the unit, and do not wait for it. Raises CommandError."""
        self._system.run(["systemctl", "--no-block", verb, self.name], timeout=_ASK_S)

    def stop(self) -> None:
        """Stop the unit, also while it is starting. Raises CommandError."""
        self._system.run(["systemctl", "stop", self.name], timeout=_STOP_S)

    def clear(self) -> None:
        """Have systemd forget that the unit has failed."""
        self._system.run(["systemctl", "reset-failed", self.name], timeout=_ASK_S, check=False)

    @property
    def hint(self) -> str:
        return f"`systemctl status {self.name}`, `journalctl -u {self.name}`"

    def _show(self, prop: str) -> str:
        argv = ["systemctl", "show", f"--property={prop}", "--value", self.name]
        return self._system.run(argv, timeout=_ASK_S, check=False).stdout.strip()
