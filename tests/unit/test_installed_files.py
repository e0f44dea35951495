"""What the watchdog and the commands do about files of a release that the package manager has replaced."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.cli.overview import problems
from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.package_manager import at_work
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.upgrade import collect
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.installed_files import InstalledFiles, present, same_place
from ovs_hotswap.watchdog.standby_plan import Task
from tests.unit.test_overview import healthy
from tests.unit.watch_bed import RELEASE, Bed
from tests.unit.watch_bed import config as config

NEWER = replace(RELEASE, ovs_version="3.5.0", dpdk_version="24.11")


@pytest.fixture
def bed(config: Config) -> Bed:
    made = Bed(config)
    made.keeper._programmed = made.keeper._stamp
    made.keeper.files = InstalledFiles(busy=lambda: False)
    return made


def test_a_standby_whose_files_were_replaced_is_replaced(bed: Bed) -> None:
    bed.world.outdated = True
    files = bed.keeper.files
    assert files.replaced(bed.host, Side.B)
    bed.world.outdated = False
    assert files.replaced(bed.host, Side.B), "two looks within seconds have one answer"
    bed.world.now += 10.0
    assert not files.replaced(bed.host, Side.B)


def test_the_watchdog_ends_it_and_leaves_the_active_instance_alone(bed: Bed) -> None:
    bed.world.outdated = True
    assert bed.keeper.turn() is Task.REPLACE
    assert bed.world.done == ["stop b"]


def test_it_is_kept_while_the_package_manager_is_at_work(bed: Bed) -> None:
    bed.world.outdated = True
    assert not InstalledFiles(busy=lambda: True).replaced(bed.host, Side.B)


def test_it_is_kept_while_the_new_files_do_not_run(bed: Bed) -> None:
    bed.world.outdated = True
    bed.world.installed = None
    assert not InstalledFiles(busy=lambda: False).replaced(bed.host, Side.B)


def test_programs_that_do_not_run_are_not_run_in_each_look_and_reported_once(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    """After a dist-upgrade drivers may be missing for weeks."""
    files, asked = bed.keeper.files, 0
    bed.world.outdated, bed.world.installed = True, None
    get = bed.host.releases.get

    def counted(name: str) -> Release:
        nonlocal asked
        asked += 1
        return get(name)

    bed.host.releases.get = counted  # type: ignore[method-assign]
    for _ in range(60):
        assert not files.replaced(bed.host, Side.B)
        bed.world.now += 10.0
    assert asked == 2
    assert len(caplog.records) == 1
    bed.world.installed = RELEASE  # by another run of dpkg
    files.busy = lambda: True
    assert not files.replaced(bed.host, Side.B)
    files.busy = lambda: False
    bed.world.now += 10.0
    assert files.replaced(bed.host, Side.B)


def test_it_is_kept_if_another_version_is_installed(bed: Bed) -> None:
    """A failover is not to change the version; and a dist-upgrade brings a DPDK without its drivers."""
    bed.world.outdated = True
    bed.world.installed = NEWER
    bed.keeper.files = InstalledFiles(busy=lambda: False)
    assert not bed.keeper.files.replaced(bed.host, Side.B)
    assert bed.keeper.turn() is Task.NOTHING


def test_a_start_that_fails_while_packages_are_replaced_is_not_counted(bed: Bed) -> None:
    busy = True
    bed.keeper.files = InstalledFiles(busy=lambda: busy)
    bed.world.start_fault = SwitchError("it does not start")
    bed.world.state[Side.B], bed.world.pid[Side.B] = State.STOPPED, None
    with pytest.raises(SwitchError):
        bed.keeper.turn()
    assert not (status_file.read_state(bed.config) or {}).get("failures")
    busy = False
    bed.world.now += 3600.0
    with pytest.raises(SwitchError):
        bed.keeper.turn()
    assert (status_file.read_state(bed.config) or {})["failures"] == 1


def test_an_instance_is_started_with_the_versions_that_are_installed(bed: Bed) -> None:
    bed.world.installed = NEWER
    assert present(bed.host, RELEASE) == NEWER
    tree = Release("trixie", "/srv/trixie", "3.5.0", "24.11")
    assert present(bed.host, tree) == tree
    bed.world.installed = None
    assert present(bed.host, RELEASE) == RELEASE, "its start says what is wrong"
    assert same_place(RELEASE, NEWER)
    assert not same_place(tree, NEWER)
    assert not same_place(None, NEWER)


@pytest.mark.parametrize("held", [True, False])
def test_a_lock_is_asked_about_and_not_taken(tmp_path: Path, held: bool) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    argv = [sys.executable, "-c", hold if held else "print(flush=True); input()", str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert at_work([tmp_path / "absent", lock]) is held
        other.communicate(b"\n")
    assert not at_work([lock])
    with lock.open("w") as own:
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_status_names_the_command_that_upgrades_to_newer_files() -> None:
    document = healthy(replaced={Side.A: True, Side.B: True})
    document["instances"] = [replace(each, release=RELEASE) for each in document["instances"]]
    active, standby = problems(document, steered=True)
    assert (active.about, active.text) == (
        "release", "newer files of host are installed than those that instance a runs",
    )  # fmt: skip
    assert active.hint == "`ovs-hotswap upgrade --release host` upgrades to them"
    assert "the watchdog replaces it" in str(standby.hint)


def test_the_check_says_that_the_upgrade_goes_to_the_newer_files(bed: Bed) -> None:
    bed.world.outdated = True
    (_, found) = collect.release_checks(bed.host, Side.A, "host")
    assert found.text == "instance a runs files of it that were replaced since: the upgrade goes to the newer ones"
    assert found.hint == "`ovs-hotswap upgrade --release host`"
