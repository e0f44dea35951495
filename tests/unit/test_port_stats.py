"""Port statistics over OpenFlow, against a bridge that exists only as a socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ovs_hotswap.counters.texts import LOCAL_PORT
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.port_stats import PortStatistics, parse
from ovs_hotswap.switch.rpc import NoAnswer

HELLO, ERROR, ECHO, ECHO_REPLY, REQUEST, REPLY = 0, 1, 2, 3, 18, 19
NOTHING = (1 << 64) - 1
NAMES = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
Say = Callable[[int, int, int, bytes], bytes]


def message(kind: int, xid: int, body: bytes = b"", version: int = 5) -> bytes:
    return struct.pack("!BBHI", version, kind, 8 + len(body), xid) + body


def custom(counters: Mapping[str, int], announced: int | None = None) -> bytes:
    body = b"".join(bytes([len(name)]) + name.encode() + struct.pack("!Q", value) for name, value in counters.items())
    length, count = 16 + len(body), len(counters) if announced is None else announced
    head = struct.pack("!HHII2xH", 0xFFFF, length, 0xAA01, 2, count)
    return head + body + bytes(-length % 8)


def ethernet() -> bytes:
    return struct.pack("!HH4x4Q", 0, 40, 1, 2, 3, 4)


def port(number: int, counts: tuple[int, ...] = (0,) * 8, properties: bytes = b"") -> bytes:
    return struct.pack("!H2xIII8Q", 80 + len(properties), number, 9, 9, *counts) + properties


def part(body: bytes, *, more: bool = False) -> bytes:
    return struct.pack("!HH4x", 4, more) + body


def test_each_port_has_its_counters_under_the_names_of_the_database() -> None:
    body = (
        port(1, tuple(range(1, 9)), ethernet() + custom({"rx_missed_errors": 7, "rx_q0_packets": 1 << 40}))
        + port(0xFFFFFFFE, (NOTHING,) * 8)
    )  # fmt: skip
    assert parse(body) == {
        1: {**dict(zip(NAMES, range(1, 9), strict=True)), "rx_missed_errors": 7, "rx_q0_packets": 1 << 40},
        LOCAL_PORT: {},
    }
    assert parse(b"") == {}


def test_the_answer_of_a_real_switch_is_understood() -> None:
    """Two VMs, an uplink, a tunnel and the bridge's own port, while the VMs sent each other bursts."""
    found = parse((Path(__file__).parent / "answers" / "bursts" / "ports-3.1.bin").read_bytes())
    assert sorted(found) == [1, 2, 10, 11, LOCAL_PORT]
    assert found[10]["ovs_tx_failure_drops"] > found[10]["ovs_tx_retries"] > 0
    assert found[10]["rx_packets"] == found[10]["rx_q0_good_packets"] > 0
    assert found[1]["rx_missed_errors"] == 0
    assert "rx_dropped" not in found[2], "a tunnel does not count that"


def test_properties_of_others_are_skipped() -> None:
    other = struct.pack("!HHII", 0xFFFF, 12, 0x2320, 1) + bytes(4)
    rfc2819 = struct.pack("!HHII4x", 0xFFFF, 16, 0xAA01, 1)
    assert parse(port(1, (5,) * 8, other + rfc2819 + custom({"a": NOTHING, "b": 2})))[1]["b"] == 2
    assert "a" not in parse(port(1, (5,) * 8, custom({"a": NOTHING})))[1], "it is not counted"


@pytest.mark.parametrize(
    "body",
    [
        port(1)[:-1], port(1) + b"\0" * 7, struct.pack("!H2xIII8Q", 79, 1, 0, 0, *(0,) * 8),
        port(1, properties=struct.pack("!HH4x", 7, 3)), port(1, properties=b"\0\0"),
        port(1, properties=custom({"a": 1}, announced=2)),
        port(1, properties=struct.pack("!HHII2xH", 0xFFFF, 24, 0xAA01, 2, 1) + b"\x08abcdefg"),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(body)


class Bridge:
    """Takes one connection after the other, says hello, and answers each message with what ``say`` returns."""

    def __init__(self, path: Path, say: Say, hello: bytes = message(HELLO, 1)) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self._say, self._hello = say, hello
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has heard enough
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(self._hello)
        while head := connection.recv(8, socket.MSG_WAITALL):
            version, kind, length, xid = struct.unpack("!BBHI", head)
            body = connection.recv(length - 8, socket.MSG_WAITALL) if length > 8 else b""
            self.heard.append((kind, body))
            answer = self._say(version, kind, xid, body)
            if answer == b"end":
                return
            connection.sendall(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Callable[..., tuple[Path, Bridge]]]:
    made: list[Bridge] = []

    def make(say: Say, hello: bytes = message(HELLO, 1)) -> tuple[Path, Bridge]:
        path = tmp_path / "br0.mgmt"
        made.append(Bridge(path, say, hello))
        return path, made[-1]

    yield make
    for each in made:
        each.close()


def answering(*parts: bytes, before: bytes = b"") -> Say:
    def say(version: int, kind: int, xid: int, body: bytes) -> bytes:
        if kind != REQUEST:
            return b""
        return before + b"".join(message(REPLY, xid, each) for each in parts)

    return say


Make = Callable[..., tuple[Path, Bridge]]


def test_all_ports_are_asked_for_or_one(bridge: Make) -> None:
    path, there = bridge(answering(part(port(1, (3,) * 8))))
    with PortStatistics(path) as statistics:
        assert statistics.read()[1]["rx_packets"] == 3
        assert statistics.read(7)[1]["tx_errors"] == 3
    asked = [body for kind, body in there.heard if kind == REQUEST]
    assert asked == [struct.pack("!HH4xI4x", 4, 0, number) for number in (0xFFFFFFFF, 7)]


def test_an_answer_in_parts_is_put_together_and_other_messages_are_skipped(bridge: Make) -> None:
    whole = port(1, (3,) * 8) + port(2, (4,) * 8)
    other = message(12, 0, b"a port has changed") + message(REPLY, 999, part(port(9))) + message(ECHO, 5, b"there?")
    path, there = bridge(answering(part(whole[:100], more=True), part(whole[100:]), before=other))
    with PortStatistics(path) as statistics:
        assert sorted(statistics.read()) == [1, 2]
    there.close()
    assert (ECHO_REPLY, b"there?") in there.heard


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda version, kind, xid, body: message(ERROR, xid, b"\0\1") if kind == REQUEST else b"", "refuses"),
        (answering(part(port(1)[:-1])), "not an answer of OpenFlow"),
        (answering(b"\0"), "not an answer of OpenFlow"),
        (lambda version, kind, xid, body: b"end" if kind == REQUEST else b"", "closed the connection"),
    ],
)
def test_what_goes_wrong_is_named(bridge: Make, say: Say, words: str) -> None:
    path, _ = bridge(say)
    with PortStatistics(path) as statistics, pytest.raises(SwitchError, match=words) as caught:
        statistics.read()
    assert str(path) in caught.value.message


def test_silence_is_no_answer(bridge: Make) -> None:
    path, _ = bridge(lambda version, kind, xid, body: b"")
    with PortStatistics(path, timeout=0.05) as statistics, pytest.raises(NoAnswer, match=r"within 0\.05 s"):
        statistics.read()


def test_a_bridge_of_an_older_openflow_is_refused(bridge: Make) -> None:
    path, _ = bridge(answering(), hello=message(HELLO, 1, version=4))
    with pytest.raises(SwitchError, match=r"neither OpenFlow 1\.4 nor 1\.5") as caught, PortStatistics(path):
        pass
    assert "protocols" in str(caught.value.hint)


def bitmap(*versions: int) -> bytes:
    return struct.pack("!HHI", 1, 8, sum(1 << version for version in versions))


@pytest.mark.parametrize(
    ("hello", "agreed"),
    [
        (message(HELLO, 1, bitmap(1, 4, 5), version=5), 5), (message(HELLO, 1, bitmap(1, 6), version=6), 6),
        (message(HELLO, 1, bitmap(4, 5, 6), version=6), 6), (message(HELLO, 1, version=5), 5),
        (message(HELLO, 1, version=6), 6), (message(HELLO, 1, bitmap(1, 7), version=7), None),
        (message(HELLO, 1, struct.pack("!HHI", 9, 8, 0), version=6), 6),
    ],
)  # fmt: skip
def test_the_highest_version_that_both_speak_is_spoken(bridge: Make, hello: bytes, agreed: int | None) -> None:
    spoken: list[int] = []

    def say(version: int, kind: int, xid: int, body: bytes) -> bytes:
        spoken.append(version)
        return message(REPLY, xid, part(b""), version) if kind == REQUEST else b""

    path, there = bridge(say, hello=hello)
    if agreed is None:
        with pytest.raises(SwitchError, match="neither"), PortStatistics(path):
            pass
        return
    with PortStatistics(path) as statistics:
        assert statistics.read() == {}
    assert spoken[-1] == agreed
    assert there.heard[0] == (HELLO, bitmap(5, 6))


def test_a_bridge_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match="No such file"), PortStatistics(tmp_path / "br0.mgmt"):
        pass
