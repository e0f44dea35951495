"""A booted machine with the package of ovs-hotswap, whose VMs ping all the time: what the tests of the package share.

The machine has no network. Its root is a clean distribution, which is made once and kept in the cache; all that is
installed in it comes from files that were fetched before.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap import __version__
from ovs_hotswap.system import System
from tests.support.machine import CleanMachine
from tests.support.trees import CACHE, root
from tests.support.waiting import eventually
from tools.packages.build import CACHE as PACKAGE_CACHE
from tools.packages.build import OUTPUT
from tools.packages.debian import Apt
from tools.packages.program import PREFIX, REVISION, built

NEXT = f"{__version__}.1"
BROKER, RESTORE, WATCH = (f"ovs-hotswap-{name}.service" for name in ("broker", "restore", "watch"))
SHARED = "/srv/shared"  # where a machine sees the directory of ``Packages``
# The distribution's packages of which a release is made, and some of the libraries that its switch maps.
_SWITCH = ("openvswitch-common", "openvswitch-switch", "openvswitch-switch-dpdk")
_LIBRARIES = ("librte-eal23", "librte-vhost23", "librte-net-vhost23", "libssl3")
_PYTHON = f"{PREFIX}/python/bin/python3.11"
# The same package with another version, made without building it again. Arguments: the package,
# the version of the program and its revision, and the new package.
_REPACK = r"""
set -e
own=opt/ovs-hotswap/python/lib/python3.11/dist-packages/ovs_hotswap/__init__.py
dpkg-deb --raw-extract "$1" tree
sed -i "s/^Version: .*/Version: $2-$3/" tree/DEBIAN/control
rm tree/DEBIAN/md5sums
sed -i "s/^__version__ = .*/__version__ = \"$2\"/" "tree/$own"
tree/opt/ovs-hotswap/python/bin/python3.11 -I -m compileall -q -f --invalidation-mode unchecked-hash -s tree -p / \
    "tree/$own"
dpkg-deb --root-owner-group -Znone --build tree "$4"
"""


@dataclass(frozen=True)
class Packages:
    """The files of this version and of a later one, and the distribution's packages, in one directory."""

    directory: Path
    present: str
    later: str


def collect_packages(system: System, directory: Path) -> Packages:
    """Put into ``directory`` what `make packages` has built, a later version of it, and the distribution's packages."""
    present = built(OUTPUT)
    (directory / present.name).write_bytes(present.read_bytes())
    later = f"ovs-hotswap_{NEXT}-{REVISION}_amd64.deb"
    with tempfile.TemporaryDirectory(dir=directory) as work:
        argv = ["sh", "-c", _REPACK, "sh", str(present), NEXT, str(REVISION), str(directory / later)]
        subprocess.run(argv, cwd=work, check=True, timeout=300)
    kept = _fetched(system, (*_SWITCH, *_LIBRARIES))
    for name, file in kept.items():
        (directory / f"{name}.deb").write_bytes(file.read_bytes())
    return Packages(directory, present.name, later)


def _fetched(system: System, names: Iterable[str]) -> dict[str, Path]:
    """Files of packages of Debian 12, fetched once and kept."""
    places = {name: CACHE / "debs" / name for name in names}
    if missing := [name for name, place in places.items() if not place.is_dir()]:
        apt = Apt(PACKAGE_CACHE / "apt", system)  # whose lists `make packages` has fetched
        for name, version in apt.versions(missing).items():
            partial = places[name].with_name(f"{name}.partial")
            partial.mkdir(parents=True, exist_ok=True)
            apt.fetch_binary(name, version, partial)
            partial.rename(places[name])
    return {name: next(place.iterdir()) for name, place in places.items()}


class Host:
    """A booted machine, and what is asked of it."""

    def __init__(self, machine: CleanMachine, suite: str) -> None:
        self.machine, self.suite = machine, suite

    def drive(self, *words: str) -> Any:
        """One call of ``deb_drive``, by the package's interpreter, which has the tests from this machine."""
        environment = ["env", "PYTHONPATH=/srv/bed", "PYTHONDONTWRITEBYTECODE=1"]
        line = [*environment, _PYTHON, "-m", "tests.support.deb_drive", *words]
        return json.loads(self.machine.run(line, timeout=180).stdout.splitlines()[-1])

    def ask(self, *words: str, check: bool = True, timeout: float = 180) -> Any:
        return json.loads(self.machine.run(["ovs-hotswap", "--json", *words], check=check, timeout=timeout).stdout)

    def dpkg(self, *words: str) -> str:
        done = self.machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words], timeout=300)
        return done.stdout + done.stderr

    def switches(self) -> dict[str, tuple[int | None, int | None]]:
        found = self.ask("instance", "list")["instances"]
        return {each["side"]: (each["vswitchd_pid"], each["ovsdb_pid"]) for each in found}

    def serve(self) -> None:
        """Configure the host for a lab of VMs, and start everything."""
        self.drive("up")
        self.machine.run(["systemctl", "enable", "--now", BROKER, RESTORE])
        self.ask("instance", "start", "a")
        self.drive("flowing")
        self.machine.run(["systemctl", "enable", "--now", WATCH])
        self.wait_protected()

    def protected(self) -> bool:
        """Whether both instances run and the standby is ready."""
        pids = [pid for pair in self.switches().values() for pid in pair]
        return None not in pids and bool(self.ask("watch", "status", check=False)["ready"])

    def wait_protected(self) -> None:
        eventually(self.protected, lambda: f"a standby\n{self.machine.log(WATCH)[-3000:]}", 180.0, poll_s=0.5)

    @contextmanager
    def without_loss(self, *, stay: str = "ab") -> Iterator[None]:
        """VMs lose nothing during the block. ``stay``: the sides whose processes are the same after it."""
        self.wait_protected()
        switches, mark = self.switches(), json.dumps(self.drive("mark"))
        yield
        self.wait_protected()
        seen = self.drive("seen", mark)
        print(self.suite, seen)
        assert seen["sent"] > 100, seen
        assert seen["lost"] == 0, seen
        now = self.switches()
        assert {side: now[side] for side in stay} == {side: switches[side] for side in stay}, (switches, now)

    def replace_program(self, file: str, version: str) -> None:
        """Install a version of ovs-hotswap under the VMs, and see that both daemons run it."""
        broker, watchdog = self.ask("broker", "status"), self.machine.show(WATCH, "MainPID")
        with self.without_loss():
            said = self.dpkg("--install", f"{SHARED}/{file}")
            print(said)
            assert "NOT ALL DAEMONS" not in said, said
            now = self.ask("broker", "status")
            assert (now["version"], now["vms"]) == (version, 2), now
            assert now["pid"] != broker["pid"], now
            assert self.machine.show(WATCH, "MainPID") not in (watchdog, "0")
        printed = self.machine.run(["ovs-hotswap", "--version"]).stdout
        assert printed.endswith(f" {version}\n"), printed

    def install_switch(self) -> None:
        """Install the packages of Open vSwitch and some of its libraries, which replaces all of their files."""
        self.dpkg("--install", *(f"{SHARED}/{name}.deb" for name in (*_SWITCH, *_LIBRARIES)))

    def replace_switch(self, own: str) -> None:
        """Install the distribution's packages again under the VMs: the active instance stays, and the watchdog replaces
        the standby by one that runs the new files. ``own``: the state of the unit of openvswitch-switch."""
        unit = "openvswitch-switch.service"
        verb = {"inactive": "stop", "active": "start", "masked": "mask"}[own]
        self.machine.run(["systemctl", verb, unit], check=own != "active")  # the kernel may have no module for it
        active = str(self.ask("status")["active"])
        standby = "b" if active == "a" else "a"
        with self.without_loss(stay=active):
            self.install_switch()
            eventually(
                lambda: None not in self.switches()[standby]
                and self.ask("status")["replaced"] == {side: side == active for side in "ab"},
                lambda: f"a standby that runs the new files\n{self.machine.log(WATCH)[-3000:]}", 180.0, poll_s=0.5,
            )  # fmt: skip
        if own == "masked":
            self.machine.run(["systemctl", "unmask", unit])
        self.machine.run(["systemctl", "stop", unit])


@contextmanager
def booted(suite: str, packages: Packages, system: System) -> Iterator[Host]:
    """A machine with a clean distribution, in which ovs-hotswap is not installed."""
    with CleanMachine(root(suite, system), packages.directory, unified=suite == "trixie") as machine:
        host = Host(machine, suite)
        if suite == "bookworm":  # they are installed again later, which leaves links that a tree does not have
            host.install_switch()
            machine.run(["systemctl", "stop", "openvswitch-switch.service"])
            machine.baseline = machine.paths()
        yield host
