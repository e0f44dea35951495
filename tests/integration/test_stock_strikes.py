"""Upgrades on a host that others program, whose orchestrator or one of whose switches is killed at a step.

``OVS_HOTSWAP_STOCK_ROUNDS``: if it is more than one, every step is struck; otherwise a few that differ most.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ovs_hotswap.errors import RolledBack
from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.clone_steps import clone_plan
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import Operator, differences, programmed, without_own
from tests.support.stock_host import BRIDGE, StockHost
from tests.support.stock_strike import MOST, PINGS_S, RELEASE, lost, served, struck
from tests.support.waiting import eventually

ALL = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1")) > 1
BEFORE, AFTER = clone_plan().shape.before, clone_plan().shape.after
# The steps, of which the first changes nothing, until the new instance is a whole copy, and those after it.
UNCOPIED, COPIED = BEFORE[1 : BEFORE.index("copy") + 1], BEFORE[BEFORE.index("copy") + 1 :]


@pytest.fixture(scope="module")
def host(system: System) -> Iterator[StockHost]:
    with StockHost(system, guests=2) as host:
        host.add_mirrors(31)  # one VM passes before the cut, and the other one after it
        yield host


@pytest.fixture(scope="module")
def operator(host: StockHost, tree_release: Release) -> Operator:
    operator = Operator(host, SHORT_SOAK)
    operator.make_ready(tree_release)
    return operator


@pytest.mark.parametrize("step", [*BEFORE, "adopt+"] if ALL else ["soak"])
def test_an_upgrade_that_was_killed_is_rolled_back(host: StockHost, operator: Operator, step: str) -> None:
    before, stock, mark = programmed(host), host.switch_pid, host.pings.mark()
    assert struck(host, operator, step, "self") == -9
    time.sleep(PINGS_S)
    assert not operator.ask("rollback")["committed"]
    served(host)
    assert lost(host, mark) <= MOST
    assert host.switch_pid == stock
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")  # so that the next upgrade takes them over again
    served(host)


@pytest.mark.parametrize("step", [*BEFORE[BEFORE.index("wire") :], "adopt+"] if ALL else ["move"])
def test_the_new_switch_that_was_killed_is_given_up(host: StockHost, operator: Operator, step: str) -> None:
    before, stock, mark = programmed(host), host.switch_pid, host.pings.mark()
    status = struck(host, operator, step, "new")
    served(host)
    missing = lost(host, mark)
    assert status == RolledBack.exit_code
    assert host.switch_pid == stock
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")  # so that the next upgrade takes them over again
    served(host)
    alone = step in BEFORE[BEFORE.index("move-others") :]  # its pipeline was the only one then
    assert missing <= (10 * MOST if alone else MOST)


@pytest.mark.parametrize("step", [*BEFORE[BEFORE.index("wire") :], "adopt+"] if ALL else ["cut"])
def test_a_new_switch_that_hangs_is_given_up(host: StockHost, operator: Operator, step: str) -> None:
    """All its threads are stopped, so nothing that is asked of it is answered, and it still has rings of VMs."""
    before, stock = programmed(host), host.switch_pid
    assert struck(host, operator, step, "new", signal.SIGSTOP) == RolledBack.exit_code
    served(host)
    assert host.switch_pid == stock
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", UNCOPIED if ALL else UNCOPIED[-1:])
def test_an_old_switch_that_was_killed_before_it_was_copied_is_started_again(
    host: StockHost, operator: Operator, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The distribution starts it, as it does after any crash; until then the VMs wait, as they would without us."""
    before = programmed(host)
    assert struck(host, operator, step, "old") == RolledBack.exit_code
    assert "but instance a died and has to be started again" in capsys.readouterr().out
    assert host.switch_pid is None
    host.start_switch()
    served(host)
    assert differences(without_own(before), without_own(programmed(host))) == []


@pytest.mark.parametrize("step", [*BEFORE[-2:], *AFTER] if ALL else ["repoint"])
def test_an_upgrade_that_was_killed_is_resumed(host: StockHost, operator: Operator, step: str) -> None:
    before = programmed(host)
    assert struck(host, operator, step, "self") == -9
    time.sleep(PINGS_S)
    assert operator.ask("resume")["committed"]
    served(host)
    assert differences(without_own(before), without_own(programmed(host))) == []
    assert operator.ask("rollback")["committed"]
    served(host)


@pytest.mark.parametrize("step", [*COPIED, "adopt+", *AFTER[:-1]] if ALL else ["adopt+"])
def test_the_new_switch_serves_on_when_the_old_one_was_killed(host: StockHost, operator: Operator, step: str) -> None:
    before, mark = programmed(host), host.pings.mark()
    operator.ask("release-vms")  # so that some are not taken over yet when it dies
    served(host)
    assert struck(host, operator, step, "old") == 0
    served(host)
    missing = lost(host, mark)
    assert differences(without_own(before), without_own(programmed(host))) == []
    if step in AFTER:
        assert missing <= 2 * MOST  # the new one had everything already, but its links to the old one end


def test_an_instance_that_ends_is_started_again_with_what_others_programmed(
    host: StockHost, operator: Operator, tmp_path: Path
) -> None:
    """No controller would program what a script has written."""
    if json.loads(operator.command("status").stdout)["active"] != "b":
        operator.ask("upgrade", "--release", RELEASE)
    host.ofctl("add-group", BRIDGE, "group_id=7,type=all,bucket=actions=normal")
    host.ofctl("add-flow", BRIDGE, "cookie=0x51,priority=77,ip,nw_dst=192.0.2.9,actions=group:7")
    before, ended = programmed(host), host.switch_pid
    assert ended is not None
    flows = host.directory / "hotswap/run/flows-b.json"
    with watching(host, operator, tmp_path):
        eventually(lambda: flows.exists() and "192.0.2.9" in flows.read_text(), "the flows are kept", 20.0)
        mark = host.pings.mark()
        os.kill(ended, signal.SIGKILL)
        eventually(lambda: host.switch_pid not in (None, ended), "it is started again", 30.0)
        served(host, _MONITOR_S)
        print(host.pings.between(mark, host.pings.mark()))
        assert differences(before, programmed(host)) == []
        events = operator.ask("watch", "status")["events"]
    assert [each["event"] for each in events] == ["restart"]
    ended = host.switch_pid
    assert ended is not None
    os.kill(ended, signal.SIGKILL)  # no watchdog runs now
    operator.ask("instance", "start", "b", "--release", RELEASE)
    served(host, _MONITOR_S)
    assert differences(before, programmed(host)) == []


@contextmanager
def watching(host: StockHost, operator: Operator, directory: Path) -> Iterator[None]:
    """A watchdog of the host."""
    argv = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(operator.config), "watch", "run"]
    with (directory / "watch.log").open("w") as log:
        watchdog = host.space.popen(argv, stdout=log, stderr=log)
        try:
            eventually(lambda: operator.ask("watch", "status")["running"], "the watchdog runs")
            yield
        finally:
            watchdog.terminate()
            watchdog.wait(20.0)
            print((directory / "watch.log").read_text())


_MONITOR_S = 30.0  # a monitor that has started a daemon again does not do so for ten seconds (lib/daemon-unix.c)


@pytest.fixture(scope="module")
def monitored(system: System) -> Iterator[StockHost]:
    with StockHost(system, guests=2, monitored=True) as host:
        yield host


def test_a_switch_that_crashes_and_that_its_monitor_starts_again(
    monitored: StockHost, tree_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    """It serves the VMs again, whether they have a broker or not, until the upgrade has a whole copy of it; then its
    successor ends, which has nothing that the copy lacks."""
    host = monitored
    operator = Operator(host, SHORT_SOAK)
    operator.make_ready(tree_release)
    before, crashed = programmed(host), host.switch_pid
    assert struck(host, operator, "copy", "old", signal.SIGSEGV) == RolledBack.exit_code
    assert "but instance a died and was started again" in capsys.readouterr().out
    served(host, _MONITOR_S)
    assert host.switch_pid not in (None, crashed)
    operator.ask("release-vms")  # they may have come to the broker when their switch died
    served(host, _MONITOR_S)
    assert struck(host, operator, "adopt+", "self") == -9
    assert not operator.ask("rollback")["committed"]
    crashed = host.switch_pid
    assert crashed is not None
    os.kill(crashed, signal.SIGSEGV)  # some VMs have a broker now
    served(host, _MONITOR_S)
    assert host.switch_pid not in (None, crashed)
    operator.ask("release-vms")
    served(host, _MONITOR_S)
    assert struck(host, operator, "adopt+", "old", signal.SIGSEGV) == 0
    served(host, _MONITOR_S)
    assert operator.ask("status")["active"] == "b"
    assert len(host.run(["pgrep", "--ns", str(host.switch_pid), "--nslist", "mnt", "ovs-vswitchd"]).split()) == 1
    assert differences(without_own(before), without_own(programmed(host))) == []
