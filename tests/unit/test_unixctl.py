"""One command over a control socket, against servers that answer, refuse, hang, close or babble."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rpc import NoAnswer, listens
from ovs_hotswap.switch.unixctl import appctl

Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Listens on a socket and lets a function handle the one connection."""
    threads: list[threading.Thread] = []
    listener = socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory() as directory, listener:
        path = Path(directory) / "ctl"
        listener.bind(str(path))
        listener.listen(1)

        def start(handle: Callable[[socket.socket], None]) -> Path:
            def run() -> None:
                connection, _ = listener.accept()
                with connection:
                    handle(connection)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return path

        yield start
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def request(connection: socket.socket) -> dict[str, object]:
    message: dict[str, object] = json.loads(connection.recv(1 << 16))
    return message


def reply(connection: socket.socket, **parts: object) -> None:
    message = {"id": request(connection)["id"], "result": None, "error": None, **parts}
    connection.sendall(json.dumps(message).encode())


def until_closed(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_command_and_arguments_go_out_and_the_text_comes_back(serve: Serve) -> None:
    seen: list[dict[str, object]] = []

    def handle(connection: socket.socket) -> None:
        seen.append(request(connection))
        connection.sendall(json.dumps({"id": seen[0]["id"], "result": "fine\n", "error": None}).encode())

    assert appctl(serve(handle), "ovs/route/add", "10.0.0.0/8", "br0") == "fine\n"
    assert (seen[0]["method"], seen[0]["params"]) == ("ovs/route/add", ["10.0.0.0/8", "br0"])


def test_a_long_reply_is_read_to_its_end(serve: Serve) -> None:
    text = "port: vm\n" * 10_000
    assert appctl(serve(lambda connection: reply(connection, result=text)), "show") == text


def test_a_refusal_is_an_error_with_its_text(serve: Serve) -> None:
    path = serve(lambda connection: reply(connection, error='"x" is not a valid command\n'))
    with pytest.raises(SwitchError, match=r'ctl: x: "x" is not a valid command$'):
        appctl(path, "x")


def test_a_blocked_main_thread_ends_the_wait_at_the_deadline(serve: Serve) -> None:
    with pytest.raises(NoAnswer, match=r"ctl: version: no answer within 0\.05 s"):
        appctl(serve(until_closed), "version", timeout=0.05)


def test_half_an_answer_is_no_answer(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b'{"id": 0, "resu')
        until_closed(connection)

    with pytest.raises(NoAnswer):
        appctl(serve(handle), "version", timeout=0.05)


@pytest.mark.parametrize("junk", [b"", b"[]", b"nonsense", b'{"id": 0}'])
def test_a_connection_that_breaks_is_an_error(serve: Serve, junk: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(junk)

    with pytest.raises(SwitchError, match="before it answered"):
        appctl(serve(handle), "version", timeout=5)


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match=r"none: version: cannot connect: No such file or directory") as caught:
        appctl(tmp_path / "none", "version")
    assert caught.value.hint


def test_whether_a_process_listens_does_not_depend_on_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "ctl"
    assert not listens(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not listens(path)
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for each in waiting:  # nothing is accepted: the queue is full after some of them
            each.setblocking(False)
            each.connect_ex(str(path))
        assert listens(path)
        for each in waiting:
            each.close()
    assert not listens(path)
