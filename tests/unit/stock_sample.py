"""A healthy host that others program, as facts, for tests that change one of them."""

from __future__ import annotations

from ovs_hotswap.stock.facts import (
    DeviceKind,
    Facts,
    Monitor,
    Pipeline,
    PortKind,
    StockBridge,
    StockLog,
    StockOvn,
    StockQemu,
    StockSwitch,
    StockUplink,
    StockVm,
    VmLog,
)

LOG = "/var/log/openvswitch/ovs-vswitchd.log"
DATABASE = "/etc/openvswitch/conf.db"
ACKED = 0x17020A782  # of a Linux guest on OVS 3.1

QEMU = StockQemu(
    pid=300, guest="vm1", version="7.2", monitors=(Monitor("/run/vm1.qmp"),), libvirt=False,
    memory=("memory-backend-memfd",), machine="pc", kvm=True, label="unconfined", traceable=True,
)  # fmt: skip


def vm(name: str = "vm1", **changes: object) -> StockVm:
    """A VM that can be taken over without a disconnect."""
    values = {
        "name": name, "bridge": "br-int", "kind": PortKind.CLIENT, "socket": f"/run/{name}.sock", "ofport": 1,
        "connected": True, "acked": ACKED, "vrings": 2, "qemu": QEMU, "log": VmLog(regions=1),
    }  # fmt: skip
    return StockVm(**{**values, **changes})  # type: ignore[arg-type]


HEALTHY = Facts(
    StockSwitch(
        vswitchd_pid=100, ovsdb_pid=99, ovs_version="3.1.3", dpdk_version="22.11.9", dpdk_ready=True, database=DATABASE,
        pmd_cores=(1,), other_config={"dpdk-socket-mem": "1024,0"},
        external_ids={}, log=StockLog(LOG, "INFO", "info"),
        unit="ovs-vswitchd.service",
    ),
    vms=(vm("vm1"), vm("vm2")),
    pipeline=Pipeline(
        bridges=(StockBridge("br-int", flows=280, controllers=("unix:/run/ovn.mgmt",), identity_nat=True),),
        uplinks=(StockUplink("up", "br-ex", "0000:03:02.0", DeviceKind.VF, "vfio-pci"),),
        ovn=StockOvn("tcp:10.0.0.1:6642", 200),
    ),
)  # fmt: skip
