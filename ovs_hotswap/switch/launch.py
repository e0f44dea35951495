"""How a program of a release is started: cores, namespace, root, environment and limits. Nothing else starts one."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ovs_hotswap.model import Release
from ovs_hotswap.switch.netns import DIRECTORY
from ovs_hotswap.system import files

DESCRIPTORS = 524288  # as LimitNOFILE= of the unit

# A vhost-user port takes about seven descriptors per VM, so the usual soft limit of 1024 suffices for about 140 VMs.
# Root may usually raise the hard limit as well (CAP_SYS_RESOURCE), so the limit does not depend on the caller's.
_LIMIT_SCRIPT = f"""
hard=$(ulimit -H -n) most=$(cat /proc/sys/fs/nr_open 2>/dev/null || echo {DESCRIPTORS})
if [ "$most" -gt {DESCRIPTORS} ]; then most={DESCRIPTORS}; fi
if [ "$hard" != unlimited ] && [ "$hard" -lt "$most" ]; then ulimit -n "$most" 2>/dev/null || true; fi
ulimit -S -n "$(ulimit -H -n)"
"""

# The mounts live in the program's own mount namespace: they vanish with its last process, and the tree stays as it was.
# The run directory has the same path inside and outside, so that each socket has one name.
_TREE_SCRIPT = f"""
set -e
tree=$1
shift
mount -t tmpfs -o mode=0755 tmpfs "$tree/run"
mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
mount --rbind /dev "$tree/dev"
mount --rbind /proc "$tree/proc"
mount --rbind /sys "$tree/sys"
while [ "$1" != -- ]; do mkdir -p "$tree$1"; mount --bind "$1" "$tree$1"; shift; done
shift
{_LIMIT_SCRIPT}
exec chroot "$tree" "$@"
"""

_OF_THE_PROGRAM = ("/run/", "/tmp/")  # where the script mounts file systems of the program's own

_HOST_SCRIPT = f"""
{_LIMIT_SCRIPT}
exec "$@"
"""


def command(
    release: Release, netns: str, seen: Collection[Path], argv: list[str], cores: Collection[int] = ()
) -> list[str]:
    """Return the command line that runs ``argv`` of ``release`` in the network namespace ``netns`` (empty: the one in
    which we are), on ``cores`` if there are any: the threads that do not choose their own cores, as PMD threads do,
    stay on them. A main thread that spins, as one without its database does, would keep PMD threads on its core
    waiting, those of both instances.

    All steps replace their process (exec), so the pid that is started is the program's own. ``seen`` are the
    directories of the host that the program sees in a release's tree, by the same paths. The mount point of one that is
    outside /run and /tmp stays in the tree, as an empty directory.
    """
    bound = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))] if cores else []
    inside = [*bound, "nsenter", f"--net={DIRECTORY}/{netns}", "--"] if netns else bound
    if release.root is None:
        return [*inside, "sh", "-c", _HOST_SCRIPT, "sh", *argv]
    places = _places(seen)
    own_mounts = ["unshare", "--mount", "--propagation", "private", "--"]
    return [*inside, *own_mounts, "sh", "-c", _TREE_SCRIPT, "sh", release.root, *places, "--", *argv]


def make_places(release: Release, seen: Collection[Path]) -> None:
    """Make the mount points of ``command`` in a release's tree, in which the process that runs it may not write.
    Raises HostError."""
    if release.root is None:
        return
    for place in _places(seen):
        if not place.startswith(_OF_THE_PROGRAM):
            path = Path(f"{release.root}{place}")
            with files(path):
                path.mkdir(parents=True, exist_ok=True)


def _places(seen: Collection[Path]) -> list[str]:
    """The directories by the paths that they have on the host: in the tree, a link would lead to the host."""
    return list(dict.fromkeys(os.path.realpath(each) for each in seen))


def environment(run_dir: Path) -> dict[str, str]:
    """Return the environment of an instance whose own directory is ``run_dir``.

    lib/dirs.c of Open vSwitch reads ``OVS_*``. DPDK (lib/eal/linux, eal_create_runtime_dir) puts its telemetry socket
    into ``RUNTIME_DIRECTORY``; without it the socket would stay behind in /run/dpdk.
    """
    own = str(run_dir)
    return {"OVS_RUNDIR": own, "OVS_DBDIR": own, "OVS_LOGDIR": own, "RUNTIME_DIRECTORY": own}


def daemon(ctl: Path, pid_file: Path, log: Path) -> list[str]:
    """Return the arguments of both daemons. ``--monitor`` is left out: the watchdog decides about a restart."""
    return [
        f"--unixctl={ctl}",
        f"--pidfile={pid_file}",
        f"--log-file={log}",
        "--detach",
        "--no-chdir",
        "-vconsole:emer",
        "-vsyslog:err",
        "-vfile:info",
    ]


def names(cmdline: list[str], pid_file: Path) -> bool:
    """Whether a command line is that of the daemon with this pid file."""
    return f"--pidfile={pid_file}" in cmdline
