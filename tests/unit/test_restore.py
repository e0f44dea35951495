"""What was active before a boot, and what is started after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import StateUnknown, SwitchError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.upgrade.host import Active
from ovs_hotswap.upgrade.lifecycle import restore
from tests.unit.watch_bed import FakeHost, World


class Releases:
    def get(self, name: str) -> Release:
        return Release(name, None, "3.1.0", "22.11")


class Machine(FakeHost):
    """``boots`` empties run_dir. ``fails``: programming does."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, World([]))
        self.__dict__["releases"] = Releases()
        config.overlay.write_text('[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n')
        self.fails = False

    def boot(self) -> None:
        self.config.active_file.unlink()

    def program(self, side: Side) -> None:
        if self.fails:
            raise SwitchError("no such port")
        self.world.done.append(f"program {side}")


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Machine(Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    }))  # fmt: skip


def test_a_boot_brings_back_the_side_that_was_active_last(host: Machine) -> None:
    host.record_active(Side.A)
    host.record_active(Side.B)
    host.boot()
    assert host.recorded_active() is None
    assert restore(host) == Active(side=Side.B, release="host")
    assert host.world.done == ["start b host", "program b", "steer b"]
    assert host.recorded_active() is Side.B


def test_where_a_side_is_active_nothing_is_restored(host: Machine) -> None:
    host.record_active(Side.A)
    assert restore(host) is None
    assert host.world.done == []


def test_where_none_ever_was_nothing_is_restored(host: Machine) -> None:
    assert restore(host) is None
    assert host.world.done == []


def test_what_was_stopped_on_purpose_is_not_restored(host: Machine) -> None:
    host.record_active(Side.A)
    host.forget_active()
    assert restore(host) is None
    assert host.last_active() is None


def test_what_cannot_be_programmed_is_stopped_and_restored_the_next_time(host: Machine) -> None:
    host.record_active(Side.A)
    host.boot()
    host.fails = True
    with pytest.raises(SwitchError):
        restore(host)
    assert host.world.done == ["start a host", "stop a"]
    assert host.recorded_active() is None
    host.fails = False
    assert restore(host) is not None


@pytest.mark.parametrize("text", ["", "{}", '{"side": "c", "release": "host"}'])
def test_a_record_that_cannot_be_read_is_not_guessed(host: Machine, text: str) -> None:
    host.record_active(Side.A)
    host.boot()
    host.config.restore_file.write_text(text)
    with pytest.raises(StateUnknown, match=r"active\.json: cannot be read"):
        restore(host)
    assert host.world.done == []
