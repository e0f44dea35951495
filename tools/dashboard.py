"""``python -m tools.dashboard``: writes ``docs/monitoring/dashboard.json``, the dashboard for Grafana.

Its panels are this list. Grafana's own export of a dashboard repeats every default, which hides a change of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "docs/monitoring/dashboard.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH = 24  # columns of a row (Grafana, "Dashboard JSON model", gridPos)
_GREEN_RED, _RED_GREEN = (
    [{"color": first, "value": None}, {"color": second, "value": 1}]
    for first, second in (("green", "red"), ("red", "green"))
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. ``queries``: expression and legend. ``kind``: of Grafana. ``unit``: one of Grafana's. ``steps``: colours
    by value. ``stacked``: one series is drawn above the other."""

    title: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 12
    height: int = 8
    text: str = ""
    steps: Any = None
    stacked: bool = False
    names: tuple[tuple[int, str], ...] = ()


_H = 'host=~"$host"'
_YES_NO = ((0, "no"), (1, "yes"))
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Now", (
        Panel("Hosts", ((f"count(ovs_hotswap_info{{{_H}}})", ""),), "stat", width=3, height=4),
        Panel("No network: VMs", ((
            f"count((ovs_hotswap_vm_connected{{{_H}}} == 1) unless on (host, vm)"
            f' (ovs_hotswap_vm_owner{{{_H},certainty="owns"}} == 1)) or vector(0)', ""),),
            "stat", width=3, height=4, steps=_GREEN_RED),
        Panel("Not protected: VMs", ((f"count(ovs_hotswap_vm_protected{{{_H}}} == 0) or vector(0)", ""),),
              "stat", width=3, height=4, steps=_GREEN_RED),
        Panel("No standby: hosts", ((f"count(ovs_hotswap_standby_ready{{{_H}}} == 0) or vector(0)", ""),),
              "stat", width=3, height=4, steps=_GREEN_RED),
        Panel("No broker: hosts", ((f"count(ovs_hotswap_broker_up{{{_H}}} == 0) or vector(0)", ""),),
              "stat", width=3, height=4, steps=_GREEN_RED),
        Panel("Upgrading: hosts",
              ((f"sum(ovs_hotswap_upgrade_unfinished{{{_H}}}) or vector(0)", ""),), "stat", width=3, height=4),
        Panel("Drops of VMs", ((
            f'sum(rate(ovs_hotswap_vm_dropped_packets_total{{{_H},reason!="not_ready"}}[$__rate_interval]))', ""),),
            "stat", "pps", width=3, height=4),
        Panel("Unknown parts", ((f"sum(ovs_hotswap_unknown{{{_H}}})", ""),),
              "stat", width=3, height=4, steps=_GREEN_RED),
    )),
    ("Who serves the VMs", (
        Panel("VMs by owner", ((f"count by (host, side) (ovs_hotswap_vm_owner{{{_H}}} == 1)", "{{host}} {{side}}"),),
              stacked=True,
              text="During an upgrade the VMs pass from one side to the other; in a failover they do at once."),
        Panel("Active side", ((f"ovs_hotswap_active{{{_H}}} == 1", "{{host}} {{side}}"),), "state-timeline",
              names=((1, "active"),)),
        Panel("Standby can take all VMs", ((f"ovs_hotswap_standby_ready{{{_H}}}", "{{host}}"),), "state-timeline",
              width=8, height=6, steps=_RED_GREEN, names=_YES_NO),
        Panel("Age of the standby", ((f"time() - ovs_hotswap_standby_start_time_seconds{{{_H}}}", "{{host}}"),),
              unit="s", width=8, height=6),
        Panel("Broker answers", ((f"ovs_hotswap_broker_up{{{_H}}}", "{{host}}"),), "state-timeline",
              width=8, height=6, steps=_RED_GREEN, names=_YES_NO),
    )),
    ("Packets that are dropped", (
        Panel("By reason, of VMs", ((
            f"sum by (reason) (rate(ovs_hotswap_vm_dropped_packets_total{{{_H},vm=~\"$vm\"}}[$__rate_interval])) > 0",
            "{{reason}}"),), unit="pps", stacked=True),
        Panel("The ten VMs with the most", ((
            f'topk(10, sum by (host, vm) (rate(ovs_hotswap_vm_dropped_packets_total{{{_H},vm=~"$vm",'
            'reason!="not_ready"}[$__rate_interval]))) > 0', "{{host}} {{vm}}"),), unit="pps"),
        Panel("By reason, of hosts", ((
            f'sum by (reason, port) (rate(ovs_hotswap_dropped_packets_total{{{_H},reason!="pipeline"}}'
            "[$__rate_interval])) > 0", "{{reason}} {{port}}"),), unit="pps", stacked=True),
        Panel("Packets by kind of flow", ((
            f"sum by (kind) (rate(ovs_hotswap_flow_packets_total{{{_H}}}[$__rate_interval]))", "{{kind}}"),),
            unit="pps"),
    )),
    ("Upgrades and failovers", (
        Panel("Handover of a VM", tuple(
            (f"histogram_quantile({q}, sum by (le) (increase(ovs_hotswap_handover_seconds_bucket{{{_H}}}[$__range])))",
             name) for q, name in ((0.5, "half of them"), (0.99, "99 of 100"))),
            unit="s", width=8, text="The time in which a VM's rings have no owner, over the time that is shown."),
        Panel("Duration of a failover", ((
            f"histogram_quantile(0.99, sum by (le) (increase(ovs_hotswap_failover_seconds_bucket{{{_H}}}[$__range])))",
            "99 of 100"),), unit="s", width=8,
            text="From the moment at which the failure was seen until the standby served the VMs."),
        Panel("Upgrades since the boot", ((
            f"sum by (outcome) (ovs_hotswap_upgrades_total{{{_H}}})", "{{outcome}}"),), width=8),
        Panel("Rollbacks since the boot, by step and reason", ((
            f"sum by (step, reason) (ovs_hotswap_rollbacks_total{{{_H}}})", "{{step}} {{reason}}"),),
            "bargauge", height=5),
        Panel("Failovers since the boot", ((
            f"sum by (host, signal) (ovs_hotswap_failovers_total{{{_H}}}) > 0", "{{host}} {{signal}}"),),
            "bargauge", height=5),
    )),
    ("Load", (
        Panel("PMD threads: time with packets", ((
            f'sum by (host, side, core) (rate(ovs_hotswap_pmd_cycles_total{{{_H},state="busy"}}[$__rate_interval]))'
            f" / sum by (host, side, core) (rate(ovs_hotswap_pmd_cycles_total{{{_H}}}[$__rate_interval]))",
            "{{host}} {{side}} core {{core}}"),), unit="percentunit"),
        Panel("Packet pool in use", ((
            f"ovs_hotswap_packet_pool_buffers_in_use{{{_H}}} / ovs_hotswap_packet_pool_buffers{{{_H}}}",
            "{{host}} {{side}} node {{node}}"),), unit="percentunit"),
        Panel("Connections tracked", ((
            f"ovs_hotswap_conntrack_connections{{{_H}}}", "{{host}} {{side}}"),), width=12, height=6,
            text="Only hosts that others program track connections."),
        Panel("Duration of a scrape", ((f"ovs_hotswap_scrape_duration_seconds{{{_H}}}", "{{host}}"),),
              unit="s", width=12, height=6),
    )),
)  # fmt: skip


def _target(number: int, query: str, legend: str, *, instant: bool) -> dict[str, Any]:
    return {"datasource": _SOURCE, "expr": query, "legendFormat": legend or "__auto", "refId": chr(ord("A") + number),
            "instant": instant, "range": not instant}  # fmt: skip


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.steps:
        defaults |= {"thresholds": {"mode": "absolute", "steps": panel.steps}, "color": {"mode": "thresholds"}}
    if panel.names:
        options = {str(value): {"text": text, "index": value} for value, text in panel.names}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {"fillOpacity": 15, "showPoints": "never",
                              "stacking": {"mode": "normal" if panel.stacked else "none"}}  # fmt: skip
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.text, "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": [_target(index, *query, instant=panel.kind in {"stat", "bargauge"})
                    for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        if panel.kind == "timeseries" else {},
    }  # fmt: skip


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for title, panels in ROWS:
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}}  # fmt: skip
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield _panel(panel, number, x, y)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {"name": name, "label": label, "type": "query", "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "definition": query, "refresh": 2, "includeAll": True, "multi": True, "allValue": ".*", "sort": 1,
            "current": {"text": "All", "value": "$__all"}}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it (schema version 36: Grafana 9 and later)."""
    return {
        "uid": "ovs-hotswap", "title": "ovs-hotswap", "tags": ["ovs-hotswap"], "schemaVersion": 36, "editable": True,
        "graphTooltip": 1, "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "",
        "templating": {"list": [
            {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            _variable("host", "Host", "label_values(ovs_hotswap_info, host)"),
            _variable("vm", "VM", 'label_values(ovs_hotswap_vm_connected{host=~"$host"}, vm)'),
        ]},
        "annotations": {"list": [
            {"name": name, "enable": True, "datasource": _SOURCE, "iconColor": colour, "titleFormat": name,
             "expr": query}
            for name, colour, query in (
                ("Upgrade", "blue", f"ovs_hotswap_upgrade_unfinished{{{_H}}} == 1"),
                ("Failover", "red", f"increase(ovs_hotswap_failovers_total{{{_H}}}[1m]) > 0"),
            )
        ]},
        "panels": list(_panels()),
    }  # fmt: skip


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    PATH.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
