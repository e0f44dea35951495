"""MTUs that do not fit each other: each is named with both values and the command that helps."""

from __future__ import annotations

from typing import Any

import pytest

from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay import path_mtu
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.path_mtu import Device, Seen

WARNING, ERROR = Severity.WARNING, Severity.ERROR


def intent(*mtus: int | None, underlay: int | None = None, **vtep: object) -> Intent:
    """VMs that have a remote MAC to send to, each with an MTU, or without one."""
    given: dict[str, Any] = {} if underlay is None else {"mtu": underlay}
    return Intent.model_validate({
        "vtep": {"address": "172.31.0.1/24", "mac": "52:54:00:1f:00:01", **given, **vtep},
        "vm": [{"name": f"vm{n}", "ofport": 9 + n, "mac": f"52:54:00:00:00:0{n}", "vni": 1,
                **({} if mtu is None else {"mtu": mtu})} for n, mtu in enumerate(mtus, 1)],
        "remote": [{"vni": 1, "mac": "52:54:00:00:01:01", "vtep": "172.31.0.2"}],
        "neighbour": [{"address": "172.31.0.2", "mac": "52:54:00:1f:00:02"}],
    })  # fmt: skip


def judged(of: Intent, active: Side | None = None, **seen: Any) -> list[tuple[Severity, str]]:
    return [(each.severity, each.text) for each in path_mtu.judge(of, Seen(**seen), active)]


FITTING = intent(8950, underlay=9000)


def test_nothing_is_said_of_mtus_that_fit() -> None:
    assert judged(
        FITTING, Side.A, devices=[Device("pf0", 9000), Device("vf-a", 9600)],
        ports={Side.A: {"uplink": 9000, "vm1": 8950}, Side.B: {"uplink": 9000, "vm1": 8950, "peer": 8958}},
        devargs={side: ("net_pcap0,iface=vf",) for side in Side},
    ) == []  # fmt: skip
    assert judged(intent(1450), devices=[Device("pf0", 1500)], devargs={Side.A: ("eth_af_packet0,iface=vf-a",)}) == []


@pytest.mark.parametrize(
    ("of", "seen", "severity", "parts"),
    [
        (intent(9000, underlay=9000), {}, ERROR, ["VM vm1 has MTU 9000", "tunnels carry 8950"]),
        (intent(None, underlay=1500), {}, WARNING, ["1 VMs have no mtu", "tunnels carry 1450", "vm1"]),
        (FITTING, {"devices": [Device("pf0", 1500)]}, ERROR, ["pf0 has MTU 1500", "underlay 9000"]),
        (FITTING, {"devices": [Device("pf0", 1500, 2000)]}, ERROR, ["pf0 has MTU 1500", "takes 2000 at most"]),
        (FITTING, {"devargs": {Side.B: ("eth_af_packet0,iface=vf-b",)}}, ERROR, ["instance b", "MTU of 1500", "9000"]),
        (FITTING, {"devargs": {Side.A: ("net_pcap0,iface=x", "net_af_packet1,iface=y")}}, ERROR,
         ["instance a", "MTU of 1500", "9000"]),
        (FITTING, {"ports": {Side.B: {"uplink": 1500}}}, WARNING, ["instance b", "uplink 1500, not 9000"]),
        (FITTING, {"ports": {Side.B: {"vm1": 1450}}}, WARNING, ["instance b", "vm1 1450, not 8950"]),
        (FITTING, {"ports": {Side.B: {"peer": 1508}}}, WARNING, ["instance b", "peer 1508, not 8958"]),
    ],
)  # fmt: skip
def test_each_mtu_that_does_not_fit_is_named_with_both_values(
    of: Intent, seen: dict[str, Any], severity: Severity, parts: list[str]
) -> None:
    ((found, text),) = judged(of, Side.A, **seen)
    assert found is severity
    assert [part for part in parts if part not in text] == []


def test_the_active_instances_ports_are_judged_with_its_datapath() -> None:
    assert judged(FITTING, Side.A, ports={Side.A: {"uplink": 1500}}) == []
    assert len(judged(FITTING, None, ports={Side.A: {"uplink": 1500}})) == 1


def test_a_port_without_an_mtu_is_not_judged() -> None:
    """The port of a VM whose guest has not come yet has none."""
    assert judged(FITTING, ports={Side.B: {}}) == []


def test_the_command_that_helps_is_for_the_devices_namespace() -> None:
    def hint(*of: Any) -> str | None:
        (found,) = path_mtu.short_device(Device(*of), 9000)
        return found.hint

    assert hint("pf0", 1500) == "ip link set pf0 mtu 9000, or correct vtep.mtu in the overlay file"
    assert str(hint("pf0", 1500, 9710, "lab")).startswith("ip netns exec lab ip link set pf0 mtu 9000")
    assert str(hint("pf0", 1500, 2000)).startswith("[vtep] mtu = 2000 in the overlay file")


def test_many_vms_and_ports_are_three_and_a_number() -> None:
    ((_, text),) = judged(intent(None, None, None, None))
    assert "4 VMs have no mtu" in text
    assert "vm1, vm2, vm3 ..." in text
    wrong = {f"vm{n}": 1400 for n in range(1, 6)}
    ((_, text),) = judged(intent(*[1450] * 5), ports={Side.B: wrong})
    assert text.endswith("vm1 1400, not 1450; vm2 1400, not 1450; vm3 1400, not 1450; and 2 more")


def test_long_packets_may_stay_on_the_host() -> None:
    assert judged(intent(9000, local_jumbo=True)) == []
