"""A unit of the systemd that runs this host, asked for through systemctl(1)."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.config import DEFAULT_RUN_DIR, Config
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.system import System

_ASK_S = 10.0
_STOP_S = 100.0  # systemd kills what does not end within TimeoutStopSec=, 90 s by default


class Unit:
    """A unit of this package's. ``run_dir``: the run directory that the installed units are made for."""

    def __init__(self, name: str, system: System, *, booted: Path = BOOTED, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self._system, self._booted, self._run_dir = system, booted, run_dir
        self.name = name

    def serves(self, config: Config) -> bool:
        """Whether what ``config`` describes is this unit's: systemd runs the host and has the unit, and the unit's run
        directory is the configuration's. A lab has a directory of its own."""
        if config.run_dir != self._run_dir or not self._booted.exists():
            return False
        return self._show("LoadState") == "loaded"

    def active(self) -> str:
        """``ActiveState``: active, activating, inactive, failed and others (org.freedesktop.systemd1(5))."""
        return self._show("ActiveState")

    def descriptors(self) -> int:
        """The hard limit of descriptors of its processes (systemd.exec(5), ``LimitNOFILE=``)."""
        found = self._show("LimitNOFILE")
        return int(found) if found.isdecimal() else 1 << 30  # infinity

    def control_group(self) -> str:
        """Its control group; where it is to be, if it is not active (systemd.slice(5): a dash in the name of a slice
        stands for one below another)."""
        if found := self._show("ControlGroup"):
            return found
        stem = (self._show("Slice") or "system.slice").removesuffix(".slice")
        parts = [] if stem == "-" else stem.split("-")
        slices = ["-".join(parts[: end + 1]) + ".slice" for end in range(len(parts))]
        return "/" + "/".join([*slices, self.name])

    def hidden_directories(self) -> dict[str, str]:
        """Directories of the host that its processes do not see, each with the setting that hides it
        (systemd.exec(5))."""
        hidden: dict[str, str] = {}
        if self._show("PrivateTmp") not in ("no", ""):
            hidden |= dict.fromkeys(("/tmp", "/var/tmp"), "PrivateTmp=")
        if self._show("ProtectHome") in ("yes", "tmpfs"):
            hidden |= dict.fromkeys(("/home", "/root", "/run/user"), "ProtectHome=")
        return hidden

    def job(self) -> str:
        """What systemd is doing with it: start, stop, restart and others (org.freedesktop.systemd1(5), ``JobType``);
        empty if that is nothing. Raises CommandError."""
        argv = ["systemctl", "list-jobs", "--no-legend", "--plain", self.name]
        words = self._system.run(argv, timeout=_ASK_S).stdout.split()  # number, unit, type, state
        return words[2] if len(words) == 4 else ""

    def start(self, timeout: float, verb: str = "start") -> str | None:
        """Start it, or ``restart`` it, and wait until it says that it is ready; return systemctl's complaint if that
        fails. Raises CommandError after ``timeout`` seconds."""
        done = self._system.run(["systemctl", verb, self.name], timeout=timeout, check=False)
        if done.status == 0:
            return None
        return next(iter(done.stderr.strip().splitlines()), "systemctl says nothing")

    def stop(self) -> None:
        """End whatever is in it, a start under way included. Raises CommandError."""
        self._system.run(["systemctl", "stop", self.name], timeout=_STOP_S)

    def clear(self) -> None:
        """Have systemd forget how it ended."""
        self._system.run(["systemctl", "reset-failed", self.name], timeout=_ASK_S, check=False)

    @property
    def hint(self) -> str:
        return f"`systemctl status {self.name}`, `journalctl -u {self.name}`"

    def _show(self, prop: str) -> str:
        argv = ["systemctl", "show", f"--property={prop}", "--value", self.name]
        return self._system.run(argv, timeout=_ASK_S, check=False).stdout.strip()
