"""What an upgrade of a host that others program knows of both instances, and the order of its steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ovs_hotswap.clone.conntrack import ConntrackState
from ovs_hotswap.clone.conntrack_entries import parse_dump
from ovs_hotswap.clone.rows import Ref
from ovs_hotswap.clone.runtime_settings import Setting
from ovs_hotswap.clone.state import RuntimeState, without_logs
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.cloning import Cloning, uplinks_in
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.plans import plan_for
from ovs_hotswap.vm_ports import VmPort, read_ports, write_ports
from ovs_hotswap.wire.mirrors import UplinkPort


@pytest.fixture
def config(tmp_path: Path) -> Config:
    instances = {
        side: {"pmd_cores": [core], "port_devices": {"dpdk0": f"0000:03:02.{core}"}} for core, side in enumerate(Side)
    }
    return Config.model_validate({
        "program": "clone", "instances": instances, "state_dir": str(tmp_path / "state"),
        "run_dir": f"/tmp/ovsh-{tmp_path.name[-20:]}",
    })  # fmt: skip


def test_the_new_instance_has_its_own_devices(config: Config) -> None:
    paths = {side: InstancePaths.of(config, side) for side in Side}
    changes = Cloning(config, System(), paths).changes(Side.B, cut=True)
    assert changes.interfaces == {"dpdk0": {"options": {"dpdk-devargs": "0000:03:02.1"}}}
    assert changes.cores == frozenset({1})


def test_uplinks_are_ports_with_a_device_of_dpdk() -> None:
    def row(name: str, **columns: object) -> dict[str, object]:
        return {"name": frozenset({name}), "external_ids": {}, **columns}

    rows = {
        "Bridge": {"b1": row("br-ex", ports=frozenset({Ref("p1"), Ref("p2"), Ref("p3")})),
                   "b2": row("br-int", ports=frozenset())},
        "Port": {"p1": row("up", interfaces=frozenset({Ref("i1")})),
                 "p2": row("vm1", interfaces=frozenset({Ref("i2")})),
                 "p3": {**row("ovsh-l1", interfaces=frozenset({Ref("i3")})), "external_ids": {owned.MARK: "wire"}}},
        "Interface": {"i1": row("up", type=frozenset({"dpdk"})),
                      "i2": row("vm1", type=frozenset({"dpdkvhostuserclient"})),
                      "i3": row("ovsh-l1", type=frozenset({"dpdk"}))},
    }  # fmt: skip
    assert uplinks_in(rows) == (UplinkPort("br-ex", "up"),)


def test_who_programs_the_bridges_decides_which_plan_there_is(config: Config) -> None:
    cloned, ours = plan_for(config), plan_for(config.model_copy(update={"program": Program.OVERLAY}))
    names = [step.name for step in cloned.before]
    assert names.index("sockets") < names.index("start-standby") < names.index("wire") < names.index("adopt")
    assert names.index("move") < names.index("pause") < names.index("cut") < names.index("soak")
    assert "cut" not in [step.name for step in ours.before]
    assert len({*names, *(step.name for step in cloned.after)}) == len(cloned.before) + len(cloned.after)


def test_the_ports_are_read_as_they_were_written(config: Config) -> None:
    assert read_ports(config) == ()
    ports = (VmPort(name="vm1", bridge="br-int", ofport=3, socket=Path("/run/vhost/vm1.sock"), queues=4, mtu=9000),)
    config.state_dir.mkdir(parents=True)
    write_ports(config, System(), ports)
    assert read_ports(config) == ports
    assert ports[0].qemu_socket == Path("/run/vhost/vm1.sock.qemu")


def test_logs_are_not_carried_while_those_of_the_active_side_are_not_its_own() -> None:
    settings = {"log level of dpdk (file)": Setting("DBG", (("vlog/set", "dpdk:file:dbg"),)),
                "connections tracked in a zone": Setting("9", (("dpctl/ct-set-limits", "default=9"),))}  # fmt: skip
    state = RuntimeState((), ConntrackState(parse_dump(""), frozenset(), None, True), settings, {})
    assert list(without_logs(state).settings) == ["connections tracked in a zone"]


def test_only_the_active_instance_is_started_by_hand(config: Config) -> None:
    """The distribution starts its own switch, and an upgrade the new instance."""
    release = Release("host", None, "3.1.0", "22.11.1")
    with pytest.raises(SwitchError, match="no instance of ovs-hotswap is active") as error:
        start_instance(Host(config, System()), Side.A, release)
    assert error.value.hint == "`systemctl start openvswitch-switch` starts the distribution's switch"
    config.active_file.parent.mkdir(parents=True, exist_ok=True)
    config.active_file.write_text("b\n")
    try:
        with pytest.raises(SwitchError, match="instance b is active: an upgrade starts instance a"):
            start_instance(Host(config, System()), Side.A, release)
    finally:
        shutil.rmtree(config.run_dir)
