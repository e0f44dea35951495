"""What the datapath has of the ports, and the way back where a port refuses its new configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.datapath import DatapathPort, completed, parse_numbers, parse_ports, put_ports, reasons, refused
from ovs_hotswap.switch.ovsdb import BridgeSpec, PortSpec, Shape

SHOWN = """\
netdev@ovs-netdev:
  lookups: hit:691 missed:21 lost:0
  flows: 21
  port 0: ovs-netdev (tap)
  port 1: vm2 (dpdkvhostuserclient: configured_rx_queues=1, configured_tx_queues=1, mtu=1450, requested_rx_queues=1)
  port 3: vxlan_sys_4789 (vxlan: packet_type=ptap)
  port 4: uplink (dpdk: configured_rx_queues=1, lsc_interrupt_mode=false, mtu=1500, requested_rx_queues=1)
  port 5: br0 (tap)
  port 6: vm3 (dpdkvhostuserclient: configured_rx_queues=1, configured_tx_queues=1, mtu=0, requested_rx_queues=1)
"""
LOG = """\
2026-11-28T16:54:41.228Z|00107|netdev_dpdk|ERR|Failed to create memory pool for netdev uplink, with MTU 9000 on socket 0
2026-11-28T16:54:41.228Z|00108|dpif_netdev|ERR|Failed to set interface uplink new configuration
2026-11-28T16:54:41.240Z|00112|ofproto|WARN|br0: cannot get STP status on nonexistent port uplink
2026-11-28T16:54:41.250Z|00113|netdev_dpdk|ERR|Failed to create memory pool for netdev uplink-2
"""
WITHOUT_MTUS = """\
netdev@ovs-netdev:
  port 0: ovs-netdev (tap)
  port 1: vm1 (dpdkvhostuserclient: vhost-server-path=/run/a/vm1.sock)
  port 2: vm2 (dpdkvhostuserclient: vhost-server-path=/run/a/vm2.sock)
  port 3: vxlan_sys_4789 (vxlan: packet_type=ptap)
  port 4: uplink (dpdk: dpdk-devargs=x, dpdk-lsc-interrupt=false, n_rxq=1, n_rxq_desc=2048, n_txq_desc=2048)
  port 5: peer (dpdk: dpdk-devargs=y)
"""  # of Open vSwitch 3.5
UPLINK = PortSpec("uplink", "dpdk", 1, mtu=9000)
VM = PortSpec("vm1", "dpdkvhostuserclient", 10)


def test_the_numbers_of_the_datapath() -> None:
    assert parse_numbers(SHOWN)["uplink"] == "4"
    assert parse_numbers(SHOWN)["vxlan_sys_4789"] == "3"
    assert parse_numbers("") == {}


def test_ports_are_read() -> None:
    found = parse_ports(SHOWN)
    assert found["uplink"] == DatapathPort("uplink", "dpdk", 1500)
    assert found["vm2"].mtu == 1450
    assert found["br0"].mtu is None
    assert found["vm3"].mtu is None, "no guest has come yet"


def test_where_the_datapath_tells_no_mtu_the_database_does() -> None:
    told = {"uplink": 1500, "vm1": 1450, "vm2": 0, "peer": ["set", []], "br0": 1450, "gone": 9000}
    found = completed(parse_ports(WITHOUT_MTUS), told)
    assert {name: port.mtu for name, port in found.items() if port.type != "tap"} == {
        "uplink": 1500, "vm1": 1450, "vm2": None, "peer": None, "vxlan_sys_4789": None,
    }  # fmt: skip
    assert {name for name, port in found.items() if port.in_use} == {"uplink", "peer", "vm1"}
    assert "gone" not in found, "the datapath has lost it, whatever the database says"
    assert refused(found, [UPLINK]) == {"uplink": "its MTU is 1500, not 9000"}
    assert completed(parse_ports(SHOWN), {"uplink": 9000})["uplink"].mtu == 1500


def test_a_port_that_is_missing_or_has_another_mtu_is_refused() -> None:
    found = parse_ports(SHOWN)
    assert refused(found, [PortSpec("uplink", "dpdk", 1), PortSpec("vm2", "dpdkvhostuserclient", 10, mtu=1450)]) == {}
    assert refused(found, [UPLINK]) == {"uplink": "its MTU is 1500, not 9000"}
    assert refused(found, [VM]) == {"vm1": "the datapath does not have it, so nothing passes"}
    assert refused({}, [UPLINK])["uplink"].startswith("the datapath does not have it with an MTU of 9000")
    assert refused({}, [PortSpec("vxlan", "vxlan", 2)]) == {}, "a tunnel has another name there"


def test_the_log_tells_why() -> None:
    assert reasons(LOG, "uplink") == [
        "Failed to create memory pool for netdev uplink, with MTU 9000 on socket 0",
        "Failed to set interface uplink new configuration",
    ]
    assert reasons(LOG, "vm1") == []


@dataclass
class Switch:
    """A database and a datapath: the datapath drops a port whose MTU is over 1500, and the database says nothing."""

    mtus: dict[str, int | None] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def shapes(self, spec: BridgeSpec) -> dict[str, Shape]:
        return {p.name: {"mtu": self.mtus[p.name]} for p in spec.ports if self.mtus.get(p.name, p.mtu) != p.mtu}

    def apply(self, spec: BridgeSpec) -> bool:
        self.done.append("apply")
        self.mtus = {port.name: port.mtu for port in spec.ports}
        return True

    def wait_ports(self, names: Collection[str], timeout: float) -> None:
        self.done.append(f"wait {', '.join(names)}")

    def put_back(self, shapes: Mapping[str, Any]) -> bool:
        self.done.append(f"put back {', '.join(shapes)}")
        self.mtus.update({name: shape["mtu"] for name, shape in shapes.items()})
        return True

    def look(self) -> Mapping[str, DatapathPort]:
        return {
            name: DatapathPort(name, "dpdk", mtu or 1500) for name, mtu in self.mtus.items() if (mtu or 1500) <= 1500
        }


def bridge(*ports: PortSpec) -> BridgeSpec:
    return BridgeSpec("br0", "52:54:00:00:00:01", ports)


def test_a_refused_mtu_is_an_error_and_is_undone(tmp_path: Path) -> None:
    switch = Switch({"uplink": None, "vm1": None})
    log = tmp_path / "log"
    log.write_text(LOG.splitlines()[3])  # of an earlier time
    with pytest.raises(SwitchError, match=r"port uplink: the datapath does not have it.*configuration was put back"):
        put_ports(switch, switch.look, bridge(UPLINK, VM), 1, log, settle_s=0)
    assert switch.mtus["uplink"] is None
    assert switch.done == ["apply", "wait uplink, vm1", "put back uplink", "wait uplink"]


def test_a_port_that_is_new_has_nothing_to_go_back_to() -> None:
    switch = Switch()
    with pytest.raises(SwitchError, match="port uplink"):
        put_ports(switch, switch.look, bridge(UPLINK), 1, settle_s=0)
    assert "put back uplink" not in switch.done


def test_what_is_accepted_stays() -> None:
    switch = Switch({"uplink": None})
    put_ports(switch, switch.look, bridge(PortSpec("uplink", "dpdk", 1, mtu=1400)), 1)
    assert switch.mtus == {"uplink": 1400}
