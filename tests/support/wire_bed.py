"""A bed for wire mode by mirrors: simulated guests on two switches, whose bridges have pipelines that the overlay does
not know: meters, learn(), connection tracking, groups and NORMAL."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.bed import Bed
from bench.window import Notes, done
from ovs_hotswap.host import flow_tables
from ovs_hotswap.lab.layout import REMOTE_INNER_MAC, REMOTE_VTEP, VNI
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import UPLINK_PORT, VXLAN_PORT
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import steps
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.vm_ports import VmPort
from ovs_hotswap.wire.mirrors import MirrorWire

TABLES = ("Open_vSwitch", "Bridge", "Port", "Interface", "Mirror")
# Columns that ovs-vswitchd writes, and the counts of changes.
REPORTED = {
    "next_cfg", "cur_cfg", "statistics", "status", "link_state", "link_speed", "link_resets", "admin_state", "duplex",
    "mac_in_use", "ofport", "error", "ifindex", "mtu", "bond_active_slave", "rstp_status", "rstp_statistics", "lldp",
    "cfm_fault", "cfm_fault_status", "cfm_health", "cfm_mpid", "cfm_remote_mpids", "cfm_remote_opstate",
    "cfm_flap_count", "bfd_status", "datapath_version", "datapath_types", "iface_types", "_version",
}  # fmt: skip


class WireBed(Bed):
    """``opened`` parks every VM on side b, whose switch has the same ports; no window of the overlay is open."""

    @cached_property
    def wire(self) -> MirrorWire:
        sides = {side: self.host.instances[side].paths for side in Side}
        return MirrorWire(sides, self._system, self.config.run_dir / "wire.sock")

    @property
    def vm_ports(self) -> list[VmPort]:
        return [
            VmPort(name=vm.name, bridge=self.config.bridge, ofport=vm.ofport, socket=self.config.qemu_socket(vm.name))
            for vm in self.host.intent.vms
        ]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Notes]:
        plan = (steps.StartStandby(), steps.ProgramDatabase(), steps.Ports(), steps.OpenWindow(),
                steps.ProgramTunnels(), steps.Park())  # fmt: skip
        with done(Upgrade(self.host, Side.A, Side.B, "host"), plan) as run:
            yield run

    def ofctl(self, side: Side, command: str, *arguments: str) -> str:
        target = f"unix:{self.host.instances[side].paths.mgmt(self.config.bridge)}"
        return self._system.run(["ovs-ofctl", "-O", "OpenFlow14", command, target, *arguments]).stdout

    def program(self, side: Side, pipeline: Sequence[str]) -> None:
        """Have others' flows take the place of the overlay's. Those of the underlay stay."""
        ours = flow_tables.flows(self.host, side, Form.FINAL)
        underlay = [line for line in ours if re.search(rf"\bin_port=({UPLINK_PORT}|LOCAL)\b", line)]
        self.ofctl(side, "del-groups")
        self.ofctl(side, "del-meters")
        self.ofctl(side, "add-meter", "meter=1,kbps,burst,band=type=drop,rate=1000000,burst_size=1000000")
        buckets = ",".join(f"bucket=bucket_id={number},weight=1,actions=resubmit(,10)" for number in (1, 2))
        self.ofctl(side, "add-group", f"group_id=1,type=select,selection_method=dp_hash,{buckets}")
        self.host.openflow(side).replace([*underlay, *pipeline])

    def set_ports(self, side: Side, names: Sequence[str], *, tag: int | None) -> None:
        """Make these ports access ports of a VLAN, or of none."""
        row = {"tag": ["set", []] if tag is None else tag}
        socket = self.host.instances[side].paths.db_socket
        update = [{"op": "update", "table": "Port", "where": [["name", "==", name]], "row": row} for name in names]
        transact(socket, update, timeout=10.0)

    def stateful(self) -> list[str]:
        """A pipeline in which nothing is known beforehand but the remote host."""
        vms = [vm.ofport for vm in self.host.intent.vms]
        learn = "learn(table=10,hard_timeout=600,priority=50,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[])"
        remote = f"set_field:{VNI}->tun_id,set_field:{REMOTE_VTEP}->tun_dst,output:{VXLAN_PORT}"
        return [
            *(f"table=0,priority=90,in_port={port} actions=meter:1,{learn},resubmit(,2)" for port in vms),
            f"table=0,priority=90,in_port={VXLAN_PORT},tun_id={VNI} actions=resubmit(,2)",
            "table=2,priority=100,ip actions=set_field:7->reg5,ct(table=3,zone=7)",
            "table=2,priority=0 actions=resubmit(,10)",
            *(f"table=3,priority=100,ct_state=+trk+new,ip,in_port={port},reg5=7"
              f" actions=ct(commit,zone=7,exec(set_field:{port}->ct_mark)),group:1" for port in (*vms, VXLAN_PORT)),
            "table=3,priority=90,ct_state=+trk+est,ip actions=resubmit(,10)",
            "table=3,priority=0 actions=drop",
            f"table=10,priority=100,dl_dst={REMOTE_INNER_MAC} actions={remote}",
            f"table=10,priority=0 actions={','.join(f'output:{port}' for port in vms)}",
        ]  # fmt: skip

    def learnt(self, side: Side) -> list[str]:
        """The flows that the pipeline has learnt, as a clone carries them over."""
        return [line for line in self.host.openflow(side).dump() if "table=10" in line and "priority=50" in line]

    def footprint(self, side: Side) -> dict[str, Any]:
        """All that is configured on a side: its database without what the switch reports, and what its bridge has."""
        paths = self.host.instances[side].paths
        reads = [{"op": "select", "table": table, "where": []} for table in TABLES]
        rows = zip(TABLES, transact(paths.db_socket, reads, timeout=10.0), strict=True)
        kept = {
            table: sorted(
                str(sorted((key, value) for key, value in row.items() if key not in REPORTED)) for row in result["rows"]
            )
            for table, result in rows
        }
        learnt = set(self.learnt(side))
        flows = [line for line in OpenFlow(self._system, paths.mgmt(self.config.bridge)).dump() if line not in learnt]
        sockets = sorted(path.name for path in paths.run_dir.glob("*.mgmt"))
        return {**kept, "flows": flows, "groups": self.ofctl(side, "dump-groups").splitlines()[1:], "bridges": sockets}


@contextlib.contextmanager
def wire_bed(system: System, vms: int) -> Iterator[WireBed]:
    bed = WireBed(Path(tempfile.mkdtemp(prefix="ovsh-wi-")), vms, system)
    try:
        bed.up()
        bed.start()
        yield bed
    finally:
        bed.down()
