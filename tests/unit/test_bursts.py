"""What `bursts` finds in frozen looks at counters: each cause, what it differs by, and what is advised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from ovs_hotswap.bursts import advice
from ovs_hotswap.bursts.found import Advice, Cause, Finding, Report
from ovs_hotswap.bursts.judging import NO_CYCLES, NO_METRICS, UPGRADE, report
from ovs_hotswap.bursts.losses import per_queue
from ovs_hotswap.bursts.page import change, headlines, lines
from ovs_hotswap.bursts.values import Interval, Look, Unseen, Window, busiest
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.memory import PacketPool
from tests.unit import bursts_bed as bed
from tests.unit.bursts_bed import MISSED, NOT_SENT, NOT_TAKEN, STEADY, UPLINK, VM1, queues, window

BUSY_IN_LOSS = {2: {3: 0.95, 7: 0.99}}
SLEEP: dict[str, Any] = {"other_config": {"pmd-sleep-max": "500"}, "sleeps": {2: 90}}
FOUR = replace(VM1, queues=queues(2, 2, 3, 3))
TO_ONE = {
    "vm1": {"tx_q0_good_packets": 5000, "tx_q1_good_packets": 1, "tx_q2_good_packets": 0, "tx_q3_good_packets": 0}
}
UNEVEN = {"uplink": {"rx_q0_packets": 4900, "rx_q1_packets": 50, "rx_q2_packets": 50}}
RETRIED = {"vm1": {"ovs_tx_retries": 50}}
THREE = replace(UPLINK, queues=queues(2, 3, 3))
LOOKUPS = {2: {"received": 20_000, "megaflow_hits": 15_000, "emc_hits": 5_000}}


class Case(NamedTuple):
    """``seen``: the window. ``cause``: of the first finding. ``name``: of the change that it advises."""

    seen: Window
    cause: Cause
    name: str | None
    severity: Severity = Severity.ERROR


def port(name: str, **changes: Any) -> dict[str, Any]:
    return {name: replace(bed.PORTS[name], **changes)}


CASES: dict[str, Case] = {
    "a NIC misses packets while its thread is idle": Case(window(MISSED), Cause.RX_RING_SHORT, "rx-ring:uplink"),
    "its queues are as long as they can be": Case(
        window(MISSED, ports=port("uplink", options={"n_rxq_desc": "4096"})), Cause.RX_RING_SHORT, "rx-queues:uplink"),
    "there are as many queues as threads, and they are long": Case(
        window(MISSED, ports=port("uplink", options={"n_rxq_desc": "4096"}, queues=queues(2, 3))),
        Cause.RX_RING_SHORT, None),
    "the driver has another ring": Case(
        window(MISSED, ports=port("uplink", driver="net_af_packet")), Cause.RX_RING_SHORT, None),
    "there are no buffers for longer queues": Case(
        window(MISSED, pools=(PacketPool(0, 22000, 20000, 3000),)), Cause.RX_RING_SHORT, None),
    "its thread waits for its core": Case(window(MISSED, waits={2: 0.04}), Cause.PMD_PREEMPTED, None),
    "another thread that does not poll it waits": Case(window(MISSED, waits={3: 0.4}), Cause.RX_RING_SHORT,
                                                       "rx-ring:uplink"),
    "its thread is busy in these moments, another is idle": Case(
        window(MISSED, BUSY_IN_LOSS), Cause.PMD_OVERLOADED, "rx-queues:uplink"),
    "its thread is busy, and no other has time": Case(
        window(MISSED, {2: 0.97, 3: 0.8}), Cause.PMD_OVERLOADED, None),
    "its thread is busy, another idle, and it cannot have more queues": Case(
        window(MISSED, {2: 0.97}, ports=port("uplink", most_queues=1)), Cause.PMD_OVERLOADED, None),
    "its thread learns flows": Case(window(MISSED, threads={2: {"missed": 80}}), Cause.NEW_FLOWS, None),
    "its thread learns few flows": Case(window(MISSED, threads={2: {"missed": 20}}), Cause.RX_RING_SHORT,
                                        "rx-ring:uplink"),
    "its thread sleeps": Case(window(MISSED, **SLEEP), Cause.PMD_SLEEPS, "pmd-sleep"),
    "its thread sleeps, and waits for its core when it wakes up": Case(
        window(MISSED, waits={2: 0.13}, **SLEEP), Cause.PMD_SLEEPS, "pmd-sleep"),
    "its thread sleeps, and waits for its core for long": Case(
        window(MISSED, waits={2: 0.3}, **SLEEP), Cause.PMD_PREEMPTED, None),
    "threads may sleep, and its thread did not": Case(
        window(MISSED, **{**SLEEP, "sleeps": {3: 90}}), Cause.RX_RING_SHORT, "rx-ring:uplink"),
    "its thread slept before that was switched off": Case(
        window(MISSED, other_config={"pmd-sleep-max": "0"}, sleeps={2: 90}), Cause.RX_RING_SHORT, "rx-ring:uplink"),
    "no thread's load is known": Case(
        window(MISSED, {2: 0.0, 3: 0.0}, looks=()), Cause.RX_MISSED, None),
    "a rare loss": Case(
        window({("uplink", "rx_missed_errors"): {3: 3}}), Cause.RX_RING_SHORT, "rx-ring:uplink", Severity.WARNING),
    "a NIC's transmit queue is full": Case(window(NOT_SENT), Cause.TX_RING_SHORT, "tx-ring:uplink"),
    "a NIC's transmit queue is long and full": Case(
        window(NOT_SENT, ports=port("uplink", options={"n_txq_desc": "4096"})), Cause.TX_RING_SHORT,
        "tx-steering:uplink"),
    "a NIC's transmit queues are long, full and shared": Case(
        window(NOT_SENT, ports=port("uplink", options={"n_txq_desc": "4096"}, other_config={"tx-steering": "hash"})),
        Cause.TX_RING_SHORT, None),
    "a vdev's transmit queue is full": Case(
        window(NOT_SENT, ports=port("uplink", driver="net_memif")), Cause.TX_RING_SHORT, None),
    "a guest's ring is short": Case(window(NOT_TAKEN), Cause.GUEST_RING_SHORT, None),
    "a guest's ring is short, and takes more when it is tried again": Case(
        window(NOT_TAKEN, growth=RETRIED), Cause.GUEST_RING_SHORT, "tx-retries:vm1"),
    "a guest's ring is short, and it is tried for as long as can be": Case(
        window(NOT_TAKEN, ports=port("vm1", options={"tx-retries-max": "32"}), growth=RETRIED),
        Cause.GUEST_RING_SHORT, None),
    "a guest is too slow": Case(window({("vm1", "ovs_tx_failure_drops"): STEADY}), Cause.GUEST_SLOW, None),
    "bursts come more often than looks": Case(
        window({("vm1", "ovs_tx_failure_drops"): STEADY}, ports=port("vm1", full=0.2)), Cause.GUEST_RING_SHORT,
        None),
    "a guest is too slow now and then, and its ring is full": Case(
        window(NOT_TAKEN, ports=port("vm1", full=0.5)), Cause.GUEST_SLOW, None),
    "a guest takes nothing": Case(
        window({("vm1", "ovs_tx_failure_drops"): STEADY}, growth={"vm1": {"tx_packets": 0}}),
        Cause.GUEST_TAKES_NOTHING, None),
    "one of a guest's queues is used": Case(
        window(NOT_TAKEN, ports={"vm1": FOUR}, growth=TO_ONE), Cause.GUEST_QUEUES_UNUSED, "tx-steering:vm1"),
    "one of a guest's queues is used, though packets are spread": Case(
        window(NOT_TAKEN, ports={"vm1": replace(FOUR, other_config={"tx-steering": "hash"})}, growth=TO_ONE),
        Cause.GUEST_RING_SHORT, None),
    "a guest with one queue uses it": Case(
        window(NOT_TAKEN, growth={"vm1": {"tx_q0_good_packets": 5000}}), Cause.GUEST_RING_SHORT, None),
    "load is uneven, with several queues on a thread": Case(
        window(busy={2: 0.9}), Cause.LOAD_UNBALANCED, "auto-lb", Severity.WARNING),
    "load is uneven, with one queue on the thread": Case(
        window(busy={2: 0.9}, ports={"vm1": replace(VM1, queues=queues(3))}), Cause.LOAD_UNBALANCED,
        "rx-queues:uplink", Severity.WARNING),
    "load is uneven, and the thread polls a VM alone": Case(
        window(busy={3: 0.9}), Cause.LOAD_UNBALANCED, None, Severity.WARNING),
    "load is uneven, and queues are given to threads in turn": Case(
        window(busy={2: 0.9}, other_config={"pmd-rxq-assign": "roundrobin"}), Cause.LOAD_UNBALANCED, None,
        Severity.WARNING),
    "load is uneven, though it is balanced": Case(
        window(busy={2: 0.9}, other_config={"pmd-auto-lb": "true"}), Cause.LOAD_UNBALANCED, None, Severity.WARNING),
    "load is uneven, and a queue is polled from another node": Case(
        window(busy={2: 0.9, 5: 0.05}, ports={"vm2": replace(bed.VM2, numa=1)}), Cause.LOAD_UNBALANCED, None,
        Severity.WARNING),
    "load is uneven, a queue is polled from a node that alone has threads": Case(
        window(busy={2: 0.9}, ports={"vm2": replace(bed.VM2, numa=1)}), Cause.LOAD_UNBALANCED, "auto-lb",
        Severity.WARNING),
    "load is uneven, and each queue is polled on its node": Case(
        window(busy={2: 0.9}, ports={"vm2": replace(bed.VM2, numa=0)}), Cause.LOAD_UNBALANCED, "auto-lb",
        Severity.WARNING),
    "a NIC's queues are uneven": Case(
        window(busy={2: 0.8, 3: 0.75}, ports={"uplink": THREE}, growth=UNEVEN), Cause.QUEUES_UNBALANCED, None,
        Severity.WARNING),
    "a guest's queues are uneven": Case(
        window(busy={2: 0.8, 3: 0.75}, ports={"vm1": replace(VM1, queues=queues(2, 3, 3))},
               growth={"vm1": {"rx_q0_good_packets": 4900, "rx_q1_good_packets": 9, "rx_q2_good_packets": 9}}),
        Cause.QUEUES_UNBALANCED, None, Severity.WARNING),
    "a guest sends in bursts": Case(
        window(fills={0: 900, 100: 30, 200: 12}, sent_rings=(256, 1024), other_config={"pmd-perf-metrics": "true"}),
        Cause.GUEST_SENDS_BURSTS, None, Severity.WARNING),
    "flows are more than the cache holds": Case(
        window(busy={2: 0.8, 3: 0.75}, threads=LOOKUPS), Cause.FLOW_CACHE, "smc", Severity.WARNING),
    "a part was not read": Case(
        window(unseen=(Unseen("Its packet pools", "no answer"),)), Cause.NOT_SEEN, None, Severity.UNKNOWN),
}  # fmt: skip


def without_cycles(seen: Window) -> Window:
    """Return the same looks, from a switch that does not say how busy its threads are."""
    looks = tuple(
        replace(look, pmds=tuple(replace(pmd, idle_cycles=0, busy_cycles=0) for pmd in look.pmds or ()))
        for look in window(MISSED).looks
    )
    return replace(seen, looks=looks)


@pytest.mark.parametrize("name", CASES)
def test_each_cause_is_found_first_with_what_helps(name: str) -> None:
    case = CASES[name]
    seen = case.seen if case.seen.looks else without_cycles(case.seen)
    found, advised = report(seen, Side.A)
    first = found.findings[0]
    assert (first.cause, first.severity, first.advice) == (case.cause, case.severity, case.name)
    assert case.name is None or advised[0].name == case.name
    assert first.text.endswith(".")
    assert all(first.evidence)
    if case.name is not None:
        assert f"--apply {case.name}`" in first.command
        assert first.effect
    assert found.worst is case.severity


def test_there_is_a_case_of_every_cause() -> None:
    assert {case.cause for case in CASES.values()} == set(Cause)


HEALTHY: dict[str, Window] = {
    "nothing is lost": window(),
    "few packets in uneven queues": window(busy={2: 0.8, 3: 0.75}, ports={"uplink": THREE},
                                           growth={"uplink": {"rx_q0_packets": 90, "rx_q1_packets": 1}}),
    "uneven queues of threads that have time": window(ports={"uplink": THREE}, growth=UNEVEN),
    "even queues": window(busy={2: 0.8, 3: 0.75}, ports={"uplink": THREE},
                          growth={"uplink": {f"rx_q{number}_packets": 2000 for number in range(3)}}),
    "both threads are busy": window(busy={2: 0.9, 3: 0.8}),
    "the busy thread polls what is bound to it alone": window(
        busy={2: 0.9}, ports={"uplink": replace(UPLINK, queues=queues(2, isolated=True)),
                              "vm1": replace(VM1, queues=queues(3))}),
    "a guest's transmit ring is half full": window(fills={0: 900, 100: 30}, sent_rings=(256,)),
    "how long transmit rings are is not known": window(fills={0: 900, 200: 30}),
    "the classifier is slow, and the cache is on": window(busy={2: 0.8, 3: 0.75}, threads=LOOKUPS,
                                                          other_config={"smc-enable": "true"}),
    "the classifier finds most, with time left": window(threads=LOOKUPS),
    "the cache finds most": window(busy={2: 0.8, 3: 0.75}, threads={2: {"received": 20_000, "emc_hits": 19_000}}),
    "few look-ups": window(busy={2: 0.8, 3: 0.75}, threads={2: {"received": 90, "megaflow_hits": 90}}),
    "copies for a VM that the other side serves": window(NOT_TAKEN, ports={"vm1": replace(VM1, elsewhere=True)}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_where_nothing_is_wrong(name: str) -> None:
    assert report(HEALTHY[name])[0].findings == ()


def test_the_most_lost_packets_come_first_and_warnings_last() -> None:
    both = {**MISSED, ("vm1", "ovs_tx_failure_drops"): {2: 5000}}
    found, advised = report(
        window(both, busy={2: {0: 0.99}, 3: 0.05}, growth={"vm1": {"tx_packets": 7, "ovs_tx_retries": 90}})
    )
    assert [(each.cause, each.lost) for each in found.findings] == [
        (Cause.GUEST_RING_SHORT, 5000), (Cause.RX_RING_SHORT, 1200),
    ]  # fmt: skip
    assert [each.name for each in advised] == ["tx-retries:vm1", "rx-ring:uplink"]
    found, _ = report(window(MISSED, {2: 0.97}, unseen=(Unseen("Its pools", "no answer"),)))
    assert [each.cause for each in found.findings] == [Cause.PMD_OVERLOADED, Cause.NOT_SEEN, Cause.LOAD_UNBALANCED]


def test_the_evidence_says_when_how_much_and_how_busy() -> None:
    first = report(window(MISSED, {2: {3: 0.31}}))[0].findings[0]
    assert first.evidence[0] == "1200 packets in 1.0 s, in 2 of 10 intervals of 0.10 s (rx_missed_errors)"
    assert "core 2: busy for 8% of the time, and for 31% in the worst interval with losses" in first.evidence[1]
    assert first.evidence[2] == "1 receive queue with 2048 descriptors (options:n_rxq_desc)"
    assert first.evidence[3].startswith("58000 packets/s arrived in the worst interval")
    assert "ovs-vsctl --db=unix:/run/a/db.sock --timeout=5 set Interface uplink options:n_rxq_desc=4096`" in (
        first.command
    )


def test_a_finding_of_a_vm_says_its_ring_and_how_it_gets_a_longer_one() -> None:
    first = report(window(NOT_TAKEN, growth={"vm1": {"ovs_tx_retries": 7}}))[0].findings[0]
    assert (first.vm, first.port, first.lost) == ("vm1", "vm1", 800)
    assert "its receive rings: 256 entries; at most 500 packets were lost in one interval" in first.evidence
    assert "the switch tried again 70 times (ovs_tx_retries)" in first.evidence[-1]
    for words in ("rx_queue_size=1024", "<driver rx_queue_size='1024'", "[libvirt] rx_queue_size"):
        assert words in first.command
    long = report(window(NOT_TAKEN, ports=port("vm1", ring=1024)))[0].findings[0]
    assert "as long as QEMU can make it" in long.command
    unknown = report(window(NOT_TAKEN, ports=port("vm1", ring=None)))[0].findings[0]
    assert "its receive rings: not known; at most 500 packets were lost in one interval" in unknown.evidence
    assert "rx_queue_size=1024" in unknown.command


def test_only_what_concerns_the_vm_is_reported_if_one_is_named() -> None:
    both = {**MISSED, **NOT_TAKEN, ("vm2", "ovs_tx_failure_drops"): {1: 9}}
    found, advised = report(window(both, growth=RETRIED), vm="vm1")
    assert {(each.vm, each.port) for each in found.findings} == {("vm1", "vm1"), (None, "uplink")}
    assert {each.name for each in advised} == {"tx-retries:vm1", "rx-ring:uplink"}


def test_limits_say_what_cannot_be_judged() -> None:
    assert report(window())[0].limits == (NO_METRICS,)
    found = report(without_cycles(window(upgrade=True, other_config={"pmd-perf-metrics": "true"},
                                         ports={"vm1": replace(VM1, elsewhere=True)})))[0]  # fmt: skip
    assert found.limits[:2] == (UPGRADE, NO_CYCLES)
    assert found.limits[2].startswith("this switch does not serve vm1")
    assert report(replace(window(), looks=()))[0].seconds == 0


# -------------------------------------------------------------------------------------------------------- the changes


@pytest.mark.parametrize(
    ("length", "lacking", "wanted"), [(64, 0, 128), (64, 100, 256), (512, 512, 1024), (512, 513, 2048), (2048, 9, 4096),
                                      (4096, 9, 4096), (1024, 10**6, 4096)],
)  # fmt: skip
def test_a_longer_ring_is_a_power_of_two_with_room(length: int, lacking: int, wanted: int) -> None:
    assert advice.longer(length, lacking) == wanted


@pytest.mark.parametrize(
    ("text", "length"), [("512", 512), ("500", 2048), ("0", 2048), ("many", 2048), ("-4", 2048), ("", 2048)]
)
def test_a_ring_has_the_length_that_the_switch_takes(text: str, length: int) -> None:
    assert advice.ring_of(replace(UPLINK, options={"n_rxq_desc": text}), "n_rxq_desc") == length


@pytest.mark.parametrize(
    ("text", "sleeps"), [("0", False), ("50", True), ("0,3:100", True), ("3:0", False), ("no", False), ("", False)]
)
def test_whether_threads_sleep(text: str, sleeps: bool) -> None:
    assert window(other_config={"pmd-sleep-max": text}).may_sleep is sleeps


NAMED: dict[str, tuple[str, str]] = {
    "rx-ring:uplink": ("options", "n_rxq_desc"), "tx-ring:uplink": ("options", "n_txq_desc"),
    "rx-queues:uplink": ("options", "n_rxq"), "tx-steering:uplink": ("other_config", "tx-steering"),
    "tx-retries:vm1": ("options", "tx-retries-max"), "tx-steering:vm1": ("other_config", "tx-steering"),
    "pmd-sleep": ("other_config", "pmd-sleep-max"), "auto-lb": ("other_config", "pmd-auto-lb"),
    "smc": ("other_config", "smc-enable"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_change_is_known_by_its_name(name: str) -> None:
    found = advice.named(name, window(other_config={"pmd-sleep-max": "9"}))
    assert found is not None
    assert found.name == name
    assert [(each.column, each.key) for each in found.settings] == [NAMED[name]]
    assert found.stops == name.startswith(("rx-", "tx-ring")), "a port stops if its rings or queues change"
    assert ("stops" in found.effect) == found.stops or "no port" in found.effect


def test_every_name_stands_for_a_change() -> None:
    assert {name.partition(":")[0] for name in advice.NAMES} == {name.partition(":")[0] for name in NAMED}


@pytest.mark.parametrize("name", ["", "no-such", "rx-ring", "rx-ring:vm1", "rx-ring:no-such", "tx-retries:uplink",
                                  "pmd-sleep", "smc:uplink"])  # fmt: skip
def test_other_names_are_no_changes(name: str) -> None:
    assert advice.named(name, window()) is None


def test_a_setting_is_a_command() -> None:
    (setting,) = advice.auto_balance().settings
    assert setting.words == ("set", "Open_vSwitch", ".", "other_config:pmd-auto-lb=true")
    gone = replace(setting, table="Interface", row="vm1", value=None)
    assert gone.words == ("remove", "Interface", "vm1", "other_config", "pmd-auto-lb")
    assert gone.place == ("Interface", "vm1", "other_config", "pmd-auto-lb")


# ------------------------------------------------------------------------------------------------------------- values


def test_a_thread_that_sleeps_is_busy_in_a_share_of_the_time_in_which_it_runs() -> None:
    """Its cycles are those in which it was awake."""
    awake = window(busy={2: 0.9})
    assert awake.whole.cores[2].busy == 0.9
    asleep = replace(awake, other_config={"pmd-sleep-max": "50"})
    assert asleep.whole.cores[2].busy == pytest.approx(0.9 * bed.RAN)
    unknown = replace(asleep, looks=tuple(replace(look, threads={}) for look in asleep.looks))
    assert unknown.whole.cores[2].busy == 0.9


def test_a_counter_that_began_again_counts_as_it_is() -> None:
    before = Look(1.0, None, {"vm1": {"rx_packets": 900}, "gone": {}})
    after = Look(1.5, None, {"vm1": {"rx_packets": 40, "tx_packets": 7}, "new": {"rx_packets": 3}})
    (interval,) = Window((before, after), {}, {}).intervals
    assert interval.ports == {"vm1": {"rx_packets": 40, "tx_packets": 7}}
    assert (interval.seconds, interval.cores) == (0.5, {})
    assert interval.grown("no-such", "rx_packets") == 0


def test_the_load_of_threads_is_known_only_if_that_of_each_is() -> None:
    loads = list(window(busy={2: 0.5, 3: 0.25}).whole.cores.values())
    assert busiest(loads) == 0.5
    assert busiest([loads[0], replace(loads[1], busy=None)]) is None
    assert busiest([]) is None


def test_queues_are_counted_by_their_own_counters_alone() -> None:
    grown = {"rx_q0_packets": 5, "rx_q10_good_packets": 7, "rx_q0_bytes": 99, "rx_q0_multicast_packets": 3,
             "rx_q0_size_64_packets": 4, "rx_packets": 12, "tx_q0_packets": 1}  # fmt: skip
    assert per_queue(Interval(1.0, {"p": grown}, {}), "p", "rx_q") == {"0": 5, "10": 7}


# --------------------------------------------------------------------------------------------------------------- page


def page(found: Report) -> str:
    return "\n".join(text for _, text in lines(found))


def test_the_page_has_findings_effects_threads_and_ports() -> None:
    found, _ = report(window({**MISSED, **NOT_TAKEN}, growth=RETRIED), Side.A)
    text = page(found)
    assert text.startswith("this host: instance a is active, counters watched for 1 s in 10 intervals")
    for words in ("FAIL  uplink misses packets in bursts", "[rx-ring-short]", "seen: 1200 packets in 1.0 s",
                  "next: `ovs-hotswap bursts --apply rx-ring:uplink`", "rx-ring:uplink: the switch stops uplink",
                  "11 looks, each of 1 ms; this program used 1.0%", "- bursts that guests send"):  # fmt: skip
        assert words in text, words
    rows = [line.split() for line in text.splitlines()]
    assert ["2", "0", "5%", "5%", "0%", "2"] in rows
    assert ["uplink", "50000", "50000", "50000", "50000", "1200", "2"] in rows
    assert headlines(found)[0].startswith("FAIL  uplink misses packets in bursts")


def test_the_page_of_a_healthy_switch_says_so() -> None:
    found, _ = report(replace(window(), looks=()))
    text = page(found)
    assert "the distribution's switch" in text
    assert "nothing that was looked at is wrong" in text
    assert "PMD threads" not in text
    assert "What a change does" not in text
    unknown, _ = report(without_cycles(window()))
    assert ["2", "0", "?", "?", "0%", "2"] in [line.split() for line in page(unknown).splitlines()]


def test_a_change_is_shown_with_both_values() -> None:
    from ovs_hotswap.bursts.found import Made

    made = Made("rx-ring:uplink", "Interface", "uplink", "options", "n_rxq_desc", None, "4096", 0.25)
    assert change(made) == "Interface uplink: options:n_rxq_desc: not set -> 4096, in 0.25 s"
    root = Made("smc", "Open_vSwitch", "", "other_config", "smc-enable", "false", None)
    assert change(root) == "Open_vSwitch: other_config:smc-enable: false -> not set"


def test_a_finding_is_the_same_for_people_and_programs() -> None:
    found, advised = report(window(MISSED), Side.A)
    assert isinstance(found.findings[0], Finding)
    assert isinstance(advised[0], Advice)
    assert found.findings[0].effect == advised[0].effect
