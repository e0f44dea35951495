"""A mount namespace and a network namespace of their own, in which a test keeps a whole host.

The directories ``places`` (such as ``/run``) are empty inside, and are directories below ``directory`` outside, so that
files and sockets of the host can be reached from the tests as well. Named network namespaces that are made inside exist
only there, because ``/run/netns`` does.

All of it hangs on one process, the keeper, which is this file run as a program. It waits for the end of its standard
input, and then kills all processes in the namespaces: when ``Space.close`` is called, and as well when the tests are
killed. The mounts and devices vanish with the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ovs_hotswap.system import Completed, System

PLACES = ("/run", "/etc/openvswitch", "/var/lib/openvswitch", "/var/log/openvswitch")
_END_S = 20.0
_READY = b"ready\n"


class Space:
    """The namespaces. They exist until ``close``. Each of ``places`` must be a directory of this machine."""

    def __init__(self, directory: Path, system: System, places: Sequence[str] = PLACES) -> None:
        self.directory = directory
        self._system = system
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--net", "--propagation", "private", "--",
             sys.executable, "-P", __file__, str(directory), *places],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        with self._keeper.stdout as told:
            ready = told.readline()
        if ready != _READY:
            self.close()
            raise RuntimeError(f"the namespaces for {directory} cannot be made; the reason is in standard error")
        self._network = _identity(f"/proc/{self.pid}/ns/net")

    @property
    def pid(self) -> int:
        """The pid of the keeper, for ``nsenter --target``."""
        return self._keeper.pid

    def processes(self) -> list[int]:
        """The pids of all processes in the network namespace, also after ``close``."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._network in _namespaces(pid)]

    def outside(self, path: str | Path) -> Path:
        """Where a file of one of the ``places`` is for a process outside: ``/run/x`` is ``directory/run/x``."""
        return self.directory / Path(path).relative_to("/")

    def entering(self, argv: Sequence[str], netns: str | None = None) -> list[str]:
        """The command line that runs ``argv`` inside, in the named network namespace if there is one. The process that
        runs it becomes ``argv`` itself, so that its pid is that of ``argv``."""
        enter = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--net=/proc/{self.pid}/ns/net", "--"]
        return [*enter, *(["ip", "netns", "exec", netns] if netns else []), *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        netns: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run ``argv`` inside to its end, as ``System.run`` does. Raises CommandError and CommandTimeout."""
        return self._system.run(self.entering(argv, netns), timeout=timeout, check=check, stdin=stdin, env=env)

    def popen(
        self,
        argv: Sequence[str],
        *,
        netns: str | None = None,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.DEVNULL,
        stderr: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start ``argv`` inside, in a session of its own. It is killed by ``close``; its status is the caller's."""
        return subprocess.Popen(
            self.entering(argv, netns), stdin=stdin, stdout=stdout, stderr=stderr, text=True, start_new_session=True,
            env={**os.environ, **env} if env else None, cwd="/",
        )  # fmt: skip

    def close(self) -> None:
        """Kill all processes inside, and return when the namespaces are gone. It may be called again."""
        assert self._keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.close()
        self._keeper.wait(_END_S)


def _keep(directory: Path, places: Sequence[str]) -> None:
    """The keeper's own work, in the new namespaces."""
    for place in places:
        (directory / place[1:]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(directory / place[1:]), place], check=True)
    # The devices in /sys are those of the network namespace of the process that mounts it (ip-netns(8) does the same).
    subprocess.run(["umount", "--lazy", "/sys"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    for kind in ("all", "default"):  # only the frames of the tests are on the wires
        Path(f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6").write_text("1")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.write(1, _READY)
    os.close(1)
    sys.stdin.buffer.read()
    end = time.monotonic() + _END_S
    while (found := _inside()) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _inside() -> list[int]:
    """The pids of all other processes in the keeper's namespaces and in the network namespaces named inside."""
    spaces = {_identity(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")}
    if os.path.isdir("/run/netns"):
        spaces |= {_identity(entry.path) for entry in os.scandir("/run/netns")}
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in others if spaces & _namespaces(pid)]


def _namespaces(pid: int) -> set[tuple[int, int]]:
    """The network and mount namespaces of a process; none if it is gone. A process that may not be looked at is none
    that was started here, as root."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return {_identity(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt")}
    return set()


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), sys.argv[2:])
