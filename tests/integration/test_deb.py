"""The package of ovs-hotswap on a clean Debian 12 and a clean Debian 13, booted and without a network: it is installed,
configured and started, upgraded and downgraded under VMs that ping all the time, and purged. The tests of a machine
build on each other, in this order.

What does not depend on the distribution is tried on one of the two. `make soak-packages` repeats upgrades and
downgrades, and carries a dist-upgrade out: test_deb_rounds.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.system import System
from tests.integration.deb_host import (
    BROKER,
    NEXT,
    RESTORE,
    SHARED,
    WATCH,
    Host,
    Packages,
    booted,
    collect_packages,
)
from tests.support.trees import SUITES

UNITS = (BROKER, RESTORE, WATCH, "ovs-hotswap-logs.timer")
# Argument: the journal of the upgrade under way.
KILLED = """\
ovs-hotswap upgrade --release host --force &
until grep -qs '"step": *"soak"' "$1"; do kill -0 $! || exit 1; sleep 0.1; done
kill -KILL $!
"""
# The lab's files, those of the kernel and of dpkg, and what libuuid keeps for all programs that make an UUID.
_LAB = (
    "/var/lib/lab", "/run/netns", "/run/dpdk", "/run/needrestart", "/run/openvswitch", "/srv", "/var/cache/debconf",
    "/var/lib/dpkg", "/var/lib/libuuid",
)  # fmt: skip


@pytest.fixture(scope="module")
def packages(system: System, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return collect_packages(system, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module", params=SUITES)
def host(request: pytest.FixtureRequest, packages: Packages, system: System) -> Iterator[Host]:
    with booted(str(request.param), packages, system) as made:
        yield made


def only(host: Host, suite: str, why: str) -> None:
    if host.suite != suite:
        pytest.skip(why)


def test_it_installs_without_a_network_and_starts_nothing(host: Host, packages: Packages) -> None:
    print(host.dpkg("--install", f"{SHARED}/{packages.present}"))
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
    line = ["env", "_OVS_HOTSWAP_COMPLETE=bash_complete", "COMP_WORDS=ovs-hotswap package ", "COMP_CWORD=2",
            "ovs-hotswap"]  # fmt: skip
    assert "plain,replace-daemons" in host.machine.run(line).stdout.split()
    for path in ("bash-completion/completions/ovs-hotswap", "zsh/vendor-completions/_ovs-hotswap",
                 "fish/vendor_completions.d/ovs-hotswap.fish"):  # fmt: skip
        assert "_OVS_HOTSWAP_COMPLETE" in host.machine.run(["cat", f"/usr/share/{path}"]).stdout


def test_doctor_says_how_to_configure_the_host(host: Host) -> None:
    found = host.ask("doctor", check=False)["findings"]
    errors = {(each["section"], each["check"]): each["hint"] for each in found if each["severity"] == "error"}
    hint = "`mkdir -p /etc/ovs-hotswap && ovs-hotswap config example > /etc/ovs-hotswap/config.toml`, and edit it"
    assert errors["configuration", "file"] == hint
    assert ("units", "installed") not in errors, "the package has brought them"


def test_it_is_configured_and_serves_vms(host: Host) -> None:
    host.serve()
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


def test_the_package_is_upgraded_under_the_vms(host: Host, packages: Packages) -> None:
    host.replace_program(packages.later, NEXT)


def test_an_unfinished_upgrade_of_the_switch_refuses_another_version(host: Host, packages: Packages) -> None:
    """The upgrade is killed where it watches the VMs; what began it is to finish it."""
    only(host, "trixie", "dpkg and the program are the same on both")
    host.machine.run(["sh", "-c", KILLED, "sh", "/var/lib/ovs-hotswap/journal/current.jsonl"], check=False, timeout=120)
    refused = host.machine.run(["dpkg", "--install", f"{SHARED}/{packages.present}"], check=False)
    assert refused.returncode != 0
    assert "the version that began it is to finish it" in refused.stderr
    assert host.ask("broker", "status")["version"] == NEXT
    assert host.machine.run(
        ["dpkg-query", "--show", "--showformat=${Status} ${Version}", "ovs-hotswap"]
    ).stdout.startswith(f"install ok installed {NEXT}-")
    forced = ["env", "OVS_HOTSWAP_PACKAGE=force", "dpkg", "--install", f"{SHARED}/{packages.later}"]
    assert "has taken over 2 VMs" in host.machine.run(forced, timeout=300).stdout
    host.ask("rollback")
    host.wait_protected()


def test_the_package_is_downgraded_under_the_vms(host: Host, packages: Packages) -> None:
    host.replace_program(packages.present, __version__)


def test_a_configuration_that_the_new_version_does_not_read_keeps_the_daemons(host: Host, packages: Packages) -> None:
    only(host, "trixie", "dpkg and the program are the same on both")
    broker = host.ask("broker", "status")["pid"]
    path = "/etc/ovs-hotswap/config.toml"
    with host.without_loss():
        text = host.machine.run(["cat", path]).stdout
        host.machine.write(path, f"unknown = 1\n{text}")
        try:
            said = host.dpkg("--install", f"{SHARED}/{packages.present}")
        finally:
            host.machine.write(path, text)
        assert "NOT ALL DAEMONS RUN THE NEW VERSION" in said
        assert host.ask("broker", "status")["pid"] == broker
        host.machine.run(["ovs-hotswap", "package", "replace-daemons"])
        assert host.ask("broker", "status")["pid"] != broker


def test_the_distributions_packages_leave_the_switches_alone(host: Host) -> None:
    """They are installed again while their own unit is active, which replaces their files as an upgrade does."""
    only(host, "bookworm", "the packages are those of Debian 12")
    host.replace_switch("active")


def test_needrestart_leaves_the_units_alone(host: Host) -> None:
    only(host, "bookworm", "nothing was replaced")
    daemons = [host.machine.show(unit, "MainPID") for unit in (BROKER, WATCH)]
    with host.without_loss():
        done = host.machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "needrestart", "-r", "a", "-l"], check=False)
        print(done.stdout, done.stderr)
    assert [host.machine.show(unit, "MainPID") for unit in (BROKER, WATCH)] == daemons


def test_newer_files_are_reported_with_the_command_that_upgrades_to_them(host: Host) -> None:
    only(host, "bookworm", "nothing was replaced")
    active = host.ask("status")["active"]
    (problem,) = (each for each in host.ask("status")["problems"] if "newer files" in each["text"])
    assert problem["text"].endswith(f"instance {active} runs")
    assert "`ovs-hotswap upgrade --release host`" in problem["hint"]
    found = host.ask("check", "--release", "host", check=False)["findings"]
    (finding,) = (each for each in found if "goes to the newer ones" in each["text"])
    assert finding["hint"] == "`ovs-hotswap upgrade --release host`"
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
