"""Reads the VMs' ports from the running switch's database."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ovs_hotswap.stock.database import Database, Member, first
from ovs_hotswap.stock.facts import PortKind, StockVm
from ovs_hotswap.vm_ports import VmPort

_CLIENT, _SERVER = "dpdkvhostuserclient", "dpdkvhostuser"
_VDUSE = "/dev/vduse/"  # DPDK lib/vhost/socket.c, rte_vhost_driver_register


def stock_vms(database: Database, run_dir: Path) -> tuple[StockVm, ...]:
    """Return all VMs' ports of the bridges whose datapath is in user space, without what is read
    elsewhere: their QEMUs, and what the log tells of them."""
    vhost_dir = run_dir / str(database.root.get("other_config", {}).get("vhost-sock-dir", ""))
    return tuple(
        _vm(member, vhost_dir)
        for member in database.members()
        if member.bridge["datapath_type"] == "netdev" and member.interface["type"] in (_CLIENT, _SERVER)
    )


def vm_ports(vms: Collection[StockVm]) -> tuple[VmPort, ...]:
    """Return the ports that the broker can take over: those on which the switch connects to QEMU. A port that the
    switch could not make has no number, and is left out."""
    return tuple(
        VmPort(name=vm.name, bridge=vm.bridge, ofport=vm.ofport, socket=Path(vm.socket),
               queues=max(1, vm.vrings // 2), mtu=vm.mtu)
        for vm in vms
        if vm.kind is PortKind.CLIENT and vm.ofport is not None and vm.socket.startswith("/")
    )  # fmt: skip


def _vm(member: Member, vhost_dir: Path) -> StockVm:
    interface, status = member.interface, member.interface["status"]
    port = int(first(interface["ofport"]) or -1)
    socket = str(interface["options"].get("vhost-server-path", ""))
    kind = PortKind.CLIENT
    if interface["type"] == _SERVER:
        kind, socket = PortKind.SERVER, str(vhost_dir / member.name)
    elif socket.startswith(_VDUSE):
        kind = PortKind.VDUSE
    connected = status.get("status") == "connected"
    return StockVm(
        name=member.name,
        bridge=str(member.bridge["name"]),
        kind=kind,
        socket=socket,
        ofport=port if port > 0 else None,
        connected=connected,
        acked=_number(status.get("features")) if connected else None,
        vrings=_number(status.get("num_of_vrings")) or 0,
        mtu=first(interface["mtu_request"]),
        tag=first(member.port["tag"]),
        vlan_mode=first(member.port["vlan_mode"]),
        trunks=tuple(member.port["trunks"]),
        fault=first(interface["error"]) or (None if port > 0 else "it has no OpenFlow number"),
    )


def _number(text: Any) -> int | None:
    try:
        return int(str(text), 0)
    except ValueError:
        return None
