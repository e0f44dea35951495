"""What the scripts of the package ask: whether the program may be replaced or removed, and what is replaced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.broker.persist.formats import FORMATS
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, BusyError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepNames
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.watchdog import replacement, status_file
from tests.unit.fake_system import FakeSystem
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config

BROKER = BrokerStatus(version="0.5.0", pid=5, uptime_s=2.5, vms=1, home=Side.B)


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(config)


class Systemd(FakeSystem):
    """A systemd that has the watchdog's unit. ``restarts``: a restart begins another process."""

    def __init__(self, config: Config, *, active: str = "active", restarts: bool = True) -> None:
        super().__init__(self._answer)
        self.config, self.active, self.restarts = config, active, restarts
        self.watchdog(7)

    def _answer(self, argv: Sequence[str]) -> tuple[int, str]:
        if "--property=LoadState" in argv:
            return 0, "loaded\n"
        if "--property=ActiveState" in argv:
            return 0, f"{self.active}\n"
        if "restart" in argv and self.restarts:
            self.watchdog(8)
        return 0, ""

    def watchdog(self, pid: int) -> None:
        self.processes = {pid: ["ovs-hotswap", "watch", "run"]}
        status_file.state_path(self.config).write_text(json.dumps({"pid": pid, "born": 1}))

    def is_still(self, pid: int, born: int | None) -> bool:
        return self.alive(pid)


def unit(system: FakeSystem, config: Config, booted: Path) -> Unit:
    return Unit(replacement.WATCH, system, booted=booted, run_dir=config.run_dir)


def test_files_are_replaced_while_no_upgrade_is_under_way(bed: Bed) -> None:
    replacement.see_replaceable(bed.host)


def test_the_version_that_began_an_upgrade_is_to_finish_it(bed: Bed) -> None:
    with Journals(bed.config.state_dir, bed.world).begin("upgrade", StepNames(("park",))):
        pass
    with pytest.raises(BusyError, match=r"an upgrade of the switch is unfinished \(forward\)") as caught:
        replacement.see_replaceable(bed.host)
    assert "`ovs-hotswap resume`" in str(caught.value.hint)


def test_files_are_not_replaced_while_an_upgrade_holds_the_lock(bed: Bed) -> None:
    with bed.host.lock(), pytest.raises(BusyError):
        replacement.see_replaceable(bed.host)


def test_the_program_stays_while_an_instance_runs_and_the_active_one_is_stopped_last(bed: Bed) -> None:
    bed.world.pid[Side.B] = 2
    with pytest.raises(BusyError, match="instance b and instance a may serve VMs") as caught:
        replacement.see_removable(bed.host)
    hint = str(caught.value.hint)
    assert hint.index("instance stop b --force") < hint.index("instance stop a --force")


def test_the_program_may_be_removed_when_no_instance_runs(bed: Bed) -> None:
    bed.world.die(Side.A)
    bed.world.die(Side.B)
    replacement.see_removable(bed.host, Unit("x", bed.world, booted=Path("/nonexistent")))


def test_the_program_stays_while_an_instance_is_being_started(bed: Bed) -> None:
    bed.world.die(Side.A)
    bed.world.die(Side.B)
    with bed.host.lock(), pytest.raises(BusyError, match="under way"):
        replacement.see_removable(bed.host, Unit("x", bed.world, booted=Path("/nonexistent")))


def test_a_broker_that_runs_and_does_not_answer_is_reported(bed: Bed, tmp_path: Path) -> None:
    system = FakeSystem()
    bed.config.run_dir.mkdir(parents=True, exist_ok=True)
    (bed.config.run_dir / "broker.pid").write_text("77\n")
    replacement.replace_running_broker(bed.config, system, tmp_path, print)  # process 77 has ended
    system.processes = {77: ["ovs-hotswap", "broker", "run"]}
    with pytest.raises(BrokerError, match=r"broker from before \(process 77\) runs") as caught:
        replacement.replace_running_broker(bed.config, system, tmp_path, print)
    assert "broker take-over" in str(caught.value.hint)


def test_a_broker_of_another_version_is_not_taken_for_the_new_one() -> None:
    replacement.see_own_version(replace(BROKER, version=__version__))
    with pytest.raises(BrokerError, match=r"broker 0\.5\.0 was started"):
        replacement.see_own_version(BROKER)


def test_no_daemon_is_replaced_under_an_upgrade_that_began_after_the_files_were_replaced(
    bed: Bed, tmp_path: Path
) -> None:
    system = Systemd(bed.config)
    with bed.host.lock():
        (fault,) = replacement.replace_daemons(bed.config, system, tmp_path / "config.toml", print)
    assert isinstance(fault, BusyError)
    assert "`ovs-hotswap package replace-daemons`" in str(fault.hint)
    assert not system.ran


def test_a_broker_whose_state_cannot_be_read_is_not_ended(bed: Bed) -> None:
    assert replacement.unreadable(BROKER) is None, "it predates the field"
    assert replacement.unreadable(replace(BROKER, formats=FORMATS)) is None
    newer = replace(BROKER, formats=(FORMATS[-1], FORMATS[-1] + 1))
    assert replacement.unreadable(newer) == (
        f"the broker 0.5.0 may keep a state of format {FORMATS[-1] + 1}, which {__version__} cannot read"
    )


def test_the_watchdog_of_the_unit_is_restarted_without_waiting_for_a_standby(bed: Bed, tmp_path: Path) -> None:
    system, said = Systemd(bed.config), list[str]()
    replacement.restart_running_watchdog(bed.config, system, said.append, unit(system, bed.config, tmp_path))
    assert ("systemctl", "--no-block", "restart", replacement.WATCH) in system.ran
    assert said == ["the watchdog runs this version"]


def test_a_watchdog_that_begins_and_does_not_become_ready_is_reported(bed: Bed, tmp_path: Path) -> None:
    system, said = Systemd(bed.config, active="activating"), list[str]()
    with pytest.raises(StateUnknown, match="does not run 30 s after its restart"):
        replacement.restart_running_watchdog(bed.config, system, said.append, unit(system, bed.config, tmp_path))
    assert said == []


def test_a_watchdog_that_does_not_begin_is_reported(bed: Bed, tmp_path: Path) -> None:
    system = Systemd(bed.config, restarts=False)
    with pytest.raises(StateUnknown, match="does not run 30 s after its restart") as caught:
        replacement.restart_running_watchdog(bed.config, system, print, unit(system, bed.config, tmp_path))
    assert "journalctl" in str(caught.value.hint)


@pytest.mark.parametrize("active", ["inactive", "failed"])
def test_a_watchdog_that_does_not_run_is_not_started(bed: Bed, tmp_path: Path, active: str) -> None:
    system = Systemd(bed.config, active=active)
    system.processes = {}
    replacement.restart_running_watchdog(bed.config, system, print, unit(system, bed.config, tmp_path))
    assert not any("restart" in argv for argv in system.ran)


def test_a_watchdog_that_is_not_systemds_is_the_operators_to_restart(bed: Bed, tmp_path: Path) -> None:
    system = Systemd(bed.config, active="inactive")
    with pytest.raises(StateUnknown, match="runs the version from before"):
        replacement.restart_running_watchdog(bed.config, system, print, unit(system, bed.config, tmp_path))


def test_where_nothing_runs_nothing_is_replaced(bed: Bed, tmp_path: Path) -> None:
    said: list[str] = []
    assert replacement.replace_daemons(bed.config, bed.world, tmp_path / "config.toml", said.append) == []
    assert said == []
