"""Metrics: what upgrades and watchdog did, what a look exports, and what a scrape of a host without anything gives."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ovs_hotswap.backends import BackendMode, OwnerCertainty, Switches, SwitchRole, SwitchStatus
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import Change
from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.counters.values import ConntrackCounts, PmdCounters, SwitchCounters
from ovs_hotswap.errors import BusyError, HostError
from ovs_hotswap.host import event_log
from ovs_hotswap.host.host import Host
from ovs_hotswap.metrics.catalogue import METRICS, Kind
from ovs_hotswap.metrics.collector import HostCollector, counted, serve
from ovs_hotswap.metrics.exposition import text
from ovs_hotswap.metrics.histogram import Histogram
from ovs_hotswap.metrics.history import EVENTS, Ended, EventsRead, History, why_back, with_events, with_upgrades
from ovs_hotswap.metrics.look import HostReader, Look, Rest, Unfinished, every_part
from ovs_hotswap.metrics.page import Page, fill, serving_of
from ovs_hotswap.metrics.state import Kept, KeptFile
from ovs_hotswap.metrics.tally import Tally, drop_key
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind as RecordKind
from ovs_hotswap.plan.records import Phase, Record, StepNames
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.switch.paths import InstanceRecord
from ovs_hotswap.system import System
from ovs_hotswap.vm_ports import VmPort, write_ports
from ovs_hotswap.waiting import wait_until
from tests.support.fake_backends import vm_status
from tests.unit.watch_bed import config as config

SHAPE = StepNames(("check", "move"), ("retire",))
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


# -------------------------------------------------------------------------------------------------------------- history


def test_values_are_counted_in_the_first_bucket_that_has_room_for_them() -> None:
    found = Histogram.empty((1.0, 2.0)).plus([0.5, 1.0, 1.5, 9.0])
    assert list(found.buckets()) == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert found.total == 12.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("interrupted by SIGTERM", "interrupted"),
        ("interrupted", "interrupted"),
        ("instance b died", "instance_died"),
        ("VM vm1: instance a is stopped; everything waits", "instance_died"),
        ("/run/b/db.sock: ovs-vswitchd has ended or is stopped", "instance_died"),
        ("instance b does not take what the guest sends of VM vm1", "failed"),
        ("broker at /run/x: move: no answer", "failed"),
    ],
)
def test_the_reason_of_a_rollback(text: str, reason: str) -> None:
    records = [Record(RecordKind.START, "move"), Record(RecordKind.FAILED, "move", text=text),
               Record(RecordKind.UNDO_FAILED, "move", text="again"), Record(RecordKind.FAILED, "check")]  # fmt: skip
    assert why_back(records) == ("move", reason)


def test_a_rollback_that_was_asked_for_has_no_failed_step() -> None:
    assert why_back([Record(RecordKind.START, "move"), Record(RecordKind.UNDO, "move")]) == ("", "asked")


def test_upgrades_are_counted_by_outcome_with_their_handovers() -> None:
    facts: dict[str, Any] = {"moves": {"vm1": 90.0, "vm2": 400}, "uplink_gap_ms": 12.0}
    committed = Ended.of("1", Phase.FINISHED, [], facts)
    back = Ended.of("2", Phase.ROLLED_BACK, [Record(RecordKind.FAILED, "move", text="no")], {"moves": "none"})
    found = with_upgrades(History(), [committed, back, back])
    assert found.upgrades == {"committed": 1, "rolled_back": 2}
    assert found.rollbacks == {("move", "failed"): 2}
    assert sum(found.handovers.counts) == 2
    assert math.isclose(found.handovers.total, 490e-6)
    assert math.isclose(found.uplink_gaps.total, 0.012)
    assert found.journal == "2"


def test_failovers_are_counted_by_what_was_seen_with_the_time_that_they_took() -> None:
    events: list[dict[str, Any]] = [
        {"event": "failover", "signal": "pmd", "ms": {"owned": 20.0, "recorded": 30.0}},
        {"event": "failover", "signal": "pmd", "ms": {"recorded": 40.0}},
        {"event": "failover", "signal": "process"},
        {"event": "failover", "signal": None},
        {"event": "standby"},
    ]
    found = with_events(History(), events, EventsRead(7, 100))
    assert found.failovers == {"process": 1, "stopped": 0, "pmd": 2, "main-thread": 0, "": 1}
    assert {kind: count for kind, count in found.events.items() if count} == {"failover": 4, "standby": 1}
    assert math.isclose(found.failover_gaps.total, 0.06)
    assert found.read == EventsRead(7, 100)


def begin(config: Config, tmp_path: Path) -> Journals:
    (tmp_path / "boot_id").write_text("boot-1\n")
    return Journals(config.state_dir, System(), boot_id=tmp_path / "boot_id")


def ended(journals: Journals, failed: str = "") -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        journal.append(Record(RecordKind.START, "check"))
        if failed:
            journal.append(Record(RecordKind.FAILED, "check", text=failed))
            journal.append(Record(RecordKind.END))
            return
        journal.append(Record(RecordKind.DONE, "check"))
        journal.append(Record(RecordKind.START, "move"))
        journal.append(Record(RecordKind.FACTS, "move", {"moves": {"vm1": 100.0}}))
        journal.append(Record(RecordKind.DONE, "move"))
        journal.append(Record(RecordKind.COMMIT))
        for kind in (RecordKind.START, RecordKind.DONE):
            journal.append(Record(kind, "retire"))
        journal.append(Record(RecordKind.END))


def test_each_ended_upgrade_is_counted_once_and_a_damaged_journal_keeps_none_from_it(
    config: Config, tmp_path: Path
) -> None:
    reader, journals = HostReader(config, System()), begin(config, tmp_path)
    begun = reader.history(History())
    assert begun == History(begun=True)
    ended(journals)
    (journals.directory / "20000101T000000.000000Z-upgrade.jsonl").write_text("{}\n")
    first = reader.history(begun)
    assert first.upgrades == {"committed": 1, "rolled_back": 0}
    assert first.handovers.total == pytest.approx(100e-6)
    assert reader.history(first) == first
    ended(journals, failed="instance b died")
    assert reader.history(first).rollbacks == {("check", "instance_died"): 1}


def new_kinds(history: History) -> dict[str, int]:
    """The events that no watchdog of this version writes."""
    return {kind: count for kind, count in history.events.items() if kind not in EVENTS}


def test_every_event_of_the_watchdog_is_counted_from_zero() -> None:
    page = (Path(__file__).parents[2] / "docs/json.md").read_text()
    section = page.partition("### Events of the watchdog")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) <= set(EVENTS)
    assert set(History().events) == set(EVENTS)


def test_events_are_read_on_over_a_rotation_of_their_file(config: Config) -> None:
    reader, path = HostReader(config, System()), event_log.events_path(config)
    begun = reader.history(History())
    assert begun == History(begun=True)
    path.parent.mkdir()
    path.write_text('{"event": "one"}\n{"event": "two"}\nno json\n{"event": "to')
    first = reader.history(begun)
    assert new_kinds(first) == {"one": 1, "two": 1}
    with path.open("a") as file:
        file.write('rn"}\n{"event": "last of the file"}\n')
    path.rename(event_log.older_events_path(config))
    path.write_text('{"event": "new"}\n')
    second = reader.history(first)
    assert new_kinds(second) == {"one": 1, "two": 1, "torn": 1, "last of the file": 1, "new": 1}
    assert reader.history(second) == second


def test_a_file_of_events_that_was_made_again_with_the_same_inode_is_read_from_its_beginning(config: Config) -> None:
    path, reader = event_log.events_path(config), HostReader(config, System())
    path.parent.mkdir()
    path.write_text('{"event": "one"}\n{"event": "two"}\n')
    begun = reader.history(History())
    path.write_text('{"event": "new"}\n')  # as a file system does that gives the inode of a removed file again
    assert new_kinds(reader.history(begun)) == {"new": 1}


def test_what_happened_before_the_first_look_is_not_counted(config: Config, tmp_path: Path) -> None:
    """After a boot the sums begin again, and failovers and upgrades of which there are records would look new."""
    reader, journals = HostReader(config, System()), begin(config, tmp_path)
    ended(journals)
    event_log.older_events_path(config).write_text('{"event": "old"}\n')
    event_log.events_path(config).write_text('{"event": "failover", "signal": "pmd"}\n')
    first = reader.history(History())
    assert (first.upgrades, first.failovers, new_kinds(first)) == (History().upgrades, History().failovers, {})
    assert reader.history(first) == first
    with event_log.events_path(config).open("a") as file:
        file.write('{"event": "failover", "signal": "pmd"}\n')
    ended(journals)
    second = reader.history(first)
    assert (second.upgrades["committed"], second.failovers["pmd"]) == (1, 1)


# ------------------------------------------------------------------------------------------------------------- the page


def watch(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "automatic", "running": True, "ready": True, "active": "a", "standby": "b", "health": "healthy",
        "reason": None, "keeping": "ready", "unprotected": [], "not_parked": None, "quarantined": None,
        "failover_problem": None, "problem": None, "events_problem": None, "failures": 0, "gave_up": False,
        "uplinks": {"a": {"severity": "ok", "text": "well"}, "b": {"severity": "error", "text": "deaf"}},
        "differing": [], **changes,
    }  # fmt: skip


PARKED = SwitchStatus(connected=True, pid=1, role=SwitchRole.PARKED, parked=True, offers=None, missing=())
RECORD = InstanceRecord(release="host", root=None, ovs_version="3.1.0", dpdk_version="22.11", started=500.0, starter=1)
COUNTERS = SwitchCounters(
    (1, 2), pools=(PacketPool(0, 16384, 400, 3008),),
    pmds=(PmdCounters(0, 3, 90, 10), PmdCounters(None, None, 5, 5)), conntrack=ConntrackCounts(12, 3000),
)  # fmt: skip


def look(**changes: Any) -> Look:
    given: dict[str, Any] = {
        "time": 1000.0, "watch": watch(), "active": Side.A, "uplink": Side.A,
        "vms": (vm_status("vm1", switches=Switches(PARKED, PARKED)),
                vm_status("vm2", owner=None, certainty=OwnerCertainty.NOBODY, qemu=None)),
        "broker": BrokerStatus(version="1", pid=9, uptime_s=100.0, vms=2, supervised=True, home=Side.A),
        "records": dict.fromkeys(Side, RECORD), "counters": {Side.A: COUNTERS, Side.B: SwitchCounters((3, 4))},
        "ports": {name: VmPort(name=name, bridge="br0", ofport=10, socket=Path("/s")) for name in ("vm1", "vm2")},
        "vnis": {"vm1": 5},
    }  # fmt: skip
    return Look(**given | changes)


def exported(config: Config, seen: Look, tally: Tally | None = None, history: History | None = None) -> Samples:
    page = Page("hv1")
    fill(page, config, seen, tally or Tally(), history or History())
    return samples(page.families())


def samples(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("host")
            key = sample.name.removeprefix("ovs_hotswap_"), tuple(sorted(labels.items()))
            assert key not in found, "a sample is there once"
            found[key] = float(sample.value)
    return found


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


def test_a_healthy_host(config: Config) -> None:
    found = exported(config, look())
    assert value(found, "active", side="a") == 1
    assert value(found, "active", side="b") == 0
    assert value(found, "uplink_steered", side="a") == 1
    assert value(found, "uplink_proof", side="b", result="error") == 1
    assert value(found, "uplink_proof", side="b", result="ok") == 0
    assert value(found, "instance_start_time_seconds", side="b") == 500
    assert value(found, "instance_info", side="a", release="host", ovs_version="3.1.0", dpdk_version="22.11") == 1
    assert value(found, "broker_up") == 1
    assert value(found, "broker_start_time_seconds") == 900
    assert value(found, "watchdog_healthy") == 1
    assert value(found, "standby_start_time_seconds") == 500
    assert value(found, "upgrade_unfinished") == 0
    assert value(found, "vm_info", vm="vm1", interface="vm1", bridge="br0", ofport="10", vni="5") == 1
    assert value(found, "vm_owner", vm="vm1", side="a", certainty="owns") == 1
    assert value(found, "vm_owner", vm="vm2", side="", certainty="nobody") == 1
    assert value(found, "vm_connected", vm="vm2") == 0
    assert value(found, "vm_protected", vm="vm1") == 1
    assert value(found, "packet_pool_buffers_in_use", side="a", node="0", buffer_bytes="3008") == 400
    assert value(found, "pmd_cycles_total", side="a", numa="0", core="3", state="busy") == 10
    assert value(found, "conntrack_connections", side="a") == 12
    assert not any(number for (name, _), number in found.items() if name == "unknown")


CORES = Change("instances.a.pmd_cores", [1], [2])
CHANGES: list[tuple[dict[str, Any], str, dict[str, str], float | None]] = [
    ({"active": None, "unknown": {("active", ""): "no"}}, "active", {"side": "a"}, None),
    ({"active": None, "unknown": {("active", ""): "no"}}, "unknown", {"part": "active", "side": ""}, 1),
    ({"active": None}, "active", {"side": "a"}, 0),
    ({"uplink": None}, "uplink_steered", {"side": "a"}, None),
    ({"broker": None, "unknown": {("broker", ""): "no answer"}}, "broker_up", {}, 0),
    ({"broker": None}, "broker_up", {}, None),  # with no broker there is none to be up
    ({"vms": None}, "vm_connected", {"vm": "vm1"}, None),
    ({"watch": watch(mode="off")}, "watchdog_up", {}, None),
    ({"watch": watch(mode="off")}, "vm_protected", {"vm": "vm1"}, None),
    ({"watch": watch(running=False, ready=False)}, "watchdog_up", {}, 0),
    ({"watch": watch(running=False, ready=False)}, "standby_ready", {}, 0),
    ({"watch": watch(running=False, ready=False)}, "watchdog_healthy", {}, None),
    ({"watch": watch(health="suspect")}, "watchdog_healthy", {}, 0),
    ({"watch": watch(problem="no memory")}, "watchdog_problem", {"kind": "problem"}, 1),
    ({"watch": watch(differing=[CORES, CORES])}, "configuration_differences", {}, 1),
    ({"broker": None, "watch": watch(differing=[CORES])}, "configuration_differences", {}, 1),
    ({"watch": watch(standby=None)}, "standby_start_time_seconds", {}, None),
    ({"readable": False}, "journal_readable", {}, 0),
    ({"readable": False}, "upgrade_unfinished", {}, None),
    ({"unfinished": Unfinished(7.0, failed=True)}, "upgrade_failed", {}, 1),
    ({"unfinished": Unfinished(7.0, failed=False)}, "upgrade_start_time_seconds", {}, 7),
    ({"counters": dict.fromkeys(Side, SwitchCounters(None))}, "instance_up", {"side": "a"}, 0),
    ({"counters": dict.fromkeys(Side, SwitchCounters(None))}, "instance_info",
     {"side": "a", "release": "host", "ovs_version": "3.1.0", "dpdk_version": "22.11"}, None),
    ({"unknown": {("coverage", "a"): "silent"}}, "unknown", {"part": "coverage", "side": "a"}, 1),
    ({"vms": (vm_status(quarantine="by order"),)}, "vm_quarantined", {"vm": "vm1"}, 1),
    ({"vms": (vm_status(),)}, "vm_protected", {"vm": "vm1"}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "labels", "expected"), CHANGES)
def test_what_is_wrong_or_unknown_shows(
    config: Config, changes: dict[str, Any], name: str, labels: dict[str, str], expected: float | None
) -> None:
    assert value(exported(config, look(**changes)), name, **labels) == expected


def test_drops_of_vms_and_of_the_host_are_metrics_of_their_own(config: Config) -> None:
    tally = Tally(
        drops={drop_key(Reason.RING_FULL, "vm1"): 3, drop_key(Reason.RING_FULL, "uplink"): 4,
               drop_key(Reason.UNKNOWN_MAC, vni=5): 6},
        flows={"deliver": 9}, moves={"vm1": 2}, vms=("vm1",),
    )  # fmt: skip
    found = exported(config, look(), tally)
    assert value(found, "vm_dropped_packets_total", vm="vm1", reason="ring_full") == 3
    assert value(found, "vm_dropped_packets_total", vm="vm1", reason="mtu") == 0
    assert value(found, "dropped_packets_total", reason="ring_full", port="uplink", vni="") == 4
    assert value(found, "dropped_packets_total", reason="unknown_mac", port="", vni="5") == 6
    assert value(found, "flow_packets_total", kind="deliver") == 9
    assert value(found, "vm_moves_total", vm="vm1") == 2


def test_a_vm_of_which_it_is_not_known_who_serves_it_is_a_vm_all_the_same(config: Config) -> None:
    tally = Tally(("vm1",), {drop_key(Reason.RING_FULL, "vm1"): 3}, serving={})
    found = exported(config, look(), tally)
    assert value(found, "vm_dropped_packets_total", vm="vm1", reason="ring_full") == 3
    assert value(found, "dropped_packets_total", reason="ring_full", port="vm1", vni="") is None


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_packet_pools_of_a_kind_the_fullest_is_told(config: Config, order: int) -> None:
    """A jumbo frame's pool is of another kind; with per-port-memory each port has a pool."""
    pools = (PacketPool(0, 1000, 100, 3008), PacketPool(0, 500, 90, 3008), PacketPool(0, 800, 1, 10176))[::order]
    found = exported(config, look(counters=dict.fromkeys(Side, SwitchCounters((1, 2), pools=pools))))
    small, large = ({"side": "a", "node": "0", "buffer_bytes": size} for size in ("3008", "10176"))
    assert value(found, "packet_pool_buffers", **small) == 500
    assert value(found, "packet_pool_buffers_in_use", **small) == 90
    assert value(found, "packet_pool_buffers_in_use", **large) == 1


def test_the_histograms_and_counters_of_what_happened(config: Config) -> None:
    facts = {"moves": {"vm1": 90.0}}
    history = with_upgrades(History(), [Ended.of("1", Phase.FINISHED, [], facts)])
    found = exported(config, look(), history=history)
    assert value(found, "handover_seconds_count") == 1
    assert value(found, "handover_seconds_bucket", le="5e-05") == 0
    assert value(found, "handover_seconds_bucket", le="0.0001") == 1
    assert value(found, "upgrades_total", outcome="committed") == 1
    assert value(found, "failovers_total", signal="process") == 0


def test_every_metric_of_the_catalogue_is_exported_by_some_look(config: Config) -> None:
    page = Page("hv1")
    ended = [Ended("1", committed=False, step="move", reason="failed")]
    history = with_events(with_upgrades(History(), ended), [{"event": "standby"}], EventsRead())
    tally = Tally(("vm1",), {drop_key(Reason.METER): 1}, {"deliver": 1}, {"vm1": 1})
    fill(page, config, look(unfinished=Unfinished(7.0, failed=False)), tally, history)
    page.add("scrape_duration_seconds", 0.1)
    assert [family.name for family in page.families()] == [
        metric.full_name.removesuffix("_total") for metric in METRICS.values()
    ]


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in METRICS.values():
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
        assert "host" not in metric.labels
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)


def test_who_serves_a_vm_without_an_owner() -> None:
    vms = {"vm1": vm_status("vm1", owner=Side.B), "vm2": vm_status("vm2", owner=None)}
    assert serving_of(vms, Side.A) == {"vm1": Side.B, "vm2": Side.A}
    assert serving_of(vms, None) == {"vm1": Side.B}
    assert counted(look(vms=None)).serving == {}


# ----------------------------------------------------------------------------------------------------------- the scrape


class Looks(HostReader):
    """Gives one look after the other, and counts how often it was asked."""

    def __init__(self, config: Config, looks: Iterable[Look]) -> None:
        super().__init__(config, System())
        self._looks, self.asked = iter(looks), 0

    def look(self) -> Look:
        self.asked += 1
        return next(self._looks)


class Ticks:
    """A clock that moves a minute at each question."""

    def __init__(self, step: float = 60.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def collector(config: Config, *looks: Look, step: float = 60.0) -> HostCollector:
    config.run_dir.mkdir(exist_ok=True)
    return HostCollector(
        config, System(), host="hv1", reader=Looks(config, looks), clock=Ticks(step), patience_s=0
    )  # fmt: skip


def test_a_scrape_is_text_that_prometheus_reads(config: Config) -> None:
    families = list(text_string_to_metric_families(text(collector(config, look()))))
    assert value(samples(families), "active", side="a") == 1
    assert all(sample.labels["host"] == "hv1" for family in families for sample in family.samples)


def test_two_scrapes_at_the_same_time_are_given_one_look(config: Config) -> None:
    found = collector(config, look(), step=0.1)
    assert list(found.collect()) == list(found.collect())


def test_sums_continue_in_the_next_program(config: Config) -> None:
    first = collector(config, look(vms=(vm_status(moves=2),)))
    assert value(samples(first.collect()), "vm_moves_total", vm="vm1") == 2
    second = collector(config, look(vms=(vm_status(moves=3),)))
    assert value(samples(second.collect()), "vm_moves_total", vm="vm1") == 3
    (config.run_dir / "metrics.json").write_text("{}")
    third = collector(config, look(vms=(vm_status(moves=3),)))
    assert value(samples(third.collect()), "vm_moves_total", vm="vm1") == 3, "it begins again"


def test_a_file_that_cannot_be_written_is_no_reason_not_to_answer(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    found = collector(config, look(), look())
    (config.run_dir / "metrics.json").mkdir()
    assert value(samples(found.collect()), "active", side="a") == 1
    assert "the sums of the metrics are not kept" in caplog.text
    assert value(samples(found.collect()), "active", side="a") == 1


def test_while_another_program_holds_the_file_the_scrape_continues_from_what_is_known_here(config: Config) -> None:
    found = collector(config, look(vms=(vm_status(moves=2),)), look(vms=(vm_status(moves=5),)))
    list(found.collect())
    with KeptFile(config, System()).lock():
        assert value(samples(found.collect()), "vm_moves_total", vm="vm1") == 5
    assert KeptFile(config, System()).read().tally.moves == {"vm1": 2}


def test_what_could_not_be_written_is_not_lost_when_the_file_can_be_written_again(config: Config) -> None:
    found = collector(config, *(look(vms=(vm_status(moves=moves),)) for moves in (2, 5, 1, 1)))
    list(found.collect())
    kept = config.run_dir / "metrics.json"
    aside = kept.rename(config.run_dir / "aside")
    kept.mkdir()  # nothing can be written there
    assert value(samples(found.collect()), "vm_moves_total", vm="vm1") == 5
    kept.rmdir()
    aside.rename(kept)
    assert value(samples(found.collect()), "vm_moves_total", vm="vm1") == 6, "another broker has counted one more"
    kept.unlink()
    assert value(samples(found.collect()), "vm_moves_total", vm="vm1") == 6, "it does not begin again"


def test_the_file_is_held_by_one_program_at_a_time(config: Config) -> None:
    config.run_dir.mkdir()
    file = KeptFile(config, System(), patience_s=0)
    with file.lock(), pytest.raises(BusyError, match="a scrape of the metrics"), file.lock():
        pass
    with file.lock():
        file.write(Kept())
    assert file.read() == Kept()
    assert json.loads(file.path.read_text())["format"] == 2


def test_a_program_that_holds_the_file_only_for_a_moment_is_waited_for(config: Config) -> None:
    config.run_dir.mkdir()
    held, file = threading.Event(), KeptFile(config, System())

    def hold() -> None:
        with file.lock():
            held.set()
            file.write(Kept(history=History(journal="theirs")))

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with file.lock():
        assert file.read().history.journal == "theirs"
    thread.join(10)


class Fixed(Collector):
    def collect(self) -> Iterator[Metric]:
        page = Page("hv1")
        page.add("broker_up", 1)
        return page.families()


PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.2"
"""The kinds of answers that Prometheus asks for, in its order."""


@pytest.mark.parametrize(("address", "place"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_it_answers_over_http_in_the_text_format_until_it_is_shut_down(address: str, place: str) -> None:
    server, thread = serve(Fixed(), address, 0)
    try:
        url = f"http://{place}:{server.server_port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": PROMETHEUS})) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b'ovs_hotswap_broker_up{host="hv1"} 1.0' in answer.read()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_answers_until_it_is_ended_and_ends_well(config: Config, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    side = '[instances.{0}]\npmd_cores = [0]\nuplink_devargs = "{0}"\n'
    file = tmp_path / "config.toml"
    file.write_text(f'overlay = "{config.overlay}"\nrun_dir = "{config.run_dir}"\nstate_dir = "{config.state_dir}"\n'
                    + side.format("a") + side.format("b"))  # fmt: skip
    argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(file), "metrics", "serve", "--listen", address]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:

        def answer() -> str:
            try:
                with urllib.request.urlopen(f"http://{address}/metrics") as found:
                    return str(found.read().decode())
            except OSError:
                return ""

        wait_until(lambda: process.poll() is not None or answer(), 30.0)
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert f'ovs_hotswap_broker_up{{host="{socket.gethostname()}"}} 0.0' in answer()
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, b"")


def test_an_address_that_another_program_has_is_an_error_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"127\.0\.0\.1:{port}: Address already in use") as raised:
            serve(Fixed(), "127.0.0.1", port)
    assert "--listen" in (raised.value.hint or "")


def test_a_host_on_which_nothing_runs_is_looked_at_without_an_error(config: Config) -> None:
    config.run_dir.mkdir()
    found = samples(HostCollector(config, System(), host="hv1").collect())
    assert value(found, "broker_up") == 0
    assert value(found, "instance_up", side="a") == 0
    assert value(found, "watchdog_up") == 0
    assert value(found, "unknown", part="intent", side="") == 1
    assert value(found, "unknown", part="active", side="") == 0
    assert value(found, "active", side="a") == 0


def test_a_part_that_does_not_exist_on_a_host_is_not_said_to_be_known(config: Config) -> None:
    parts = set(every_part(config, lambda side: side is Side.A))
    assert ("uplink", "") not in parts, 'the driver is "none"'
    assert {side for _, side in parts} == {"", "a"}
    assert {"ports", "flows"} < {part for part, side in parts if side}
    assert "conntrack" not in {part for part, _ in parts}


def test_on_a_host_that_others_program_the_ports_are_those_of_the_record(config: Config) -> None:
    config.run_dir.mkdir()
    tables = config.model_dump(mode="json", exclude={"uplink", "watch", "instances"})
    side = {"pmd_cores": [0]}
    cloned = Config.model_validate({**tables, "program": "clone", "instances": {"a": side, "b": side}})
    write_ports(cloned, System(), (VmPort(name="vhu1", bridge="br-int", ofport=7, socket=Path("/s")),))
    seen = HostReader(cloned, System()).look()
    assert {name: port.bridge for name, port in (seen.ports or {}).items()} == {"vhu1": "br-int"}
    assert {part for part, _ in seen.unknown} == {"vms", "broker"}
    found = exported(cloned, seen)
    assert value(found, "vm_info", vm="vhu1", interface="vhu1", bridge="br-int", ofport="7", vni="") == 1
    assert value(found, "unknown", part="intent", side="") == 0
    parts = {part for part, side in every_part(cloned, lambda side: True) if side}
    assert "conntrack" in parts
    assert "flows" not in parts


def test_without_a_broker_none_is_missed(config: Config) -> None:
    config.run_dir.mkdir()
    config.overlay.write_text(INTENT)
    dual = config.model_copy(update={"backend": BackendMode.QEMU_DUAL})
    found = exported(dual, HostReader(dual, System()).look())
    assert value(found, "broker_up") is None
    assert value(found, "unknown", part="broker", side="") is None
    assert value(found, "unknown", part="vms", side="") == 0


INTENT = '[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n'
VM = '[[vm]]\nname = "{name}"\nofport = {ofport}\nmac = "52:54:00:00:00:{ofport}"\nvni = 5\n'


def test_the_intent_is_read_again_when_its_file_has_changed(config: Config) -> None:
    config.run_dir.mkdir()
    reader = HostReader(config, System())
    config.overlay.write_text(INTENT + VM.format(name="vm1", ofport=10))
    assert reader.look().vnis == {"vm1": 5}
    config.overlay.unlink()
    config.overlay.write_text(INTENT + VM.format(name="vm2", ofport=11))
    assert set(reader.look().ports or ()) == {"vm2"}
    config.overlay.unlink()
    config.overlay.write_text("vm")
    assert reader.look().ports is None


def test_a_side_that_serves_no_vm_is_read_whole_at_one_look_of_four_after_it_has_settled() -> None:
    rest = Rest()
    assert [rest.skips(15.0 * look, rests=True) for look in range(8)] == [
        False, False, True, False, True, True, True, False,
    ]  # fmt: skip
    assert not rest.skips(120.0, rests=False)
    assert [rest.skips(120.0 + 4 * look, rests=True) for look in range(1, 6)] == [False, False, True, False, True]


def test_what_could_not_be_read_last_of_a_side_at_rest_stays_unknown(config: Config, tmp_path: Path) -> None:
    """Its process runs and its database is silent; the other side is the active one and owns the VM."""
    begin(config, tmp_path)
    config.run_dir.mkdir(exist_ok=True)
    config.overlay.write_text(INTENT)
    (config.run_dir / "b").mkdir()
    pid = config.run_dir / "b/ovs-vswitchd.pid"
    pid.write_text(f"{os.getpid()}\n")

    class Served(Host):
        def recorded_active(self) -> Side:
            return Side.A

        @property
        def backends(self) -> Any:
            return OneVm()

    class OneVm:
        def vms(self, *, read: bool) -> list[Any]:
            return [vm_status(owner=Side.A)]

    reader = HostReader(config, FakeVswitchd(), make_host=Served)
    assert [("ports", "b") in reader.look().unknown for _ in range(4)] == [True] * 4


class FakeVswitchd(System):
    """One process counts as an ovs-vswitchd."""

    def read_pid(self, path: Path) -> int | None:
        return os.getpid() if path.exists() else None


def test_the_text_is_that_of_prometheus_client(config: Config) -> None:
    strange = Tally(("vm1",), {drop_key(Reason.RING_FULL, 'a "port"\\\n'): 1 << 60}, {"deliver": 3}, {"vm1": 1})
    page = Page('host "1"')
    failed = with_events(History(), [{"event": "failover", "ms": {"owned": 7}}], EventsRead())
    fill(page, config, look(), strange, failed)

    class Filled(Collector):
        def collect(self) -> Iterator[Metric]:
            return page.families()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Filled())
    theirs, ours = (
        [(family.name, family.type, family.documentation, family.samples)
         for family in text_string_to_metric_families(found)]
        for found in (generate_latest(registry).decode(), text(Filled()))
    )  # fmt: skip
    assert ours == theirs


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_an_answer_is_compressed_if_that_is_asked_for(encoding: str | None) -> None:
    server, thread = serve(Fixed(), "127.0.0.1", 0)
    try:
        asked = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/metrics")
        if encoding:
            asked.add_header("Accept-Encoding", encoding)
        with urllib.request.urlopen(asked) as answer:
            body = answer.read()
            assert answer.headers["Content-Encoding"] == encoding
        assert b"ovs_hotswap_broker_up" in (gzip.decompress(body) if encoding else body)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(urllib.request.Request(asked.full_url, method="POST"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_many_scrapes_at_once_do_not_disturb_each_other(config: Config) -> None:
    found = collector(config, *(look() for _ in range(20)))
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(text(found))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert all("ovs_hotswap_active" in answer for answer in answers)
