"""The distribution's script ``ovs-ctl``, which ends whatever the well-known pid files name.

systemd can refuse to stop a unit, but not that the script is called. So another script takes its place, by the way that
dpkg has for that (dpkg-divert(1)), which upgrades of the package keep. It calls the distribution's, except for what
would end the daemons while ``shield`` exists. Where the script is not a package's of dpkg, nothing is done.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ovs_hotswap.errors import CommandError, HostError
from ovs_hotswap.system import System, files

SCRIPT = Path("/usr/share/openvswitch/scripts/ovs-ctl")
_MARK = "# Written by ovs-hotswap, and removed by `ovs-hotswap stock remove`."
_ASK_S = 60.0


def wrapper(own: Path, shield: Path, program: str) -> str:
    """Return the script that takes the place of ``ovs-ctl``. This is pure. ``own``: where the distribution's is now.
    ``shield``: the file that exists while the switch must not be ended."""
    return f"""\
#!/bin/sh
{_MARK}
for word; do
    case $word in stop|restart|force-reload-kmod)
        if test -e {shlex.quote(str(shield))}; then
            echo "ovs-ctl $word would end the switch that serves this host's VMs, and cut every VM off." >&2
            echo "To upgrade it without loss: {program} upgrade --release host" >&2
            echo "To give up on that, and end it: {program} stock unshield, then ovs-ctl $word" >&2
            exit 1
        fi
    esac
done
exec {shlex.quote(str(own))} "$@"
"""


class OvsCtl:
    """The script. ``shield``: the file that exists while the switch must not be ended."""

    def __init__(self, system: System, shield: Path, *, script: Path = SCRIPT, program: str = "ovs-hotswap") -> None:
        self._system, self._shield, self._script, self._program = system, shield, script, program
        self._own = script.with_name(f"{script.name}.distrib")

    def installed(self) -> bool:
        try:
            return _MARK in self._script.read_text(errors="replace")
        except OSError:
            return False

    def install(self) -> bool:
        """Take the script's place; return whether there is a package's script to take the place of. It may be repeated.
        Its undo is ``remove``. Raises HostError."""
        if not self.installed():
            if not self._is_of_a_package():
                return False
            self._divert("--add")
        self._system.write_atomic(self._script, wrapper(self._own, self._shield, self._program))
        with files(self._script):
            self._script.chmod(0o755)
        return True

    def remove(self) -> None:
        """Put the distribution's script back. It may be repeated. Raises HostError."""
        if self.installed():
            with files(self._script):
                self._script.unlink()
        if self._own.exists():
            self._divert("--remove")

    def _is_of_a_package(self) -> bool:
        try:
            found = self._system.run(["dpkg-query", "--search", str(self._script)], timeout=_ASK_S, check=False)
        except CommandError:
            return False
        return found.status == 0

    def _divert(self, verb: str) -> None:
        try:
            self._system.run(["dpkg-divert", "--local", "--rename", "--divert", str(self._own), verb,
                              str(self._script)], timeout=_ASK_S)  # fmt: skip
        except CommandError as error:
            raise HostError(f"{self._script}: {error.message}", hint="`dpkg-divert --list '*ovs-ctl'`") from error
