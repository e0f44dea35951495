"""Reads what the bridges of the running switch consist of besides the VMs' ports, and who programs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovs_hotswap.config_rules import pci_address
from ovs_hotswap.errors import CommandError
from ovs_hotswap.stock import flow_texts
from ovs_hotswap.stock.database import Database, Row, first
from ovs_hotswap.stock.facts import DeviceKind, Pipeline, StockBridge, StockOvn, StockUplink
from ovs_hotswap.stock.kernel_ports import kernel_ports
from ovs_hotswap.switch.owned import is_marked
from ovs_hotswap.system import System
from ovs_hotswap.uplink.pci import PciBus

_EXPORTS = {"netflow": "NetFlow", "sflow": "sFlow", "ipfix": "IPFIX"}
_TUNNELS = frozenset({"vxlan", "geneve", "gre", "ip6gre", "erspan", "gtpu", "stt", "lisp", "bareudp", "srv6"})
_OPENFLOW = ",".join(f"OpenFlow{number}" for number in range(10, 16))
_DUMP_S = 60.0
_AGENT = "neutron-openvswitch-agent"


def read_pipeline(
    database: Database, run_dir: Path, switch_pid: int, system: System, unreadable: list[str]
) -> Pipeline:
    """Return the facts. What cannot be read is appended to ``unreadable``."""
    members = list(database.members())
    beside = _in_namespace_of(switch_pid, system.pids())

    def ports(chosen: Callable[[Row, Row], bool]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(each.port["name"]) for each in members if chosen(each.port, each.interface)))

    return Pipeline(
        bridges=tuple(_bridge(database, row, run_dir, system, unreadable) for row in database.bridges),
        uplinks=tuple(
            _uplink(each.name, str(each.bridge["name"]), str(each.interface["options"].get("dpdk-devargs", "")))
            for each in members
            if each.interface["type"] == "dpdk"
        ),
        kernel_ports=kernel_ports(members, system, unreadable),
        lacp=ports(lambda port, _: first(port["lacp"]) in ("active", "passive")),
        bfd=ports(lambda _, interface: interface["bfd"].get("enable") == "true"),
        cfm=ports(lambda _, interface: first(interface["cfm_mpid"]) is not None),
        qos=ports(lambda port, interface: bool(port["qos"]) or bool(interface["ingress_policing_rate"])),
        tunnels={each.name: str(each.interface["type"]) for each in members if each.interface["type"] in _TUNNELS},
        managers=tuple(sorted(str(row["target"]) for row in database.tables["Manager"].values())),
        ovn=_ovn(database.root.get("external_ids", {}), system, beside),
        agents=tuple(pid for pid in beside if any(_AGENT in word for word in system.cmdline(pid)[:3])),
    )  # fmt: skip


def _bridge(database: Database, row: Row, run_dir: Path, system: System, unreadable: list[str]) -> StockBridge:
    name = str(row["name"])
    flows: list[str] | None = None
    groups: list[str] = []
    try:
        flows = dump(system, run_dir / f"{name}.mgmt", "dump-flows")
        groups = dump(system, run_dir / f"{name}.mgmt", "dump-groups")
    except CommandError as error:
        unreadable.append(f"the flows of bridge {name}: {error.message}")
    return StockBridge(
        name=name,
        datapath=str(row["datapath_type"]),
        mirrors=tuple(
            sorted(
                str(each["name"])
                for each in database.of(row, "mirrors", "Mirror")
                if not is_marked(each["external_ids"])
            )
        ),
        exports=tuple(text for column, text in _EXPORTS.items() if row[column]),
        controllers=tuple(sorted(str(each["target"]) for each in database.of(row, "controller", "Controller"))),
        stp=bool(row["stp_enable"]),
        rstp=bool(row["rstp_enable"]),
        snooping=bool(row["mcast_snooping_enable"]),
        flows=None if flows is None else len(flows),
        marks=flow_texts.mark_uses([*(flows or []), *groups]),
        to_all=flow_texts.output_to_all([*(flows or []), *groups]),
        highest=flow_texts.highest(flows or []),
        tables=flow_texts.tables(flows or []),
        identity_nat=flow_texts.has_identity_nat(flows or []),
    )


def dump(system: System, socket: Path, command: str) -> list[str]:
    """Return the lines with actions of ``dump-flows`` or ``dump-groups``, without statistics and without flows of
    ovs-hotswap. Raises CommandError."""
    argv = ["ovs-ofctl", "-O", _OPENFLOW, "--no-names", command, f"unix:{socket}"]
    if command == "dump-flows":
        argv.insert(3, "--no-stats")
    lines = system.run(argv, timeout=_DUMP_S).stdout.splitlines()
    return [line for line in lines if "actions=" in line and not flow_texts.is_ours(line)]


def _uplink(name: str, bridge: str, devargs: str, sys: Path = Path("/sys")) -> StockUplink:
    address = pci_address(devargs)
    if address is None:
        virtual = devargs.startswith(("net_", "eth_", "vdev:"))
        return StockUplink(name, bridge, devargs, DeviceKind.VIRTUAL if virtual else DeviceKind.ABSENT)
    bus, place = PciBus(sys), sys / "bus/pci/devices" / address
    if not place.exists():
        return StockUplink(name, bridge, devargs, DeviceKind.ABSENT)
    kind = DeviceKind.VF if os.path.lexists(place / "physfn") else DeviceKind.PF
    if "representor=" in devargs:
        kind = DeviceKind.REPRESENTOR
    return StockUplink(name, bridge, devargs, kind, bus.driver(address))


def _ovn(external_ids: Mapping[str, Any], system: System, beside: Iterable[int]) -> StockOvn | None:
    pid = next((pid for pid in beside if _program(system.cmdline(pid)) == "ovn-controller"), None)
    remote = str(external_ids.get("ovn-remote", ""))
    if not remote and pid is None:
        return None
    return StockOvn(remote, pid)


def _program(argv: Sequence[str]) -> str:
    return os.path.basename(argv[0]) if argv else ""


def _in_namespace_of(switch_pid: int, pids: Iterable[int], proc: Path = Path("/proc")) -> list[int]:
    """Return the processes in the network namespace of the switch: in another one is another host, or a part of it that
    the switch does not belong to."""

    def namespace(pid: int) -> str | None:
        try:
            return os.readlink(proc / str(pid) / "ns/net")
        except OSError:
            return None

    own = namespace(switch_pid)
    return [pid for pid in pids if own is not None and namespace(pid) == own]
