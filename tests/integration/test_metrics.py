"""Metrics with the real promtool, Prometheus and switches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.backends import OwnerCertainty, Switches
from ovs_hotswap.config import Config
from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.counters.values import SwitchCounters
from ovs_hotswap.metrics.collector import HostCollector
from ovs_hotswap.metrics.exposition import text
from ovs_hotswap.metrics.history import History, with_events
from ovs_hotswap.metrics.look import Look, Unfinished
from ovs_hotswap.metrics.tally import Tally, drop_key
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.support.fake_backends import vm_status
from tests.support.prometheus import ALERTS, at_once, free_port, prometheus, promtool, served, try_rules
from tests.support.waiting import eventually
from tests.unit.test_metrics import CORES, COUNTERS, PARKED, Samples, collector, exported, look, watch
from tests.unit.test_monitoring_files import ALERTS as NAMES
from tests.unit.test_monitoring_files import expressions
from tests.unit.watch_bed import config as config

MINUTES = 60  # each of the three times in a test of a rule: well, ill, well again
LONG = {"HotswapConfigurationDiffers": 26 * 60}  # minutes of being ill, for a rule that waits longer
HEALTHY = look(
    vms=(vm_status("vm1", switches=Switches(PARKED, PARKED)), vm_status("vm2", switches=Switches(PARKED, PARKED))),
    watch=watch(uplinks={side: {"severity": "ok", "text": "well"} for side in "ab"}),
)  # fmt: skip


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(NAMES)} rules found" in promtool("check", "rules", str(ALERTS))


def test_promtool_has_nothing_to_say_of_names_types_and_texts(config: Config) -> None:
    assert promtool("check", "metrics", given=text(collector(config, HEALTHY))) == ""


@dataclasses.dataclass(frozen=True)
class Ill:
    """How a rule's host is ill. ``changes``: of the look. ``each_minute``: how much sums grow in each minute of it.
    ``history``: what happens at its beginning."""

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    each_minute: dict[str, int] = dataclasses.field(default_factory=dict)
    happens: Callable[[History], History] = lambda history: history


def vm2(**changes: Any) -> dict[str, Any]:
    return {"vms": (HEALTHY.vms[0], dataclasses.replace(HEALTHY.vms[1], **changes))}  # type: ignore[index]


def broker(**changes: Any) -> dict[str, Any]:
    assert HEALTHY.broker is not None
    return {"broker": dataclasses.replace(HEALTHY.broker, **changes)}


def seen(**changes: Any) -> dict[str, Any]:
    return {"watch": {**HEALTHY.watch, **changes}}


FULL_POOL = dataclasses.replace(COUNTERS.pools[0], in_use=16000)  # type: ignore[index]
FULL_TABLE = dataclasses.replace(COUNTERS.conntrack, connections=2999)  # type: ignore[type-var]
ILL: dict[str, Ill] = {
    "HotswapVmWithoutNetwork": Ill(vm2(owner=None, certainty=OwnerCertainty.NOBODY)),
    "HotswapVmQuarantined": Ill(vm2(quarantine="by order")),
    "HotswapNoActiveInstance": Ill({"active": None}),
    "HotswapActiveInstanceDown": Ill({"counters": {Side.A: SwitchCounters(None), Side.B: COUNTERS}}),
    "HotswapUplinkMisdirected": Ill({"uplink": Side.B}),
    "HotswapUplinkSilent": Ill(seen(uplinks={"b": {"severity": "error", "text": "deaf"}})),
    "HotswapVmOnStandby": Ill(vm2(owner=Side.B)),
    "HotswapFailover": Ill(happens=lambda history: with_events(
        history, [{"event": "failover", "signal": "process"}], history.read)),
    "HotswapWatchdogDown": Ill(seen(running=False, ready=False)),
    "HotswapActiveUnhealthy": Ill(seen(health="suspect")),
    "HotswapNoStandby": Ill(seen(ready=False)),
    "HotswapVmUnprotected": Ill(vm2(switches=vm_status().switches)),
    "HotswapFailoverImpossible": Ill(seen(failover_problem="nowhere to go")),
    "HotswapGaveUp": Ill(seen(gave_up=True)),
    "HotswapWatchdogProblem": Ill(seen(problem="no memory")),
    "HotswapBrokerDown": Ill({"broker": None, "unknown": {("broker", ""): "no answer"}}),
    "HotswapBrokerUnsupervised": Ill(broker(supervised=False)),
    "HotswapBrokerRestarted": Ill(broker(uptime_s=1.0)),
    "HotswapBrokerUnsaved": Ill(broker(unsaved=1)),
    "HotswapVmLeaving": Ill(broker(leaving=("vm9",))),
    "HotswapUpgradeFailed": Ill({"unfinished": Unfinished(900.0, failed=True)}),
    "HotswapUpgradeUnfinished": Ill({"unfinished": Unfinished(900.0, failed=False)}),
    "HotswapUpgradeRolledBack": Ill(happens=lambda history: dataclasses.replace(
        history, upgrades={**history.upgrades, "rolled_back": 1})),
    "HotswapJournalDamaged": Ill({"readable": False, "unknown": {("journal", ""): "damaged"}}),
    "HotswapConfigurationDiffers": Ill(seen(differing=[CORES])),
    "HotswapVmDropsPackets": Ill(each_minute={drop_key(Reason.RING_FULL, "vm2"): 6000}),
    "HotswapVmSpoofs": Ill(each_minute={drop_key(Reason.SPOOFED, "vm2", 5): 600}),
    "HotswapHostDropsPackets": Ill(each_minute={drop_key(Reason.NIC_MISSED, "uplink"): 6000}),
    "HotswapPacketPoolLow": Ill({"counters": {
        Side.A: dataclasses.replace(COUNTERS, pools=(FULL_POOL,)), Side.B: COUNTERS}}),
    "HotswapConntrackNearlyFull": Ill({"counters": {
        Side.A: dataclasses.replace(COUNTERS, conntrack=FULL_TABLE), Side.B: COUNTERS}}),
    "HotswapPmdBusy": Ill(),  # below
    "HotswapMetricsMissing": Ill(),  # below
    "HotswapPartUnknown": Ill({"unknown": {("coverage", "a"): "it is silent"}}),
}  # fmt: skip


def samples(config: Config, seen: Look, sums: dict[str, int], history: History) -> Samples:
    base = {drop_key(Reason.NIC_MISSED, "uplink"): 0}
    tally = Tally(("vm1", "vm2"), {**base, **sums})
    return exported(config, seen, tally, history)


def series(key: Any, values: str) -> dict[str, str]:
    name, labels = key
    text = ",".join(f"{label}={json.dumps(value)}" for label, value in (("host", "hv1"), *labels))
    prefix = "" if name == "up" else "ovs_hotswap_"
    return {"series": f"{prefix}{name}{{{text}}}", "values": values}


def held(value: float | None, minutes: int) -> str:
    return f"_x{minutes - 1}" if value is None else f"{value:g}+0x{minutes - 1}"


def case(config: Config, alert: str) -> dict[str, Any]:
    """A host that is well, then ill, then well again. Sums stay where they are afterwards, as counters do."""
    ill, minutes = ILL[alert], LONG.get(alert, MINUTES)
    before = samples(config, HEALTHY, dict.fromkeys(ill.each_minute, 0), History())
    sums = {key: step * minutes for key, step in ill.each_minute.items()}
    bad = dataclasses.replace(HEALTHY, **ill.changes)
    during, after = (samples(config, each, sums, ill.happens(History())) for each in (bad, HEALTHY))
    growing = {key for key in after if key in before and key[0].endswith("_total") and after[key] != before[key]}
    found = []
    for key in {**before, **during, **after}:
        middle = held(during.get(key), minutes)
        if key in growing and ill.each_minute:
            step = (after[key] - before[key]) / minutes
            middle = f"{before[key]:g}+{step:g}x{minutes - 1}"
        found.append(series(key, f"{held(before.get(key), MINUTES)} {middle} {held(after.get(key), MINUTES)}"))
    found += special(alert, minutes)
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) by (alertname)'
    times = {"well": MINUTES - 1, "ill": MINUTES + minutes - 20, "well again": MINUTES + minutes + MINUTES - 1}
    if ill.happens(History()) != History() or alert == "HotswapBrokerRestarted":
        times["ill"] = MINUTES + 2  # it fires for some time after it happened
    if alert == "HotswapUpgradeRolledBack":
        times["well again"] += MINUTES
        found = [{**each, "values": each["values"] + " " + each["values"].split()[-1]} for each in found]
    return {
        "interval": "1m", "name": alert, "input_series": found,
        "promql_expr_test": [
            {"expr": firing, "eval_time": f"{minute}m",
             "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if name == "ill" else []}
            for name, minute in times.items()
        ] + [{"expr": 'count(ALERTS{alertstate="firing"})', "eval_time": f"{MINUTES - 1}m", "exp_samples": []}],
    }  # fmt: skip


def special(alert: str, minutes: int) -> Iterable[dict[str, str]]:
    """Series that no look makes."""
    if alert == "HotswapMetricsMissing":
        yield series(("up", (("job", "ovs-hotswap"), ("instance", "hv1:9865"))),
                     f"1+0x{MINUTES - 1} 0+0x{minutes - 1} 1+0x{MINUTES - 1}")  # fmt: skip
    if alert == "HotswapPmdBusy":
        for state, well, ill in (("busy", 10, 99), ("idle", 90, 1)):
            labels = (("side", "a"), ("numa", "1"), ("core", "9"), ("state", state))
            turn, end = MINUTES * well, MINUTES * well + minutes * ill
            yield series(("pmd_cycles_total", labels),
                         f"0+{well}x{MINUTES - 1} {turn}+{ill}x{minutes - 1} {end}+{well}x{MINUTES - 1}")  # fmt: skip


def test_there_is_a_way_to_make_every_alert_fire() -> None:
    assert list(ILL) == NAMES


@pytest.mark.parametrize("part", range(3))
def test_each_alert_fires_when_its_host_is_ill_and_only_then(config: Config, tmp_path: Path, part: int) -> None:
    """On a host that is well, nothing fires at all."""
    try_rules(tmp_path, [case(config, alert) for alert in NAMES[part::3]])


def test_metrics_that_node_exporter_reads_from_a_file_are_missed_when_it_is_not_written(tmp_path: Path) -> None:
    """The file was written twice, a minute apart."""
    file = "/var/lib/prometheus/node-exporter/ovs-hotswap.prom"
    mtime = f'node_textfile_mtime_seconds{{file="{file}",instance="hv1:9100"}}'
    firing = 'count(ALERTS{alertname="HotswapMetricsMissing",alertstate="firing"}) by (file)'
    expected = [{"labels": json.dumps({"file": file}).replace(": ", "=").replace('"file"', "file"), "value": 1}]
    try_rules(tmp_path, [{
        "interval": "1m", "name": "a file", "input_series": [{"series": mtime, "values": "0 60x30"}],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{minute}m", "exp_samples": found}
                             for minute, found in ((5, []), (10, expected))],
    }])  # fmt: skip


def test_prometheus_understands_every_panel_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"$host": "hv1", "$vm": ".*", "$__rate_interval": "1m", "$__range": "3h"}
    rules = []
    for number, expression in enumerate(expressions()):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        rules.append({"record": f"panel_{number}", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_a_real_prometheus_scrapes_a_host_on_which_nothing_runs(config: Config, tmp_path: Path) -> None:
    """What is missing fires, what is unknown fires, and nothing is said of VMs that are not known."""
    found = HostCollector(config, System(), host="hv1")
    with served(found) as port:
        rules = at_once(ALERTS.read_text())
        with prometheus(tmp_path, f"127.0.0.1:{port}", free_port(), rules=rules) as seen:
            missing = {"BrokerDown", "NoActiveInstance", "NoStandby", "PartUnknown", "WatchdogDown"}
            eventually(lambda: seen.firing() == {f"Hotswap{name}" for name in missing}, lambda: str(seen.firing()), 60,
                       poll_s=0.3)  # fmt: skip
            assert seen.value('up{job="ovs-hotswap"}') == 1
            assert seen.value("ovs_hotswap_scrape_duration_seconds") is not None
            log = (tmp_path / "prometheus.log").read_text()
            assert log == "", "it has nothing to say against rules or metrics"
