"""The package of ovs-hotswap on a clean Debian 12 and a clean Debian 13, booted and without a network: it is installed,
configured and started, upgraded and downgraded under VMs that ping all the time, and purged. The tests of a machine
build on each other, in this order."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.model import Release
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from tests.integration.conftest import config_in
from tests.support.dist_upgrade import CARRY_OUT, fetch
from tests.support.machine import CleanMachine
from tests.support.waiting import eventually
from tools.packages.build import CACHE as PACKAGE_CACHE
from tools.packages.build import OUTPUT
from tools.packages.debian import Apt
from tools.packages.program import PREFIX, Program

CACHE = Path(os.environ.get("OVS_HOTSWAP_TEST_CACHE", "/var/cache/ovs-hotswap"))
NEXT = f"{__version__}.1"
# What a hypervisor has, beside the packages of a release: none of it is in a release tree.
HYPERVISOR = (
    "systemd-sysv",
    "dbus",
    "iproute2",
    "procps",
    "qemu-system-x86",
    "busybox-static",
    "ethtool",
    "needrestart",
)
SUITES = ("bookworm", "trixie")
BROKER, RESTORE, WATCH = (f"ovs-hotswap-{name}.service" for name in ("broker", "restore", "watch"))
UNITS = (BROKER, RESTORE, WATCH, "ovs-hotswap-logs.timer")
# The distribution's packages of which a release is made, and one of the libraries that its switch maps.
SWITCH = ("openvswitch-common", "openvswitch-switch", "openvswitch-switch-dpdk")
LIBRARIES = ("librte-eal23", "librte-vhost23", "librte-net-vhost23", "libssl3")
# Argument: the journal of the upgrade under way.
KILLED = """\
ovs-hotswap upgrade --release host --force &
until grep -qs '"step": *"soak"' "$1"; do sleep 0.1; done
kill -KILL $!
"""
# The lab's files, those of the kernel and of dpkg, and what libuuid keeps for all programs that make an UUID.
_LAB = (
    "/var/lib/lab", "/run/netns", "/run/dpdk", "/run/needrestart", "/run/openvswitch", "/srv", "/var/cache/debconf",
    "/var/lib/dpkg", "/var/lib/libuuid",
)  # fmt: skip


@dataclass(frozen=True)
class Packages:
    """The files of this version and of a later one, in a directory that the machines see as ``/srv/shared``."""

    directory: Path
    present: str
    later: str


@pytest.fixture(scope="module")
def packages(system: System, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Nothing is built that is there already."""
    directory = tmp_path_factory.mktemp("packages")
    names = []
    with system.lock(OUTPUT / ".lock", "building packages"):
        for version, output in ((None, OUTPUT), (NEXT, CACHE / "deb-next")):
            output.mkdir(parents=True, exist_ok=True)
            path, _ = Program(system, print, output, PACKAGE_CACHE, version, OUTPUT / "program-tree").build()
            (directory / path.name).write_bytes(path.read_bytes())
            names.append(path.name)
    apt = Apt(PACKAGE_CACHE / "apt", system)
    for name in (*SWITCH, *LIBRARIES):
        version = apt.versions([name])[name]
        kept = CACHE / "debs" / name
        if not kept.is_dir():
            partial = kept.with_name(f"{name}.partial")
            partial.mkdir(parents=True, exist_ok=True)
            apt.fetch_binary(name, version, partial)
            partial.rename(kept)
        (file,) = kept.iterdir()
        (directory / f"{name}.deb").write_bytes(file.read_bytes())
    tree = clean("bookworm", system).root
    assert tree is not None
    kept = fetch(Path(tree), apt.mirror, system, CACHE / "dist-upgrade")
    subprocess.run(["cp", "-r", "--reflink=auto", str(kept), str(directory / "dist-upgrade")], check=True)
    return Packages(directory, *names)


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def clean(suite: str, system: System) -> Release:
    """A clean distribution with what a hypervisor has, made once and kept."""
    releases = Releases(config_in(CACHE, state_dir=str(CACHE)), system)
    return releases.add(f"clean-{suite}", suite, print, extra_packages=HYPERVISOR)


class Host:
    """A booted machine, and what is asked of it."""

    def __init__(self, machine: CleanMachine, suite: str) -> None:
        self.machine, self.suite = machine, suite

    def drive(self, *words: str) -> Any:
        """One call of ``deb_drive``, by the package's interpreter, which has the tests from this machine."""
        python = f"{PREFIX}/python/bin/python3.11"
        line = [
            "env",
            "PYTHONPATH=/srv/bed",
            "PYTHONDONTWRITEBYTECODE=1",
            python,
            "-m",
            "tests.support.deb_drive",
            *words,
        ]
        return json.loads(self.machine.run(line, timeout=180).stdout.splitlines()[-1])

    def ask(self, *words: str, check: bool = True, timeout: float = 180) -> Any:
        return json.loads(self.machine.run(["ovs-hotswap", "--json", *words], check=check, timeout=timeout).stdout)

    def dpkg(self, *words: str) -> str:
        done = self.machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words], timeout=300)
        return done.stdout + done.stderr

    def switches(self) -> dict[str, tuple[int | None, int | None]]:
        found = self.ask("instance", "list")["instances"]
        return {each["side"]: (each["vswitchd_pid"], each["ovsdb_pid"]) for each in found}

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
        assert seen["sent"] > 100
        assert seen["lost"] == 0
        now = self.switches()
        assert {side: now[side] for side in stay} == {side: switches[side] for side in stay}


@pytest.fixture(scope="module")
def host(suite: str, packages: Packages, system: System) -> Iterator[Host]:
    root = clean(suite, system).root
    assert root is not None
    with CleanMachine(Path(root), packages.directory, unified=suite == "trixie") as machine:
        made = Host(machine, suite)
        if suite == "bookworm":  # they are installed again later, which leaves links that a tree does not have
            made.dpkg("--install", *(f"/srv/shared/{name}.deb" for name in (*SWITCH, *LIBRARIES)))
            machine.run(["systemctl", "stop", "openvswitch-switch.service"])
            machine.baseline = machine.paths()
        yield made


def serve(host: Host) -> None:
    """Configure the host for a lab of VMs, and start everything."""
    host.drive("up")
    host.machine.run(["systemctl", "enable", "--now", BROKER, RESTORE])
    host.ask("instance", "start", "a")
    host.drive("flowing")
    host.machine.run(["systemctl", "enable", "--now", WATCH])
    host.wait_protected()


def test_it_installs_without_a_network_and_starts_nothing(host: Host, packages: Packages) -> None:
    print(host.dpkg("--install", f"/srv/shared/{packages.present}"))
    assert __version__ in host.machine.run(["ovs-hotswap", "--version"]).stdout
    assert host.machine.run(["dpkg", "--verify", "ovs-hotswap"]).stdout == ""
    for unit in UNITS:
        assert host.machine.show(unit, "LoadState") == "loaded"
        assert host.machine.show(unit, "ActiveState") == "inactive"
    enabled = host.machine.run(["systemctl", "is-enabled", BROKER, RESTORE, WATCH], check=False).stdout.split()
    assert enabled == ["disabled"] * 3
    faults = host.machine.run(["systemd-analyze", "verify", *UNITS, "ovs-hotswap-instance@a.service"], check=False)
    assert "ovs-hotswap" not in faults.stderr
    assert host.machine.run(["getent", "group", "ovs-hotswap"]).stdout.startswith("ovs-hotswap:")


def test_shells_complete_its_commands(host: Host) -> None:
    line = [
        "env",
        "_OVS_HOTSWAP_COMPLETE=bash_complete",
        "COMP_WORDS=ovs-hotswap package ",
        "COMP_CWORD=2",
        "ovs-hotswap",
    ]
    assert "plain,replace-daemons" in host.machine.run(line).stdout.split()
    for path in ("bash-completion/completions/ovs-hotswap", "zsh/vendor-completions/_ovs-hotswap",
                 "fish/vendor_completions.d/ovs-hotswap.fish"):  # fmt: skip
        assert "_OVS_HOTSWAP_COMPLETE" in host.machine.run(["cat", f"/usr/share/{path}"]).stdout


def test_it_is_configured_and_serves_vms(host: Host) -> None:
    serve(host)
    assert host.machine.show("ovs-hotswap-logs.timer", "ActiveState") == "active", "the instances' units want it"
    host.machine.run(["systemctl", "start", "ovs-hotswap-logs.service"])


def test_doctor_finds_what_is_installed_and_runs_in_order(host: Host) -> None:
    """What it says of the container's cores, devices and kernel is not the package's doing."""
    found = host.ask("doctor", check=False)["findings"]
    wrong = [each for each in found if each["severity"] not in ("ok", "unknown")]
    print(*wrong, sep="\n")
    places = ("units", "configuration", "overlay", "broker", "instances", "standby", "uplink", "vms")
    assert [each for each in wrong if each["severity"] == "error" and each["section"] in places] == []


def test_the_switch_is_upgraded(host: Host) -> None:
    with host.without_loss(stay=""):
        done = host.ask("upgrade", "--release", "host", "--force")
        assert (done["committed"], sorted(done["moves"])) == (True, ["vm1", "vm2"])


def replaced(host: Host, file: str, version: str) -> None:
    """Install a version under the VMs, and see that both daemons run it."""
    broker, watchdog = host.ask("broker", "status"), host.machine.show(WATCH, "MainPID")
    with host.without_loss():
        said = host.dpkg("--install", f"/srv/shared/{file}")
        print(said)
        assert "NOT ALL DAEMONS" not in said
        now = host.ask("broker", "status")
        assert (now["version"], now["vms"]) == (version, 2)
        assert now["pid"] != broker["pid"]
        assert host.machine.show(WATCH, "MainPID") not in (watchdog, "0")
    assert host.machine.run(["ovs-hotswap", "--version"]).stdout.endswith(f" {version}\n")


def test_the_package_is_upgraded_under_the_vms(host: Host, packages: Packages) -> None:
    replaced(host, packages.later, NEXT)


def test_an_unfinished_upgrade_of_the_switch_refuses_another_version(host: Host, packages: Packages) -> None:
    """The upgrade is killed where it watches the VMs; what began it is to finish it."""
    host.machine.run(["sh", "-c", KILLED, "sh", "/var/lib/ovs-hotswap/journal/current.jsonl"], check=False, timeout=120)
    refused = host.machine.run(["dpkg", "--install", f"/srv/shared/{packages.present}"], check=False)
    assert refused.returncode != 0
    assert "the version that began it is to finish it" in refused.stderr
    assert host.ask("broker", "status")["version"] == NEXT
    assert host.machine.run(
        ["dpkg-query", "--show", "--showformat=${Status} ${Version}", "ovs-hotswap"]
    ).stdout.startswith(f"install ok installed {NEXT}-")
    forced = ["env", "OVS_HOTSWAP_PACKAGE=force", "dpkg", "--install", f"/srv/shared/{packages.later}"]
    assert "has taken over 2 VMs" in host.machine.run(forced, timeout=300).stdout
    host.ask("rollback")
    host.wait_protected()


def test_the_package_is_downgraded_under_the_vms(host: Host, packages: Packages) -> None:
    replaced(host, packages.present, __version__)


def test_a_configuration_that_the_new_version_does_not_read_keeps_the_daemons(host: Host, packages: Packages) -> None:
    broker = host.ask("broker", "status")["pid"]
    path = "/etc/ovs-hotswap/config.toml"
    with host.without_loss():
        text = host.machine.run(["cat", path]).stdout
        host.machine.write(path, f"unknown = 1\n{text}")
        try:
            said = host.dpkg("--install", f"/srv/shared/{packages.present}")
        finally:
            host.machine.write(path, text)
        assert "NOT ALL DAEMONS RUN THE NEW VERSION" in said
        assert host.ask("broker", "status")["pid"] == broker
        host.machine.run(["ovs-hotswap", "package", "replace-daemons"])
        assert host.ask("broker", "status")["pid"] != broker


@pytest.mark.parametrize("own", ["inactive", "active", "masked"])
def test_the_distributions_packages_leave_the_switches_alone(host: Host, own: str) -> None:
    """They are installed again, which replaces their files as an upgrade does; ``own``: the package's own unit."""
    if host.suite != "bookworm":
        pytest.skip("the packages are those of Debian 12")
    unit = "openvswitch-switch.service"
    verb = {"inactive": "stop", "active": "start", "masked": "mask"}[own]
    host.machine.run(["systemctl", verb, unit], check=own != "active")  # the kernel may have no module for it
    active = str(host.ask("status")["active"])
    with host.without_loss(stay=active):
        host.dpkg("--install", *(f"/srv/shared/{name}.deb" for name in (*SWITCH, *LIBRARIES)))
        standby = "b" if active == "a" else "a"
        eventually(
            lambda: None not in host.switches()[standby]
            and host.ask("status")["replaced"] == {side: side == active for side in "ab"},
            lambda: f"a standby that runs the new files\n{host.machine.log(WATCH)[-3000:]}", 180.0, poll_s=0.5,
        )  # fmt: skip
    if own == "masked":
        host.machine.run(["systemctl", "unmask", unit])
    host.machine.run(["systemctl", "stop", unit])


def test_needrestart_leaves_the_units_alone(host: Host) -> None:
    if host.suite != "bookworm":
        pytest.skip("nothing was replaced")
    daemons = [host.machine.show(unit, "MainPID") for unit in (BROKER, WATCH)]
    with host.without_loss():
        done = host.machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "needrestart", "-r", "a", "-l"], check=False)
        print(done.stdout, done.stderr)
    assert [host.machine.show(unit, "MainPID") for unit in (BROKER, WATCH)] == daemons


def test_newer_files_are_reported_with_the_command_that_upgrades_to_them(host: Host) -> None:
    if host.suite != "bookworm":
        pytest.skip("nothing was replaced")
    active = host.ask("status")["active"]
    (problem,) = (each for each in host.ask("status")["problems"] if "newer files" in each["text"])
    assert problem["text"].endswith(f"instance {active} runs")
    assert "`ovs-hotswap upgrade --release host`" in problem["hint"]
    found = host.ask("check", "--release", "host", check=False)["findings"]
    assert any("replaced" in each["text"] for each in found)
    with host.without_loss(stay=""):
        done = host.ask("upgrade", "--release", "host")
        assert (done["committed"], done["changed"]) == (True, True)
    assert not any("newer files" in each["text"] for each in host.ask("status")["problems"])


def test_it_is_not_removed_while_an_instance_runs(host: Host) -> None:
    with host.without_loss():
        refused = host.machine.run(["dpkg", "--remove", "ovs-hotswap"], check=False)
        assert refused.returncode != 0
        assert re.search(r"ovs-hotswap instance stop [ab] --force", refused.stderr)
        assert {host.machine.show(unit, "ActiveState") for unit in (BROKER, WATCH)} == {"active"}


def test_purged_it_leaves_nothing(host: Host) -> None:
    active = host.ask("status")["active"]
    host.machine.run(["systemctl", "disable", "--now", WATCH])
    for side in sorted("ab", key=lambda side: side == active):
        host.ask("instance", "stop", side, "--force")
    host.drive("down")
    host.machine.write("/etc/systemd/system/ovs-hotswap-broker.service.d/own.conf", "[Service]\n")
    host.dpkg("--purge", "ovs-hotswap")
    left = {path for path in host.machine.paths() - host.machine.baseline if not path.startswith(_LAB)}
    assert left == set()
    assert {path for path in host.machine.baseline - host.machine.paths() if not path.startswith(_LAB)} == set()
    assert host.machine.run(["getent", "group", "ovs-hotswap"], check=False).stdout == ""
    assert "ovs-hotswap" not in host.machine.run(["systemctl", "list-units", "--all"]).stdout
    assert "ovs-hotswap" not in host.machine.run(["dpkg-query", "--show", "--showformat=${Package}\n"]).stdout


def test_a_dist_upgrade_leaves_vms_and_daemons_alone(packages: Packages, system: System) -> None:
    """Debian 12 becomes Debian 13 under the VMs: libc, Python, systemd, Open vSwitch and DPDK are replaced, needrestart
    restarts what it may, and Debian 12's Python is purged. Then both daemons are restarted, and the VMs move to the new
    switch."""
    root = clean("bookworm", system).root
    assert root is not None
    with CleanMachine(Path(root), packages.directory, unified=True) as machine:
        host = Host(machine, "bookworm to trixie")
        host.dpkg("--install", f"/srv/shared/{packages.present}")
        serve(host)
        with host.without_loss(stay="a"):
            machine.run(["sh", "-c", CARRY_OUT], timeout=1500)
        assert machine.run(["cat", "/etc/debian_version"]).stdout.startswith("13.")
        assert machine.run(["ls", "/usr/bin/python3.11"], check=False).returncode != 0
        (fault,) = (each for each in host.ask("check", "--release", "host", check=False)["findings"]
                    if "drivers" in each["text"])  # fmt: skip
        assert (fault["severity"], "librte-net-vhost25" in fault["hint"]) == ("error", True)
        drivers = re.findall(r"librte-\S+25", fault["hint"])
        with host.without_loss():
            machine.run(["apt-get", "-q", "-y", "--no-download", "install", *drivers], timeout=300)
        with host.without_loss(stay="a"):
            machine.run(["systemctl", "restart", BROKER, WATCH])
            assert host.ask("broker", "status")["vms"] == 2
        (problem,) = (each for each in host.ask("status")["problems"] if "newer files" in each["text"])
        assert problem["text"].endswith("instance a runs")
        with host.without_loss(stay=""):
            assert host.ask("upgrade", "--release", "host")["committed"]
        runs = {each["side"]: each["release"]["ovs_version"] for each in host.ask("instance", "list")["instances"]}
        assert set(runs.values()) == {clean("trixie", system).ovs_version}
