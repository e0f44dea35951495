"""Upgrades on a host that others program, at a step of which another daemon is killed than a switch: the broker, a
database server, OVN's controller. The host has a network of its own on the switch, which has to stay.

``OVS_HOTSWAP_STOCK_ROUNDS``: if it is more than one, every step is struck; otherwise a few that differ most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ovs_hotswap.controllers.ovn import wait_of
from ovs_hotswap.errors import PostcheckFailed, RolledBack, StateUnknown
from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.clone_steps import clone_plan
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import Operator, differences, programmed, without_own
from tests.support.stock_host import RUN_DIR, START_DATABASE, BridgeKind, StockHost
from tests.support.stock_host_network import add_host_ports, answered, host_pings, network
from tests.support.stock_ovn import GROUP, START_CONTROLLER, Ovn
from tests.support.stock_strike import MOST, Victim, lost, served, struck

ALL = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1")) > 1
BEFORE, AFTER = clone_plan().shape.before, clone_plan().shape.after
EVERY = [*BEFORE[1:], "adopt+", *AFTER]
HOST_MOST = 100  # of 100 a second, for each port
COPIED = BEFORE[BEFORE.index("copy") :]


@dataclass(frozen=True)
class Bed:
    host: StockHost
    operator: Operator


class Beds:
    """Hosts of one kind, one after the other. Each is used for as long as the distribution's switch serves there."""

    def __init__(self, system: System, release: Release, bridge: BridgeKind) -> None:
        self._system, self._release, self._bridge = system, release, bridge
        self._bed: Bed | None = None

    def stock(self) -> Bed:
        if self._bed is not None and self._bed.host.retired:
            self.close()
        if self._bed is None:
            self._bed = self._make()
        return self._bed

    def _make(self) -> Bed:
        host = StockHost(self._system, bridge=self._bridge, guests=2)
        self._bed = bed = Bed(host.__enter__(), Operator(host, SHORT_SOAK))
        bed.operator.make_ready(self._release)
        if self._bridge == "normal":
            add_host_ports(host)
        return bed

    def close(self) -> None:
        if self._bed is not None:
            self._bed.host.close()
            self._bed = None


@pytest.fixture(scope="module")
def beds(system: System, tree_release: Release) -> Iterator[Beds]:
    beds = Beds(system, tree_release, "normal")
    try:
        yield beds
    finally:
        beds.close()


@pytest.fixture
def bed(beds: Beds) -> Bed:
    return beds.stock()


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What the struck upgrade has printed; it stays in the report of the test."""
    text = capsys.readouterr().out
    print(text)
    return text


@pytest.mark.parametrize("step", ["sockets", "start-standby", *COPIED] if ALL else [])
def test_the_old_database_server_that_was_killed_before_the_commit(
    bed: Bed, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both switches serve the VMs on without it, but not the host, because ovs-vswitchd then does not look at its taps
    (vswitchd/bridge.c, bridge_run). The upgrade goes back, says what has to be started, and then ends."""
    host, operator = bed.host, bed.operator
    before, kept, stock, mark = programmed(host), network(host), host.switch_pid, host.pings.mark()
    status = struck(host, operator, step, "old database")
    text = told(capsys)
    served(host)
    if status != 0:  # after the cut nothing needs it any longer
        assert status in (RolledBack.exit_code, StateUnknown.exit_code)
        assert "`systemctl start ovsdb-server`" in text
        host.start_database()
    if status == StateUnknown.exit_code:
        assert not operator.ask("rollback")["committed"]
    served(host)
    answered(host)
    assert lost(host, mark) <= MOST
    assert network(host) == kept
    if status != 0:
        assert host.switch_pid == stock
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", COPIED if ALL else [])
def test_the_old_database_server_that_is_started_again_at_once(bed: Bed, step: str) -> None:
    """A service manager does that, so the operator has nothing to do."""
    host, operator = bed.host, bed.operator
    before, stock, mark = programmed(host), host.switch_pid, host.pings.mark()
    status = struck(host, operator, step, "old database", then=START_DATABASE)
    assert status in (0, RolledBack.exit_code)
    served(host)
    answered(host)
    assert lost(host, mark) <= MOST
    if status != 0:
        assert host.switch_pid == stock
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", ["start-standby", *COPIED, "adopt+"] if ALL else ["soak"])
def test_the_new_database_server_that_was_killed_is_started_again_for_the_way_back(bed: Bed, step: str) -> None:
    host, operator = bed.host, bed.operator
    before, kept, active, mark = programmed(host), network(host), host.switch_pid, host.pings.mark()
    status = struck(host, operator, step, "new database")
    served(host)
    answered(host)
    assert status in ((0, RolledBack.exit_code) if step == "start-standby" else (RolledBack.exit_code,))
    assert lost(host, mark) <= MOST
    assert network(host) == kept
    if status != 0:
        assert host.switch_pid == active
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", AFTER[:-1] if ALL else [])
@pytest.mark.parametrize("victim", ["old database", "new database"])
def test_a_database_server_that_was_killed_after_the_commit(bed: Bed, step: str, victim: Victim) -> None:
    """Without the old one the upgrade continues. `resume` starts the new one again."""
    host, operator = bed.host, bed.operator
    before, kept, mark = programmed(host), network(host), host.pings.mark()
    status = struck(host, operator, step, victim)
    assert status in (0, PostcheckFailed.exit_code)
    if status != 0:
        assert victim == "new database"
        assert operator.ask("resume")["committed"]
    served(host)
    answered(host)
    assert lost(host, mark) <= MOST
    assert network(host) == kept
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", EVERY if ALL else [])
def test_the_broker_that_was_killed_is_started_again_and_the_upgrade_continues(bed: Bed, step: str) -> None:
    """Its supervisor keeps its connections, and starts it again at once."""
    host, operator = bed.host, bed.operator
    before, kept, mark = programmed(host), network(host), host.pings.mark()
    with host_pings(host) as pings:
        assert struck(host, operator, step, "broker") == 0
        served(host)
    answered(host)
    assert lost(host, mark) <= MOST
    assert max(pings.lost.values()) <= HOST_MOST
    assert network(host) == kept
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.mark.parametrize("step", [*BEFORE[1:], "adopt+", *AFTER[:-1]] if ALL else ["cut"])
def test_the_network_of_the_host_when_the_old_switch_is_killed(bed: Bed, step: str) -> None:
    """Its taps outlive it with all that they have, and the new switch takes them; or it is started again itself."""
    host = bed.host
    before, kept = programmed(host), network(host)
    with host_pings(host) as pings:
        status = struck(host, bed.operator, step, "old")
        if status != 0:
            assert status == RolledBack.exit_code
            assert step in BEFORE[: BEFORE.index("copy") + 1]
            host.start_switch()
        served(host)
    answered(host)
    if step not in BEFORE[: BEFORE.index("copy") + 1]:
        assert max(pings.lost.values()) <= 2 * HOST_MOST
    assert network(host) == kept
    assert differences(without_own(before), without_own(programmed(host))) == []
    bed.operator.ask("release-vms")


@pytest.mark.parametrize("step", [*BEFORE[BEFORE.index("wire") :], "adopt+"] if ALL else [])
@pytest.mark.parametrize("victim", ["new", "self"])
def test_the_network_of_the_host_when_an_upgrade_is_given_up(bed: Bed, victim: Victim, step: str) -> None:
    host = bed.host
    before, kept, stock = programmed(host), network(host), host.switch_pid
    with host_pings(host) as pings:
        status = struck(host, bed.operator, step, victim)
        assert status == (-9 if victim == "self" else RolledBack.exit_code)
        if victim == "self":
            assert not bed.operator.ask("rollback")["committed"]
        served(host)
    answered(host)
    assert max(pings.lost.values()) <= HOST_MOST
    assert (network(host), host.switch_pid) == (kept, stock)
    assert differences(without_own(before), without_own(programmed(host))) == []
    bed.operator.ask("release-vms")


@pytest.mark.parametrize("step", EVERY if ALL else [])
def test_the_broker_and_its_supervisor_that_were_killed(
    bed: Bed, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator starts them, as the upgrade says. VMs that were taken over have no network until then."""
    host, operator = bed.host, bed.operator
    before, kept = programmed(host), network(host)
    status = struck(host, operator, step, "keepers")
    text = told(capsys)
    operator.start_broker()
    if status != 0:
        assert "`ovs-hotswap broker start`" in text
        word = "resume" if status == PostcheckFailed.exit_code else "rollback"
        assert operator.ask(word)["committed"] == (word == "resume")
    served(host)
    answered(host)
    assert network(host) == kept
    assert differences(without_own(before), without_own(programmed(host))) == []
    operator.ask("release-vms")
    served(host)


@pytest.fixture(scope="module")
def ovn_beds(system: System, tree_release: Release) -> Iterator[Beds]:
    beds = Beds(system, tree_release, "ovn")
    try:
        yield beds
    finally:
        beds.close()


@pytest.mark.parametrize("step", [*BEFORE[BEFORE.index("copy") :], *AFTER] if ALL else [])
@pytest.mark.parametrize("again", [True, False])
def test_the_controller_that_was_killed(ovn_beds: Beds, step: str, again: bool) -> None:
    """It is started again at once, or by the operator after the upgrade, which continues in both cases, also
    where it was paused. What it clears of wire mode when it is started is brought back."""
    bed = ovn_beds.stock()
    host, ovn, flows, mark = bed.host, Ovn(bed.host), bed.host.flows(), bed.host.pings.mark()
    status = struck(host, bed.operator, step, "controller", then=START_CONTROLLER if again else ())
    served(host)
    if not again:
        ovn.start_controller()
    if status == PostcheckFailed.exit_code:
        assert bed.operator.ask("resume")["committed"]
    else:
        assert status == 0
    ovn.add_acl("to-lport", 1100 + len(step), "outport == @guests && ip4 && tcp.dst == 5001", "allow-related")
    ovn.nbctl("--type=port-group", "acl-del", GROUP, "to-lport", str(1100 + len(step)),
              "outport == @guests && ip4 && tcp.dst == 5001")  # fmt: skip
    ovn.nbctl("--wait=hv", "sync")
    served(host)
    assert lost(host, mark) <= 2 * MOST  # a controller that is started without the setting clears its bridge first
    assert host.flows() == flows
    assert wait_of(host.outside(f"{RUN_DIR}/db.sock")) is None


@pytest.mark.parametrize("step", AFTER if ALL else [])
def test_an_upgrade_that_was_killed_is_resumed_with_its_controller(ovn_beds: Beds, step: str) -> None:
    """A controller that has passed to the new instance already is not waited for again."""
    bed = ovn_beds.stock()
    host, flows, mark = bed.host, bed.host.flows(), bed.host.pings.mark()
    assert struck(host, bed.operator, step, "self") == -9
    assert bed.operator.ask("resume")["committed"]
    Ovn(host).nbctl("--wait=hv", "sync")
    served(host)
    assert lost(host, mark) <= MOST
    assert host.flows() == flows
