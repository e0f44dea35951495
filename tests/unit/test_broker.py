"""A broker in this process: what is wrong with one VM, or with this host, keeps it from nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ovs_hotswap.broker.daemon import Broker
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.predecessor import Predecessor
from ovs_hotswap.broker.qemu_connector import Reach
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, ConfigError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser.channel import listen
from ovs_hotswap.vhostuser.messages import Feature

_VM = '[[vm]]\nname = "vm{0}"\nofport = {1}\nmac = "52:54:00:00:00:0{0}"\nvni = 1\n'
INTENT = '[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n' + "".join(
    _VM.format(number, 10 + number) for number in range(3)
)


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ovsh-br-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def config(directory: Path) -> Config:
    (directory / "overlay.toml").write_text(INTENT)
    instance = {"pmd_cores": [0], "uplink_devargs": "net_null0"}
    return Config.model_validate(
        {"overlay": directory / "overlay.toml", "run_dir": directory / "run", "state_dir": directory / "state",
         "broker": {"qemu_socket": f"{directory}/qemu/{{vm}}.sock"},
         "instances": {"a": instance, "b": {**instance, "pmd_cores": [1], "uplink_devargs": "net_null1"}}}
    )  # fmt: skip


def run(config: Config, test: Callable[[Broker], Awaitable[None]], load: Callable[[], Config] | None = None) -> None:
    async def main() -> None:
        broker = Broker(config, System(), asyncio.get_running_loop(), None, load=load)
        try:
            await test(broker)
        finally:
            broker.close()
            if broker._control_server.listener is not None:
                broker._control_server.listener.close()

    asyncio.run(main())


def test_the_bound_on_memory_for_frames_is_told(config: Config) -> None:
    async def test(broker: Broker) -> None:
        broker._begin()
        found = (await broker._status()).capture
        assert found is not None
        assert found.limit == 512 << 20
        assert found.taken == 0
        assert found.all == 3 * found.largest
        assert 1 << 20 < found.largest < 2 << 20

    run(config, test)


@pytest.mark.parametrize("fault", [OSError(30, "Read-only file system"), KeyError("vm1")])
def test_what_fails_before_a_round_keeps_no_qemu_from_being_tried(config: Config, fault: Exception) -> None:
    rounds: list[int] = []

    def first() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise asyncio.CancelledError
        raise fault

    async def main() -> None:
        await Reach(Settings(config), {}, cast(StateSaver, None), cast(Predecessor, None)).forever(first)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert len(rounds) == 2


def test_a_fault_of_one_vm_keeps_no_other_from_being_given_a_switch(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """A VM whose changes cannot be told cannot take up that a switch has died. The others can."""

    async def test(broker: Broker) -> None:
        broker._begin()
        vms = [slot.vm for _, slot in sorted(broker._slots.items())]
        for vm in vms:
            doubted = vm.ownership.doubted(frozenset({Side.A}))
            vm.commit(vm.record._replace(suspects={Side.A: 77}, ownership=doubted))
        changes, vms[0].changes = vms[0].changes, cast(Any, None)
        broker._process_ended(77)
        vms[0].changes = changes
        assert [vm.ownership.suspects for vm in vms[1:]] == [frozenset(), frozenset()]

    run(config, test)
    assert "vm vm0: the end of process 77 is not taken up" in caplog.text


@pytest.mark.parametrize("where", ["file/deeper/vm.sock", "directory"])
def test_a_socket_that_cannot_be_made_leaves_nothing(directory: Path, where: str) -> None:
    (directory / "file").write_text("")
    (directory / "directory").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BrokerError, match=where):
        listen(directory / where)
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(each.name for each in directory.iterdir()) == ["directory", "file"]


def changed(config: Config, broker: dict[str, object], **more: object) -> Config:
    cores = {"instances": config.instances.model_copy(
        update={"b": config.instances.b.model_copy(update={"pmd_cores": [3]})})}  # fmt: skip
    return config.model_copy(update={**cores, "broker": config.broker.model_copy(update=broker), **more})


def test_a_reload_follows_the_configuration(config: Config, directory: Path) -> None:
    found = changed(config, {"fence_ms": 900, "withhold_features": ["NET_CSUM"], "capture_mb": 64,
                             "qemu_socket": f"{directory}/other/{{vm}}.sock"})  # fmt: skip

    async def test(broker: Broker) -> None:
        broker._begin()
        status = await broker._reload()
        assert status.differing == ()
        assert status.capture is not None
        assert status.capture.limit == 64 << 20
        assert broker._settings.pmd_cores == [0, 3]
        assert broker._config.qemu_socket("vm1") == directory / "other/vm1.sock"
        (directory / "overlay.toml").write_text(INTENT + _VM.format(3, 13))
        await broker._reload()
        assert sorted(broker._slots) == ["vm0", "vm1", "vm2", "vm3"]
        for slot in broker._slots.values():
            assert slot.mover.fence_s == 0.9
            assert slot.vm.withheld == 1 << Feature.NET_CSUM

    run(config, test, lambda: found)


def test_another_overlay_intent_is_followed(config: Config, directory: Path) -> None:
    (directory / "new.toml").write_text(INTENT.replace("vm2", "new"))

    async def test(broker: Broker) -> None:
        broker._begin()
        await broker._reload()
        assert sorted(broker._slots) == ["new", "vm0", "vm1"]

    run(config, test, lambda: config.model_copy(update={"overlay": directory / "new.toml"}))


def test_what_waits_for_another_broker_is_named(config: Config, directory: Path) -> None:
    async def test(broker: Broker) -> None:
        broker._begin()
        status = await broker._reload()
        assert status.document()["differing"] == [
            {"key": "broker.group", "in_use": None, "configured": "libvirt"},
            {"key": "run_dir", "in_use": str(config.run_dir), "configured": f"{directory}/elsewhere"},
        ]

    run(config, test, lambda: changed(config, {"group": "libvirt"}, run_dir=directory / "elsewhere"))


def test_a_configuration_that_cannot_be_read_keeps_nobody_from_following_the_intent(
    config: Config, directory: Path
) -> None:
    def load() -> Config:
        raise ConfigError("config.toml: not TOML")

    async def test(broker: Broker) -> None:
        broker._begin()
        (directory / "overlay.toml").write_text(INTENT + _VM.format(3, 13))
        status = await broker._reload()
        assert (status.vms, status.config_fault) == (4, "config.toml: not TOML")

    run(config, test, load)


def test_a_reload_that_ends_when_another_broker_has_taken_over_makes_nothing(config: Config, directory: Path) -> None:
    """It would take the sockets from the next broker."""

    async def test(broker: Broker) -> None:
        broker._begin()
        (directory / "overlay.toml").write_text(INTENT + _VM.format(3, 13))
        reload = asyncio.create_task(broker._reload())
        await asyncio.sleep(0)
        broker._predecessor.succeeded = True
        with pytest.raises(BrokerError, match="taken over"):
            await reload
        assert not (config.run_dir / "vhost/a/vm3.sock").exists()

    run(config, test)
