"""What is exported of one look, as metric families of prometheus-client. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ovs_hotswap import __version__
from ovs_hotswap.backends import VmStatus
from ovs_hotswap.config import NO_STANDBY, Config
from ovs_hotswap.metrics.catalogue import METRICS, Kind
from ovs_hotswap.metrics.histogram import Histogram
from ovs_hotswap.metrics.history import History
from ovs_hotswap.metrics.look import Look, every_part
from ovs_hotswap.metrics.tally import Tally, drop_of, vm_drops
from ovs_hotswap.model import Side
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.watchdog import status_file

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily
_RESULTS = ("ok", "warning", "error", "unknown")


class Page:
    """The families that are being filled. Each sample has the label ``host``."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._families: dict[str, Family] = {}

    def add(self, name: str, value: float, *labels: object) -> None:
        """Add a sample of a gauge or counter, with the values of its labels in the order of the catalogue."""
        family = self._family(name)
        assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
        family.add_metric([self._host, *map(str, labels)], value)

    def add_histogram(self, name: str, value: Histogram) -> None:
        family = self._family(name)
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric([self._host], list(value.buckets()), value.total)

    def _family(self, name: str) -> Family:
        found = self._families.get(name)
        if found is None:
            metric = METRICS[name]
            kinds = {Kind.GAUGE: GaugeMetricFamily, Kind.COUNTER: CounterMetricFamily,
                     Kind.HISTOGRAM: HistogramMetricFamily}  # fmt: skip
            found = kinds[metric.kind](metric.full_name, metric.help, labels=("host", *metric.labels))
            self._families[name] = found
        return found

    def families(self) -> Iterator[Metric]:
        """Yield the families that have a sample, in the order of the catalogue."""
        yield from (self._families[name] for name in METRICS if name in self._families)


def fill(page: Page, config: Config, look: Look, tally: Tally, history: History) -> None:
    """Add everything that is known."""
    mode = str(look.watch["mode"])
    page.add("info", 1, __version__, config.program, config.backend, mode)
    _instances(page, look)
    _broker(page, look)
    differing = (*(look.broker.differing if look.broker is not None else ()), *look.watch["differing"])
    page.add("configuration_differences", len({change.key for change in differing}))
    if mode != "off":
        _watchdog(page, look, kept=mode not in NO_STANDBY)
    _upgrades(page, look, history)
    _vms(page, look, protected=mode not in NO_STANDBY)
    _packets(page, look, tally)
    unknown = look.unknown
    for part, side in every_part(config, lambda side: look.counters[side].process is not None):
        page.add("unknown", (part, side) in unknown, part, side)


def _instances(page: Page, look: Look) -> None:
    for side in Side:
        if ("active", "") not in look.unknown:
            page.add("active", look.active is side, side)
        if look.uplink is not None:
            page.add("uplink_steered", look.uplink is side, side)
        running = look.counters[side].process is not None
        page.add("instance_up", running, side)
        record = look.records.get(side)
        if running and record is not None:
            page.add("instance_start_time_seconds", record.started, side)
            page.add("instance_info", 1, side, record.release, record.ovs_version, record.dpdk_version)
    for name, seen in (look.watch["uplinks"] or {}).items():
        for result in _RESULTS:
            page.add("uplink_proof", seen["severity"] == result, name, result)


def _broker(page: Page, look: Look) -> None:
    broker = look.broker
    if broker is None:
        if ("broker", "") in look.unknown:
            page.add("broker_up", 0)
        return
    page.add("broker_up", 1)
    page.add("broker_start_time_seconds", round(look.time - broker.uptime_s, 1))
    page.add("broker_supervised", broker.supervised)
    page.add("broker_unsaved_vms", broker.unsaved)
    page.add("broker_leaving_vms", len(broker.leaving))


def _watchdog(page: Page, look: Look, *, kept: bool) -> None:
    watch = look.watch
    page.add("watchdog_up", watch["running"])
    if kept:
        page.add("standby_ready", watch["ready"])
    if not watch["running"]:
        return
    page.add("watchdog_healthy", watch["health"] in (None, "healthy"))
    page.add("watchdog_gave_up", bool(watch["gave_up"]))
    for kind in status_file.PROBLEMS:
        page.add("watchdog_problem", bool(watch[kind]), kind)
    standby = look.records.get(Side(watch["standby"])) if watch["standby"] in set(Side) else None
    if standby is not None:
        page.add("standby_start_time_seconds", standby.started)


def _upgrades(page: Page, look: Look, history: History) -> None:
    page.add("journal_readable", look.readable)
    if look.readable:
        page.add("upgrade_unfinished", look.unfinished is not None)
        page.add("upgrade_failed", look.unfinished is not None and look.unfinished.failed)
    if look.unfinished is not None:
        page.add("upgrade_start_time_seconds", look.unfinished.started)
    for outcome, count in history.upgrades.items():
        page.add("upgrades_total", count, outcome)
    for (step, reason), count in history.rollbacks.items():
        page.add("rollbacks_total", count, step, reason)
    for signal, count in history.failovers.items():
        page.add("failovers_total", count, signal)
    for event, count in history.events.items():
        page.add("watchdog_events_total", count, event)
    page.add_histogram("handover_seconds", history.handovers)
    page.add_histogram("failover_seconds", history.failover_gaps)
    page.add_histogram("uplink_gap_seconds", history.uplink_gaps)


def _vms(page: Page, look: Look, *, protected: bool) -> None:
    for name, port in (look.ports or {}).items():
        page.add("vm_info", 1, name, port.name, port.bridge, port.ofport, look.vnis.get(name, ""))
    for vm in look.vms or ():
        page.add("vm_owner", 1, vm.name, vm.owner or "", vm.certainty)
        page.add("vm_connected", vm.has_guest, vm.name)
        page.add("vm_quarantined", bool(vm.quarantine), vm.name)
        if protected and look.active is not None:
            page.add("vm_protected", not vm.unprotected(look.active.other), vm.name)


def _packets(page: Page, look: Look, tally: Tally) -> None:
    for vm, count in tally.moves.items():
        page.add("vm_moves_total", count, vm)
    for vm, reason, packets in vm_drops(tally.drops, tally.vms):
        page.add("vm_dropped_packets_total", packets, vm, reason)
    vms = set(tally.vms)
    for key, packets in tally.drops.items():
        reason, port, vni = drop_of(key)
        if port not in vms:
            page.add("dropped_packets_total", packets, reason, port, vni or "")
    for kind, packets in tally.flows.items():
        page.add("flow_packets_total", packets, kind)
    for side, counters in look.counters.items():
        for pool in _fullest(counters.pools or ()):
            page.add("packet_pool_buffers", pool.buffers, side, pool.node, pool.buffer_bytes)
            page.add("packet_pool_buffers_in_use", pool.in_use, side, pool.node, pool.buffer_bytes)
        for pmd in counters.pmds or ():
            if pmd.core is not None:
                page.add("pmd_cycles_total", pmd.busy_cycles, side, pmd.numa, pmd.core, "busy")
                page.add("pmd_cycles_total", pmd.idle_cycles, side, pmd.numa, pmd.core, "idle")
        if counters.conntrack is not None:
            page.add("conntrack_connections", counters.conntrack.connections, side)
            page.add("conntrack_connections_limit", counters.conntrack.most, side)


def _fullest(pools: Iterable[PacketPool]) -> Iterable[PacketPool]:
    """Return one pool for each node and size of buffers: with ``other_config:per-port-memory`` every port has its own
    (ovs-vswitchd.conf.db(5)), and the one that is nearest to its end counts."""
    found: dict[tuple[int, int], PacketPool] = {}
    for pool in pools:
        place = pool.node, pool.buffer_bytes
        if place not in found or pool.in_use * found[place].buffers > found[place].in_use * pool.buffers:
            found[place] = pool
    return found.values()


def serving_of(vms: Mapping[str, VmStatus], active: Side | None) -> dict[str, Side]:
    """Return the side that serves each VM: its owner, or the active side while it has none, to which what comes for the
    VM goes then. A VM of which neither is known is missing."""
    found = {name: vm.owner or active for name, vm in vms.items()}
    return {name: side for name, side in found.items() if side is not None}
