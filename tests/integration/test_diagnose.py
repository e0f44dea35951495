"""Faults that are planted in a lab with real guests are what `diagnose` finds first, and nothing else comes before."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Sequence

import pytest

from ovs_hotswap.broker.lifecycle import start_broker
from ovs_hotswap.diagnose.asking import answers, asked
from ovs_hotswap.diagnose.facts import Facts
from ovs_hotswap.diagnose.found import Cause, Report
from ovs_hotswap.diagnose.judging import report
from ovs_hotswap.diagnose.looking import Look
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab.layout import REMOTE_INNER_MAC, REMOTE_VTEP
from ovs_hotswap.model import Severity
from ovs_hotswap.system import System
from tests.support import planted_faults as faults
from tests.support.lab_bed import SHORT_SOAK, serving_lab
from tests.support.planted_faults import Bed, Plant

SECONDS = 0.4  # the guests send 200 packets a second, so that this is enough


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    settings = SHORT_SOAK + '[watch]\nmode = "off"\n'
    with serving_lab(system, "ovsh-dia-", settings, vms=2) as lab:
        yield Bed(lab, Host(lab.config, system))


def facts_of(bed: Bed, vm: str | None = None) -> Facts:
    return Look(bed.lab.config, System(), SECONDS, True, vm).facts()


def judged(bed: Bed, facts: Facts, vm: str | None = None, to: str | None = None) -> Report:
    wish = asked(facts, vm, to)
    return report(facts, wish, answers(Host(bed.lab.config, System()), facts, wish))


PLANTED: list[tuple[Plant, Cause, str | None]] = [
    (faults.wrong_vni, Cause.WRONG_VNI, "vm1"),
    (faults.missing_neighbour, Cause.NEIGHBOUR_MISSING, None),
    (faults.stale_rule, Cause.UPLINK_RULE, None),
    (faults.silent_vf, Cause.UPLINK_SILENT, None),
    (faults.rings_left_parked, Cause.RING_NOT_SERVED, "vm1"),
    (faults.long_packets, Cause.MTU, None),
    (faults.unknown_mac, Cause.UNKNOWN_MAC, "vm1"),
    (faults.full_conntrack, Cause.CONNTRACK_FULL, None),
    (faults.flows_deleted, Cause.FLOWS_DIFFER, None),
    (faults.silent_vtep, Cause.VTEP_SILENT, None),
    (faults.wrong_vtep, Cause.WRONG_VTEP, None),
    (faults.starved_core, Cause.PMD_STARVED, None),
    (faults.stopped_instance, Cause.INSTANCE_STOPPED, None),
    (faults.empty_pool, Cause.POOL_EMPTY, None),
]
# One of vm1 and one of vm2, which are planted together to save time. Each is the first finding about its VM.
PAIRED: list[Sequence[tuple[Plant, Cause]]] = [
    ((faults.port_down, Cause.PORT_DOWN), (faults.port_blocked, Cause.PORT_BLOCKED)),
    ((faults.spoofing, Cause.SPOOFED), (faults.policing, Cause.POLICED)),
    ((faults.hung_guest, Cause.GUEST_HUNG), (faults.stopped_guest, Cause.GUEST_HUNG)),
]


def test_nothing_is_found_while_all_is_well(bed: Bed) -> None:
    facts = facts_of(bed, "vm1")
    found = judged(bed, facts, "vm1")
    assert found.findings == ()
    assert found.worst is Severity.OK
    assert [path.delivered for path in found.paths] == [True, True, True]
    shown = {each.about for each in found.seen}
    assert {"owner", "rings", "port", "PMD core", "packet pool", "uplink", "VTEP"} <= shown
    there = judged(bed, facts, "vm1", REMOTE_INNER_MAC)
    assert [path.delivered for path in there.paths] == [True, True]
    assert any(f"into the tunnel to {REMOTE_VTEP}" in step for step in there.paths[0].steps)
    nowhere = judged(bed, facts, "vm1", "02:00:00:00:00:09")
    assert nowhere.findings[0].cause is Cause.UNKNOWN_MAC
    assert nowhere.paths[0].delivered is False
    assert any(re.search(r"unknown unicast MAC", step) for step in nowhere.paths[0].steps)


@pytest.mark.parametrize("pair", PAIRED, ids=["+".join(plant.__name__ for plant, _ in each) for each in PAIRED])
def test_a_planted_fault_of_a_vm_is_found_first(bed: Bed, pair: Sequence[tuple[Plant, Cause]]) -> None:
    with contextlib.ExitStack() as stack:
        for plant, _ in pair:
            stack.enter_context(plant(bed))
        facts = facts_of(bed)
    for vm, (_, cause) in zip(("vm1", "vm2"), pair, strict=True):
        found = report(facts, asked(facts, vm, None)).findings
        assert [(each.cause, each.vm) for each in found[:1]] == [(cause, vm)], found
    bed.lab.pings.wait_flowing(60.0, 2)


@pytest.mark.parametrize(("plant", "cause", "vm"), PLANTED, ids=[each[0].__name__ for each in PLANTED])
def test_a_planted_fault_is_found_first(bed: Bed, plant: Plant, cause: Cause, vm: str | None) -> None:
    with plant(bed):
        found = report(facts_of(bed)).findings
    assert [(each.cause, each.vm) for each in found[:1]] == [(cause, vm)], found
    bed.lab.pings.wait_flowing(60.0, 2)


def test_a_vm_that_is_paused_is_told_of_if_it_is_asked_about(bed: Bed) -> None:
    with faults.paused_guest(bed):
        facts = facts_of(bed)
    assert report(facts).findings == ()
    found = report(facts, asked(facts, "vm1", None)).findings
    assert [each.cause for each in found] == [Cause.NO_DRIVER]
    assert "paused" in found[0].text
    bed.lab.pings.wait_flowing(60.0, 2)


def test_a_broker_that_is_gone_is_found_first(bed: Bed, system: System) -> None:
    """The last test: guests whose broker was killed with its supervisor may need a restart."""
    for name, word in (("supervisor.pid", "supervise"), ("broker.pid", "broker")):
        pid = system.read_writer(bed.lab.config.run_dir / name, word)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    try:
        assert report(facts_of(bed)).findings[0].cause is Cause.BROKER_GONE
    finally:
        start_broker(bed.lab.config, system, bed.lab.config_path, 10.0)
