"""What `make soak-packages` does to a booted machine under VMs that ping all the time: the package of ovs-hotswap is
upgraded and downgraded again and again, the distribution's packages are replaced in each state of their own unit, and
Debian 12 becomes Debian 13. ``OVS_HOTSWAP_PACKAGE_ROUNDS``: how often; without it, nothing is done."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.system import System
from tests.integration.deb_host import (
    BROKER,
    NEXT,
    SHARED,
    WATCH,
    Host,
    Packages,
    booted,
    collect_packages,
)
from tests.support.dist_upgrade import CARRY_OUT, fetch
from tests.support.machine import CleanMachine
from tests.support.trees import CACHE, SUITES, clean, root
from tools.packages.build import CACHE as PACKAGE_CACHE
from tools.packages.debian import Apt

ROUNDS = int(os.environ.get("OVS_HOTSWAP_PACKAGE_ROUNDS", "0"))
pytestmark = [pytest.mark.skipif(ROUNDS == 0, reason="`make soak-packages` runs it"), pytest.mark.timeout(4 * 3600)]


@pytest.fixture(scope="module")
def packages(system: System, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return collect_packages(system, tmp_path_factory.mktemp("packages"))


# The first test, because the machines of the others run until the last one has ended.
def test_a_dist_upgrade_leaves_vms_and_daemons_alone(packages: Packages, system: System) -> None:
    """Debian 12 becomes Debian 13 under the VMs: libc, Python, systemd, Open vSwitch and DPDK are replaced, needrestart
    restarts what it may, and Debian 12's Python is purged. Then both daemons are restarted, and the VMs move to the new
    switch."""
    directory = root("bookworm", system)
    kept = fetch(directory, Apt(PACKAGE_CACHE / "apt", system).mirror, system, CACHE / "dist-upgrade")
    subprocess.run(["cp", "-r", "--reflink=auto", str(kept), str(packages.directory / "dist-upgrade")], check=True)
    with CleanMachine(directory, packages.directory, unified=True) as machine:
        host = Host(machine, "bookworm to trixie")
        host.dpkg("--install", f"{SHARED}/{packages.present}")
        host.serve()
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


@pytest.fixture(scope="module", params=SUITES)
def host(request: pytest.FixtureRequest, packages: Packages, system: System) -> Iterator[Host]:
    with booted(str(request.param), packages, system) as made:
        made.dpkg("--install", f"{SHARED}/{packages.present}")
        made.serve()
        yield made


def test_the_package_is_upgraded_and_downgraded_again_and_again(host: Host, packages: Packages) -> None:
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}")
        host.replace_program(packages.later, NEXT)
        host.replace_program(packages.present, __version__)


@pytest.mark.parametrize("own", ["inactive", "active", "masked"])
def test_the_distributions_packages_leave_the_switches_alone(host: Host, own: str) -> None:
    if host.suite != "bookworm":
        pytest.skip("the packages are those of Debian 12")
    for _ in range(ROUNDS):
        host.replace_switch(own)
