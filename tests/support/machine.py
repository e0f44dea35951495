"""A booted machine: a real systemd as the first process of a container. What it writes stays in memory.

The root of a ``Machine`` is this machine's, so that Open vSwitch, DPDK, QEMU and this package are there without being
installed. The root of a ``CleanMachine`` is a tree of a distribution, in which this package is not installed.

All of it hangs on one shell, ``_KEEPER``, that waits for the end of its standard input: it ends the container and
removes its control groups when ``Machine.close`` is called, and as well when the tests are killed. The mounts are in a
mount namespace of their own and vanish with it.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ovs_hotswap.system import System

PREFIX = "/opt/ovs-hotswap"  # where the units look for the package
PYTHON = f"{PREFIX}/bin/python"
BOOT_S = 60.0
_INIT = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")  # the latter after `systemctl daemon-reexec`

_REPOSITORY = Path(__file__).parents[2]
_NUMBERS = itertools.count()

# Arguments: name, root, whether the whole cgroup v2 is wanted, the number of options, these options of systemd-nspawn,
# then the control groups to be made. Prints the pid of the process whose child is systemd-nspawn.
# `--keep-unit` needs no systemd around the container; `--console=pipe` no terminal.
_KEEPER = r"""
set -e
name=$1 lower=$2 unified=$3 count=$4
shift 4
options=
while [ "$count" -gt 0 ]; do
    options="$options $1" # without blanks
    shift
    count=$((count - 1))
done
end() {
    for group in "$@"; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$group" -name cgroup.procs -exec cat {} + | xargs --no-run-if-empty kill -KILL || true
            find "$group" -depth -type d -exec rmdir {} + && break
            sleep 0.1
        done
    done
}
trap 'end "$@"' EXIT
for group in "$@"; do mkdir "$group"; done
mount -t tmpfs tmpfs /media
mkdir /media/upper /media/work /media/root
mount -t overlay -o lowerdir=$lower,upperdir=/media/upper,workdir=/media/work overlay /media/root
root=/media/root
rm -rf "$root/etc/ovs-hotswap" "$root/var/lib/ovs-hotswap" "$root/opt/ovs-hotswap" \
    "$root"/etc/rc?.d "$root"/etc/systemd/system/*.wants "$root/lib/systemd/system/multi-user.target.wants"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
# systemd-nspawn shows a part of sysfs, without the directory in which DPDK looks for vfio (rte_eal_check_module).
mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
ln -s ../sys-module.service "$root/etc/systemd/system/sysinit.target.wants/"
cat >"$root/etc/systemd/system/sys-module.service" <<UNIT
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'mount -o remount,rw /sys && mkdir -p /sys/module && mount -o remount,ro /sys'
UNIT
(
    for group in "$@"; do echo 0 >"$group/cgroup.procs"; done
    # Unset, systemd-nspawn looks at the tree and at this machine. "0" would be version 1 alone, in which a container's
    # systemd is not told that a control group is empty: a stop of a unit with two processes would not end.
    [ "$unified" = 0 ] || export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    status=133 # of a container that wants to be booted again
    while [ $status = 133 ]; do
        status=0
        systemd-nspawn --quiet --directory="$root" --machine="$name" --boot --keep-unit \
            --register=no --private-network --capability=all --console=pipe --resolv-conf=off \
            --timezone=off --link-journal=no --bind=/dev/hugepages $options \
            -- systemd.unit=multi-user.target </dev/null >&2 || status=$?
    done
) &
echo $!
exec >/dev/null
cat
"""

# A virtual environment with nothing below /root or /home, which the units hide: of Debian's own interpreter, for which
# the libraries must be made. Argument: its name.
_PYVENV = f"""\
set -e
mkdir -p /etc/ovs-hotswap
cd {PREFIX}
mkdir bin
ln -s "/usr/bin/$1" bin/python
printf 'home = /usr/bin\\ninclude-system-site-packages = false\\n' >pyvenv.cfg
mkdir -p "lib/$1/site-packages"
printf '{PREFIX}/src\\n{PREFIX}/libraries\\n' >"lib/$1/site-packages/machine.pth"
printf '#!{PYTHON}\\nfrom ovs_hotswap.cli.main import main\\nmain()\\n' >bin/ovs-hotswap
chmod 755 bin/ovs-hotswap
ln -s {PREFIX}/bin/ovs-hotswap /usr/local/bin/ovs-hotswap
"""


_PATHS = """\
find / -xdev -path /tmp -prune -o -path /root -prune -o -path /var/log -prune -o -print
find /run -path /run/systemd -prune -o -path /run/udev -prune -o -path /run/user -prune -o -print
"""


class Machine:
    """``Machine()`` boots one, to multi-user.target, which wants nothing yet; ``close`` ends it. ``root``: the tree to
    boot; ``unified``: whether its systemd wants the control groups of version 2 alone."""

    def __init__(self, root: Path = Path("/"), *, unified: bool = False) -> None:
        name = f"ovsh-machine-{os.getpid()}-{next(_NUMBERS)}"
        self.groups = [str(group / name) for group in _own_groups()]
        own_mounts = ["unshare", "--mount", "--propagation", "private", "--"]
        options = self.binds()
        argv = [*own_mounts, "sh", "-c", _KEEPER, "sh", name, str(root), str(int(unified)), str(len(options)), *options,
                *self.groups]  # fmt: skip
        self._console = os.fdopen(os.memfd_create("console"), "w+", errors="replace")
        self._keeper = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._console, text=True, start_new_session=True
        )
        try:
            assert self._keeper.stdout is not None
            self._container = int(self._keeper.stdout.readline() or "0")
            self._wait_booted()
            self.equip()
        except BaseException:
            self.close()
            raise

    def binds(self) -> list[str]:
        """Options of systemd-nspawn for what is seen of this machine."""
        libraries = next(path for path in sys.path if path.endswith("site-packages"))
        return [f"--bind-ro={_REPOSITORY}:{PREFIX}/src", f"--bind-ro={libraries}:{PREFIX}/libraries"]

    def equip(self) -> None:
        """Do what is needed once after the boot."""
        self.run(["sh", "-c", _PYVENV, "sh", f"python3.{sys.version_info.minor}"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, with every process in it. May be repeated."""
        with self._console:
            self._keeper.communicate(timeout=30)

    def pid(self) -> int:
        """Its first process, as this machine numbers it; another one after a reboot. 0: there is none."""
        first = [pid for nspawn in _children(self._container) for pid in _children(nspawn)]
        return next((pid for pid in first if "".join(System().cmdline(pid)[:1]) in _INIT), 0)

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 60.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as an SSH session would: in no unit. With ``check``, AssertionError with its output and
        the newest lines of the journal if it fails."""
        done = self._run(argv, timeout, stdin)
        if check and done.returncode != 0:
            journal = self._run(["journalctl", "--no-pager", "--lines=60"], timeout, "").stdout
            raise AssertionError(f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{journal}")
        return done

    def _run(self, argv: Sequence[str], timeout: float, stdin: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={self.pid()}", "--all", "--", "env", "-i", "LC_ALL=C.UTF-8",
             "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *argv],
            input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path], stdin=text)

    def show(self, unit: str, prop: str) -> str:
        """A property of a unit (org.freedesktop.systemd1(5))."""
        return self.run(["systemctl", "show", f"--property={prop}", "--value", unit]).stdout.strip()

    def log(self, unit: str) -> str:
        return self.run(["journalctl", "--no-pager", "--output=cat", f"--unit={unit}"]).stdout

    def processes(self, unit: str) -> dict[int, str]:
        """Pids, as the machine numbers them, and names of the processes in a unit's control group."""
        group = self.show(unit, "ControlGroup")
        if not group:
            return {}
        files = [f"/sys/fs/cgroup{hierarchy}{group}/cgroup.procs" for hierarchy in ("/systemd", "")]
        pids = self.run(["cat", *files], check=False).stdout.split()  # one of the two is there
        names = self.run(["sh", "-c", 'for p in "$@"; do cat /proc/$p/comm || echo; done', "sh", *pids]).stdout
        return {int(pid): name for pid, name in zip(pids, names.splitlines(), strict=True)}

    def reboot(self) -> None:
        """Boot the machine again: /run is empty, the disk is as it was."""
        before = self.pid()
        self.run(["systemctl", "reboot"], check=False)
        end = time.monotonic() + BOOT_S
        while self.pid() in (0, before):
            assert time.monotonic() < end, "the machine does not go down"
            time.sleep(0.05)
        self._wait_booted()

    def _wait_booted(self) -> None:
        end = time.monotonic() + BOOT_S
        while True:
            if not System().alive(self._container) or time.monotonic() >= end:
                self._console.seek(0)
                raise AssertionError(f"the machine does not boot: {self._console.read()}")
            state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip() if self.pid() else ""
            if state in {"running", "degraded"}:
                return
            time.sleep(0.1)


class CleanMachine(Machine):
    """A machine whose root is a tree of a distribution. It has the kernel of this machine's guests in ``/boot``, the
    tests in ``/srv/bed/tests``, and ``shared`` in ``/srv/shared``. ``baseline``: every path that it had after its boot,
    but what the kernel and a running systemd make."""

    def __init__(self, root: Path, shared: Path, *, unified: bool) -> None:
        self._shared = shared
        super().__init__(root, unified=unified)
        self.baseline = self.paths()

    def binds(self) -> list[str]:
        return ["--bind-ro=/boot", "--bind-ro=/lib/modules", f"--bind-ro={_REPOSITORY}/tests:/srv/bed/tests",
                f"--bind-ro={self._shared}:/srv/shared"]  # fmt: skip

    def equip(self) -> None:
        self.run(["mkdir", "-p", "/etc/systemd/system/multi-user.target.wants"])  # it was emptied before the boot

    def paths(self) -> set[str]:
        """Every path on its disk and in ``/run``."""
        return set(self.run(["sh", "-c", _PATHS]).stdout.splitlines())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _own_groups() -> Iterable[Path]:
    """This process's control groups in the hierarchies that systemd uses: its own of version 1, and version 2."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(maxsplit=2)
        if kind == "cgroup2":
            mounts[""] = Path(fields.split()[4])
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounts["name=systemd"] = Path(fields.split()[4])
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in mounts:
            yield mounts[controllers] / path.lstrip("/")
