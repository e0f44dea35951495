"""A tree of Debian 12 with nothing in it but what is named: the programs that compile, or a clean machine.

What is compiled in it knows only the tree: not the machine's packages, network, time zone, user or path. So it comes
out the same everywhere, and nothing is installed on the machine for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ovs_hotswap.errors import ReleaseError
from ovs_hotswap.system import System
from tools.packages.debian import SUITE

_MAKE_S = 3600.0
_RUN_S = 4 * 3600.0
_STAMP = "ovs-hotswap-stamp"

Line = Callable[[str], None]
# The end of this process is the end of all in the namespaces, and of what is mounted in them.
_ALONE = [
    "setpriv", "--pdeathsig", "KILL", "--",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--ipc", "--uts",
]  # fmt: skip
_ENTER = 'mount -t proc proc "$1/proc" && exec chroot "$@"'


class BuildTree:
    """A file system in which packages are built. ``path`` is made when it is first needed, and again when ``packages``
    (name and version) or the way to make it have changed."""

    def __init__(self, path: Path, packages: Mapping[str, str], mirror: str, system: System) -> None:
        self.path = path
        self._packages = packages
        self._mirror = mirror
        self._system = system

    def make(self, line: Line) -> None:
        """Raises ReleaseError if debootstrap fails."""
        include = [f"--include={','.join(self._packages)}"] if self._packages else []
        argv = [*_ALONE, "debootstrap", "--variant=minbase", *include, SUITE, str(self.path), self._mirror]
        stamp = hashlib.sha256(json.dumps([argv, dict(self._packages)]).encode()).hexdigest()
        mark = self.path / _STAMP
        if mark.is_file() and mark.read_text() == stamp:
            return
        self.remove()
        self.path.mkdir(parents=True)
        environment = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        said: list[str] = []

        def keep(text: str) -> None:
            said.append(text)
            line(text)

        status = self._system.run_lines(argv, keep, timeout=_MAKE_S, env=environment)
        if status != 0:
            raise ReleaseError(
                f"debootstrap {SUITE} failed: {said[-1] if said else f'exit {status}'}",
                hint="is the Debian mirror within reach, and enough room on the disk?",
            )
        shutil.rmtree(self.path / "var/cache/apt/archives", ignore_errors=True)
        mark.write_text(stamp)

    def run(self, argv: list[str], line: Line, environment: Mapping[str, str], *, network: bool = False) -> int:
        """Run ``argv`` in the tree, as root, with this environment alone; return its exit status."""
        settings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        words = [f"{name}={value}" for name, value in {**settings, **environment}.items()]
        alone = _ALONE if network else [*_ALONE, "--net"]
        inside = ["sh", "-c", _ENTER, "sh", str(self.path), "env", "-i", *words, *argv]
        return self._system.run_lines([*alone, "--", *inside], line, timeout=_RUN_S)

    def remove(self) -> None:
        """What is mounted in it is the kernel's to refuse: nothing of this class is, once its process has ended."""
        if self.path.exists():
            for entry in Path("/proc/self/mountinfo").read_text().splitlines():
                if Path(entry.split()[4]).is_relative_to(self.path):
                    raise ReleaseError(f"{entry.split()[4]} is mounted", hint="umount it")
            shutil.rmtree(self.path)
