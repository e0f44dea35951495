"""QEMUs are called whatever else goes wrong."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control.server import ControlServer
from ovs_hotswap.broker.mover import Mover
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.predecessor import Predecessor
from ovs_hotswap.broker.qemu_connector import Reach
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.model import Side
from tests.support.front_end import BITS, Bench
from tests.support.shortage import few_descriptors


@pytest.fixture
def config() -> Iterator[Config]:
    with tempfile.TemporaryDirectory() as directory:  # short: the path of a socket has 108 bytes
        path = Path(directory) / "config.toml"
        instances = "".join(f'[instances.{x}]\npmd_cores = [0]\nuplink_devargs = "{x}"\n' for x in "ab")
        path.write_text(f'overlay = "{directory}/overlay.toml"\nrun_dir = "{directory}/run"\n{instances}')
        yield load_config(path)


def test_a_fault_of_what_is_done_before_does_not_end_it(config: Config) -> None:
    rounds = 0

    def first() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise PermissionError("a file that cannot be removed")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        control_server, keeping = ControlServer(config, {}, None), StateSaver(loop, {}, keeps=False)
        assert control_server.listener is not None
        with control_server.listener:
            passing = Predecessor(loop, config, None, {}, keeping, control_server, Changes(), lambda: None)
            calling = loop.create_task(Reach(Settings(config), {}, keeping, passing).forever(first))
            async with asyncio.timeout(10):
                while rounds < 2:
                    await asyncio.sleep(0.01)
            calling.cancel()

    asyncio.run(scenario())


def test_a_fault_of_one_vm_keeps_no_other_qemu_from_being_called(config: Config) -> None:
    """The time at which the first VM's QEMU is to be called is none."""
    called: list[str] = []
    benches = [Bench(), Bench()]
    for bench in benches:
        bench.connect(Side.A)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        slots = {name: VmSlot(bench.vm, cast(Mover, None), {}, {}) for name, bench in zip("ab", benches, strict=True)}
        slots["a"].retry_at = cast(Any, None)
        control_server, keeping = ControlServer(config, {}, None), StateSaver(loop, {}, keeps=False)
        assert control_server.listener is not None
        with control_server.listener:
            passing = Predecessor(loop, config, None, slots, keeping, control_server, Changes(), lambda: None)
            calling = loop.create_task(Reach(Settings(config), slots, keeping, passing).forever(lambda: None))
            async with asyncio.timeout(10):
                while slots["b"].vm.absence is None:
                    await asyncio.sleep(0.01)
            called.extend(name for name, slot in slots.items() if slot.vm.absence is not None)
            calling.cancel()

    asyncio.run(scenario())
    for bench in benches:
        bench.close()
    assert called == ["b"]


def test_a_qemu_is_heard_though_descriptors_are_short_when_it_comes() -> None:
    bench = Bench()
    bench.connect(Side.A)
    here, there = socket.socketpair()
    with here:
        with few_descriptors(0):
            bench.vm.connected(there)
        assert bench.vm.offered is not None
        bench.vm.drop_qemu("the end")
    bench.plug(speaks_pf=True, protocol=0, bits=BITS, owner_first=True)
    bench.close()
