"""The broker's end of its control socket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker.control.server import ControlServer
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BrokerError

_INSTANCES = "".join(f'[instances.{x}]\npmd_cores = [0]\nuplink_devargs = "net_null_{x}"\n' for x in "ab")


@pytest.fixture
def config() -> Iterator[Config]:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is too long for a socket
        path = Path(name) / "config.toml"
        places = f'overlay = "{name}/overlay.toml"\nrun_dir = "{name}"\n'
        path.write_text(f"{places}{_INSTANCES}")
        yield load_config(path)


def test_a_caller_who_comes_at_its_end_is_left_to_the_next_broker(config: Config) -> None:
    """The listening socket outlives the process; callers that have not been accepted wait there."""
    control_server = ControlServer(config, {}, None)

    async def scenario(client: socket.socket) -> list[object]:
        loop, raised = asyncio.get_running_loop(), list[object]()
        loop.set_exception_handler(lambda _, context: raised.append(context))
        serving = control_server.open()
        await asyncio.sleep(0)
        client.connect(str(config.broker_socket))
        loop.call_soon(serving.cancel)  # before the loop has seen the caller
        for _ in range(3):
            await asyncio.sleep(0)
        assert serving.cancelled()
        return raised

    assert control_server.listener is not None
    with control_server.listener, socket.socket(socket.AF_UNIX) as client:
        assert asyncio.run(scenario(client)) == []
        connection, _ = control_server.listener.accept()
        connection.close()


def test_a_method_can_see_that_its_caller_has_hung_up(config: Config) -> None:
    """One who has only closed the way to the broker still waits for his answer."""
    seen: list[bool] = []

    async def ask(gone: Callable[[], bool]) -> None:
        seen.append(gone())
        client.shutdown(socket.SHUT_WR)
        seen.append(gone())
        client.close()
        seen.append(gone())

    async def scenario() -> None:
        serving = control_server.open()
        client.setblocking(False)
        client.connect(str(config.broker_socket))
        client.sendall(b'{"method": "ask"}\n')
        while len(seen) < 3:
            await asyncio.sleep(0)
        serving.cancel()

    control_server = ControlServer(config, {"ask": ask}, None)
    assert control_server.listener is not None
    with control_server.listener, socket.socket(socket.AF_UNIX) as client:
        asyncio.run(asyncio.wait_for(scenario(), 10))
    assert seen == [False, False, True]


@pytest.mark.parametrize("given", ["gone", "descriptors"])
def test_what_comes_beside_a_request_cannot_be_in_it(config: Config, given: str) -> None:
    async def ask(**_: object) -> None:
        raise AssertionError("called")

    async def scenario() -> bytes:
        serving = control_server.open()
        reader, writer = await asyncio.open_unix_connection(str(config.broker_socket))
        writer.write(json.dumps({"method": "ask", "params": {given: []}}).encode() + b"\n")
        answer = await reader.readline()
        writer.close()
        serving.cancel()
        return answer

    control_server = ControlServer(config, {"ask": ask}, None)
    assert control_server.listener is not None
    with control_server.listener:
        answer = json.loads(asyncio.run(asyncio.wait_for(scenario(), 10)))
    assert answer["error"]["message"] == f"{given}: not a parameter of a request"


def test_a_control_socket_that_cannot_be_made_is_made_when_it_can_be(config: Config) -> None:
    """The disk of run_dir has no room for the socket when a broker continues with the VMs of one that was killed."""
    config.broker_socket.mkdir()  # in its place
    with pytest.raises(BrokerError, match="directory"):
        ControlServer(config, {}, None)
    control_server = ControlServer(config, {}, None, needed=False)

    async def scenario() -> None:
        serving = control_server.open()
        await asyncio.sleep(0)
        config.broker_socket.rmdir()
        while control_server.listener is None:
            await asyncio.sleep(0.01)
        _, writer = await asyncio.open_unix_connection(str(config.broker_socket))
        writer.close()
        serving.cancel()
        control_server.listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize(("level", "traced"), [(logging.DEBUG, True), (logging.INFO, False)])
def test_a_request_is_logged_with_its_duration_at_level_debug(
    config: Config, caplog: pytest.LogCaptureFixture, level: int, traced: bool
) -> None:
    async def good() -> int:
        return 1

    async def scenario() -> None:
        serving = control_server.open()
        client.setblocking(False)
        client.connect(str(config.broker_socket))
        loop = asyncio.get_running_loop()
        for line in (b'{"method": "good"}\n', b'{"method": "bad"}\n'):
            client.sendall(line)
            await loop.sock_recv(client, 1 << 16)
        serving.cancel()

    with caplog.at_level(level, "ovs_hotswap.broker.control.server"):
        control_server = ControlServer(config, {"good": good}, None)
        assert control_server.listener is not None
        with control_server.listener, socket.socket(socket.AF_UNIX) as client:
            asyncio.run(asyncio.wait_for(scenario(), 10))
    who = rf"asked by user {os.getuid()}, process {os.getpid()}"
    expected = [
        rf'control: {{"method": "good"}} {who}: answered after \d+\.\d{{3}} ms',
        rf'control: {{"method": "bad"}} {who}: refused \(BrokerError: no method .*\) after \d+\.\d{{3}} ms',
    ]
    assert len(caplog.messages) == (len(expected) if traced else 0)
    assert all(re.fullmatch(text, found) for text, found in zip(expected, caplog.messages, strict=False))
