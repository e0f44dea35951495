"""How a changed overlay intent is followed: one side at a time, the active one last."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.datapath import DatapathPort
from ovs_hotswap.switch.tunnel import TunnelConfig, tunnel_diff
from tests.unit.watch_bed import Bed, FakeHost, World

OVERLAY = """\
[vtep]
address = "172.31.0.1/24"
mac = "52:54:00:1f:00:01"
[[vm]]
name = "vm1"
ofport = 10
mac = "52:54:00:00:00:01"
vni = 1
mtu = 1400
[[vm]]
name = "vm2"
ofport = 11
mac = "52:54:00:00:00:02"
vni = 1
"""


class Ports(FakeHost):
    """Sides in ``refusing`` refuse what the intent wants of their ports; the other list has those to reconfigure."""

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.refusing: set[Side] = set()
        self.anew: list[str] = []
        self.mtus: dict[Side, dict[str, int]] = {side: {} for side in Side}

    def program_database(self, side: Side) -> None:
        self.world.done.append(f"ports {side}")
        if side in self.refusing:
            raise SwitchError("port uplink: the datapath does not have it; the earlier configuration was put back")

    def reshaped(self, side: Side) -> list[str]:
        return self.anew

    def datapath_ports(self, side: Side) -> dict[str, DatapathPort]:
        return {name: DatapathPort(name, "dpdk", mtu) for name, mtu in self.mtus[side].items()}

    def follow_pmd_sleep(self, side: Side) -> None:
        pass

    def program_tunnels(self, side: Side) -> None:
        self.world.done.append(f"tunnels {side}")

    def program_flows(self, side: Side, form: Form) -> None:
        self.world.done.append(f"flows {side}")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    })  # fmt: skip


@pytest.fixture
def host(config: Config) -> Ports:
    config.run_dir.mkdir()
    config.overlay.write_text(OVERLAY)
    host = Ports(config, World(["vm1"]))
    host.record_active(Side.A)
    return host


def test_the_active_side_comes_last_and_then_the_uplink(host: Ports) -> None:
    host.follow_intent(Side)
    assert host.world.done == [
        "reload", "ports b", "tunnels b", "flows b", "ports a", "tunnels a", "flows a", "steer a",
    ]  # fmt: skip


def test_what_the_standby_refuses_does_not_reach_the_active(host: Ports) -> None:
    host.refusing = {Side.B}
    with pytest.raises(SwitchError, match="port uplink"):
        host.follow_intent(Side)
    assert host.world.done == ["reload", "ports b"]


def test_a_live_port_of_a_side_that_runs_alone_is_configured_anew_only_when_asked(host: Ports) -> None:
    host.anew = ["uplink"]
    with pytest.raises(SwitchError, match="port uplink under traffic, and instance b has not tried this") as told:
        host.follow_intent([Side.A])
    assert host.world.done == []
    assert "--untried" in str(told.value.hint)
    host.follow_intent([Side.A], untried=True)
    assert host.world.done[-1] == "steer a"


def test_a_vm_whose_guest_is_not_parked_on_the_standby_has_tried_nothing(host: Ports) -> None:
    host.anew = ["uplink", "vm1"]
    host.mtus[Side.B] = {"uplink": 1500}
    with pytest.raises(SwitchError, match="port vm1 under traffic"):
        host.follow_intent(Side)
    assert "ports a" not in host.world.done


def test_what_the_standby_has_is_given_to_the_active(host: Ports) -> None:
    host.anew = ["uplink"]
    host.mtus[Side.B] = {"uplink": 1500}
    host.follow_intent(Side)
    assert host.world.done[-1] == "steer a"


def test_a_side_that_runs_alone_follows_what_configures_no_port_anew(host: Ports) -> None:
    host.follow_intent([Side.A])
    assert host.world.done == ["reload", "ports a", "tunnels a", "flows a", "steer a"]


def test_the_peer_link_carries_full_frames_with_both_tags(host: Ports) -> None:
    assert host.peer_spec(Side.A).mtu == 1508
    assert "bsize" not in host.peer_spec(Side.A).options["dpdk-devargs"], "the driver's own buffers are enough"


def test_a_frame_takes_one_buffer_of_the_peer_link(host: Ports) -> None:
    """Open vSwitch reads the first buffer of a chain only."""
    host.config.overlay.write_text(OVERLAY.replace("mtu = 1400", "mtu = 9000"))
    for side in Side:
        spec = host.peer_spec(side)
        size = int(spec.options["dpdk-devargs"].rpartition(",bsize=")[2])
        assert size == 9216 >= (spec.mtu or 0) + 14


def test_the_keeper_does_not_try_a_refused_intent_again_at_once(config: Config) -> None:
    bed = Bed(config)
    hosts: list[Ports] = []

    def make() -> Ports:
        hosts.append(Ports(config, bed.world))
        hosts[-1].refusing = {Side.B}
        return hosts[-1]

    bed.keeper._make_host, bed.keeper._host = make, make()
    with pytest.raises(SwitchError):
        bed.keeper.turn()
    assert bed.world.done.count("ports b") == 1
    for _ in range(3):
        bed.keeper.turn()
    assert bed.world.done.count("ports b") == 1, "each time the standby's uplink is configured again"
    assert "ports a" not in bed.world.done
    bed.world.now += 6
    with pytest.raises(SwitchError):
        bed.keeper.turn()
    assert bed.world.done.count("ports b") == 2


def test_the_difference_of_tunnels_names_what_left_the_intent() -> None:
    before = TunnelConfig("172.31.0.1/24", {"10.9.0.0/16": "172.31.0.254"}, {"172.31.0.254": "52:54:00:00:00:fe"})
    after = TunnelConfig("172.31.0.9/24", {}, {"172.31.0.254": "52:54:00:00:00:fe"})
    assert tunnel_diff(before, after) == [
        "-vtep 172.31.0.1/24", "-route 10.9.0.0/16 via 172.31.0.254", "+vtep 172.31.0.9/24",
    ]  # fmt: skip
    assert tunnel_diff(after, after) == []
    assert tunnel_diff(None, after) == []


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", '{"address": 1}', '{"address": "x", "routes": 1, "neighbours": 2}']
)
def test_a_note_that_cannot_be_read_is_no_note(text: str | None) -> None:
    assert TunnelConfig.of_note(text) is None


def test_a_note_is_read_as_it_was_written() -> None:
    config = TunnelConfig("172.31.0.1/24", {"10.9.0.0/16": "172.31.0.254"}, {"172.31.0.254": "52:54:00:00:00:fe"})
    assert TunnelConfig.of_note(config.note()) == config
