"""Metrics of real switches under traffic: what they say of dropped packets, and, with ``OVS_HOTSWAP_METRICS`` (`make
bench-metrics`), what a real Prometheus sees of an upgrade and a failover."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.bed import Bed
from bench.guests import Fleet
from bench.guests.fleet import Stats
from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.counters.reading import CounterReader
from ovs_hotswap.metrics.collector import HostCollector
from ovs_hotswap.metrics.tally import VM_REASONS
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.lab_bed import SHORT_SOAK
from tests.support.prometheus import ALERTS, Prometheus, at_once, free_port, prometheus, served
from tests.support.waiting import eventually
from tests.unit.test_metrics import Samples, samples, value

VMS = 4  # the first sends to the third and the second to the fourth, and back
RATE = 2000.0
SETTLED_S = 20.0  # the switch writes its statistics each five seconds


class ShortBed(Bed):
    def _config_text(self) -> str:
        return super()._config_text() + SHORT_SOAK


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    made = ShortBed(Path(tempfile.mkdtemp(prefix="ovsh-me-")), VMS, system)
    try:
        made.up()
        made.start()
        yield made
    finally:
        made.down()


def scrape(collector: HostCollector) -> Samples:
    return samples(collector.collect())


def collector(bed: Bed) -> HostCollector:
    """It looks at the host at each scrape, however short the time since the last one."""
    clock = iter(range(0, 1_000_000, 60))
    return HostCollector(bed.config, System(), host="hv1", clock=lambda: next(clock))


def dropped(found: Samples, vm: str) -> dict[Reason, int]:
    return {reason: int(value(found, "vm_dropped_packets_total", vm=vm, reason=reason) or 0) for reason in VM_REASONS}


def vsctl(bed: Bed, arguments: str) -> None:
    database = bed.host.instances[Side.A].paths.db_socket
    bed.host.system.run(["ovs-vsctl", "--timeout=10", f"--db=unix:{database}", *arguments.split()])


def lost_to(stats: Stats, before: Stats, target: int, targets: tuple[int, ...]) -> int:
    """The frames for a VM that were sent and not received since ``before``."""

    def lost(found: Stats) -> int:
        return sum(each.lost for each in found.streams if each.source < VMS and targets[each.source] == target)

    return lost(stats) - lost(before)


def told(metrics: HostCollector, names: Sequence[str], targets: Sequence[int], first: Samples) -> list[int]:
    """What the metrics say of the frames for each VM since ``first``: its own drops, and what was policed of who sends
    to it."""
    now = scrape(metrics)
    grown = [{reason: dropped(now, name)[reason] - dropped(first, name)[reason] for reason in VM_REASONS}
             for name in names]  # fmt: skip
    policed = {targets[number]: each.pop(Reason.POLICING) for number, each in enumerate(grown)}
    return [sum(each.values()) + policed.get(number, 0) for number, each in enumerate(grown)]


def test_every_frame_that_is_lost_at_a_bottleneck_is_counted_for_its_vm_and_reason(bed: Bed) -> None:
    """The guests count for themselves what they have sent and received. The MTU is one with which the port needs no
    other packet pool."""
    names, metrics = [guest.name for guest in bed.layout.guests], collector(bed)
    reader = CounterReader(bed.host.instances[Side.A].paths, bed.host.system, bed.config.bridge)
    with Fleet(bed.fleet_spec(frame=1200)) as fleet:
        fleet.wait_served(30)
        fleet.start(RATE)
        fleet.wait_flowing(30)
        before, targets = fleet.stop(), fleet.spec.targets
        vsctl(bed, f"set interface {names[0]} ingress_policing_rate=3000 ingress_policing_burst=300")
        limit = "type=egress-policer other-config:cir=400000 other-config:cbs=40000"
        vsctl(bed, f"set port {names[0]} qos=@qos -- --id=@qos create qos {limit}")
        vsctl(bed, f"set interface {names[3]} mtu_request=1000")
        time.sleep(6)  # a port that is given another MTU counts from 0 again, which a look must see
        scrape(metrics)
        first = scrape(metrics)
        fleet.start(RATE)
        time.sleep(2)
        stats = fleet.stop()
        missing = [lost_to(stats, before, number, targets) for number in range(VMS)]
        assert all(missing[number] > 100 for number in (0, 2, 3)), missing
        eventually(lambda: told(metrics, names, targets, first) == missing,
                   lambda: f"told {told(metrics, names, targets, first)}, missing {missing}",
                   SETTLED_S, poll_s=0.5)  # fmt: skip
    eventually(lambda: "rx_packets" not in reader.ports([names[0]])[names[0]].statistics, "no guest", SETTLED_S)
    assert told(metrics, names, targets, first) == missing, "without guests, ports do not tell all counters"
    now = scrape(metrics)
    named = {(name, reason): count for name in names for reason, count in dropped(now, name).items() if count}
    assert {(names[0], Reason.POLICING), (names[0], Reason.QOS), (names[3], Reason.MTU)} <= set(named), named
    for name in names:
        vsctl(bed, f"clear port {name} qos -- set interface {name} ingress_policing_rate=0 ingress_policing_burst=0 "
                   f"mtu_request={bed.layout.options.mtu}")  # fmt: skip


def test_what_finds_no_room_in_a_guests_ring_or_is_not_for_it_is_counted(bed: Bed) -> None:
    """The guest looks at its rings five times a second, so most of a burst finds the ring full. All that it has taken
    of the burst are frames of a foreign sender."""
    frames, spoofed, unknown = 3000, 40, 30
    guest, metrics = bed.layout.guests[1], collector(bed)
    vm = bed.host.port_of(guest.name)
    assert vm is not None
    frame = bytes.fromhex(guest.mac.replace(":", "") + "525400000099" + "88b5") + bytes(50)
    own = bytes.fromhex("525400000077" + guest.mac.replace(":", "") + "88b5") + bytes(50)
    bridge = bed.host.openflow(Side.A)
    with Fleet(bed.fleet_spec(pause_us=200_000)) as fleet:
        fleet.wait_served(30)
        foreign = fleet.stats().foreign
        time.sleep(6)
        first = scrape(metrics)
        bridge.packet_outs([(frame, f"output:{vm.ofport}")] * frames)
        from_vm = f"load:{vm.ofport}->NXM_OF_IN_PORT[],resubmit(,0)"
        bridge.packet_outs([(frame, from_vm)] * spoofed + [(own, from_vm)] * unknown)

        vni = str(bed.host.intent.vms[0].vni)

        def counts() -> dict[str, int]:
            now = scrape(metrics)
            nowhere = [value(found, "dropped_packets_total", reason="unknown_mac", port="", vni=vni) or 0
                       for found in (first, now)]  # fmt: skip
            grown: dict[str, int] = {reason: dropped(now, guest.name)[reason] - dropped(first, guest.name)[reason]
                     for reason in (Reason.RING_FULL, Reason.SPOOFED)}  # fmt: skip
            return {**grown, "unknown": int(nowhere[1] - nowhere[0]), "taken": fleet.stats().foreign - foreign}

        def as_sent() -> bool:
            found = counts()
            full = found[Reason.RING_FULL]
            wrong = found[Reason.SPOOFED], found["unknown"]
            return full + found["taken"] == frames and full > 1000 and wrong == (spoofed, unknown)

        eventually(as_sent, lambda: str(counts()), SETTLED_S, poll_s=0.5)


def fired(seen: Prometheus) -> set[str]:
    """The alerts that have fired at any time."""
    found = seen.query('present_over_time(ALERTS{alertstate="firing"}[15m])')
    return {metric["alertname"] for metric, _ in found}


@pytest.mark.skipif("OVS_HOTSWAP_METRICS" not in os.environ, reason="`make bench-metrics` runs it")
def test_prometheus_sees_no_counter_go_backwards_over_an_upgrade_and_a_failover(bed: Bed, tmp_path: Path) -> None:
    """Its alerts fire while there is something to tell, and not afterwards. For the test they do not wait, and forget a
    failover after 8 s instead of 15 min."""
    host, metrics = bed.host, HostCollector(bed.config, System(), host="hv1")
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(Fleet(bed.fleet_spec()))
        fleet.wait_served(30)
        fleet.start(200)
        fleet.wait_flowing(30)
        port = stack.enter_context(served(metrics))
        rules = at_once(ALERTS.read_text()).replace("[15m]", "[8s]")
        seen = stack.enter_context(prometheus(tmp_path, f"127.0.0.1:{port}", free_port(), rules=rules))

        def sees(expression: str, expected: float) -> None:
            eventually(
                lambda: seen.value(expression) == expected,
                lambda: f"{expression}: {seen.query(expression)}",
                30,
                poll_s=0.3,
            )

        def tells(alert: str, *, fires: bool) -> None:
            eventually(lambda: (alert in seen.firing()) is fires, lambda: f"{alert}: {seen.firing()}", 60, poll_s=0.3)

        stack.enter_context(bed.watchdog())
        bed.wait_protected()
        sees("ovs_hotswap_standby_ready", 1)
        tells("HotswapNoStandby", fires=False)
        old = host.active()
        sees(f'count(ovs_hotswap_vm_owner{{side="{old}",certainty="owns"}})', VMS)

        Upgrader(host).upgrade("host", lambda _event: None, force=True)
        sees(f'count(ovs_hotswap_vm_owner{{side="{old.other}",certainty="owns"}})', VMS)
        sees('ovs_hotswap_upgrades_total{outcome="committed"}', 1)
        sees("ovs_hotswap_handover_seconds_count", VMS)
        bed.wait_protected()
        tells("HotswapNoStandby", fires=False)
        tells("HotswapUpgradeUnfinished", fires=False)
        assert "HotswapUpgradeUnfinished" in fired(seen), "it did while the upgrade ran"

        pid = host.instances[old.other].pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        tells("HotswapFailover", fires=True)
        sees("sum(ovs_hotswap_failovers_total)", 1)
        tells("HotswapNoStandby", fires=True)
        bed.wait_protected()
        tells("HotswapNoStandby", fires=False)
        sees(f'count(ovs_hotswap_vm_owner{{side="{old}",certainty="owns"}})', VMS)
        tells("HotswapFailover", fires=False)
        fleet.stop()

        for name in ("vm_dropped_packets_total", "vm_moves_total", "flow_packets_total", "dropped_packets_total"):
            assert seen.query(f"resets(ovs_hotswap_{name}[15m]) > 0") == [], "a counter went backwards"
        assert seen.value("count(ovs_hotswap_vm_moves_total == 1)") == VMS
        assert seen.value("count(ovs_hotswap_vm_dropped_packets_total)") == VMS * len(VM_REASONS)
        assert "HotswapBrokerDown" not in fired(seen)
        assert seen.query("max_over_time(ovs_hotswap_scrape_duration_seconds[15m]) > 9") == []
