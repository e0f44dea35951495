"""The meters of stock hosts count what is lost, doubled and reordered, and say how a connection ended."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from ovs_hotswap.lab.pings import Reply
from tests.support.stock_meters import checksum, judge, request
from tests.support.stock_traffic import METERS, Connection, Counts, Judgement, reordered


def test_a_request_has_a_right_checksum() -> None:
    assert checksum(request(0x1234, 70_000)) == 0


@pytest.mark.parametrize(
    ("arrived", "lost", "doubled", "late"),
    [([0, 1, 2, 3], 0, 0, 0), ([0, 2, 3], 1, 0, 0), ([0, 1, 1, 2, 3], 0, 1, 0), ([0, 2, 1, 3], 0, 0, 1), ([], 4, 0, 0)],
)
def test_each_fault_of_a_stream_is_counted(arrived: list[int], lost: int, doubled: int, late: int) -> None:
    found = judge(4, [(number, place * 0.5) for place, number in enumerate(arrived)])
    assert (found["lost"], found["doubled"], found["reordered"]) == (lost, doubled, late)
    assert found["longest_gap_ms"] == (500.0 if arrived else 0.0)


def test_answers_of_a_guest_that_has_rebooted_are_not_reordered() -> None:
    assert reordered([Reply(1, 7, 1.0), Reply(1, 8, 1.0), Reply(2, 1, 1.0)]) == 0
    assert reordered([Reply(1, 8, 1.0), Reply(1, 7, 1.0)]) == 1


@pytest.mark.parametrize(
    "changes",
    [{"lost": 1}, {"doubled": 1}, {"reordered": 1}, {"sent": 0}],
)
def test_each_fault_of_a_stream_is_told(changes: dict[str, int]) -> None:
    numbers = {"sent": 10, "lost": 0, "doubled": 0, "reordered": 0, "longest_gap_ms": 1.0}
    assert Judgement((Counts("s", **numbers),), None).faults() == []  # type: ignore[arg-type]
    assert len(Judgement((Counts("s", **numbers | changes),), None).faults()) == 1  # type: ignore[arg-type]


def test_a_link_that_changed_is_told() -> None:
    assert Judgement((), None, {"vm1": 0, "vm2": 2}).faults() == ["vm2: 2 changes of the link"]


def echo(link: socket.socket) -> None:
    while data := link.recv(65536):
        link.sendall(data)


def swallow(link: socket.socket) -> None:
    while link.recv(65536):
        pass


def reset(link: socket.socket) -> None:
    link.recv(64)
    link.close()


@pytest.mark.parametrize(("peer", "intact"), [(echo, True), (swallow, False), (reset, False)])
def test_the_connection_is_intact_only_if_all_came_back(peer: Callable[[socket.socket], None], intact: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            link, _ = server.accept()
            with link:
                peer(link)

        thread = threading.Thread(target=serve)
        thread.start()
        meter = subprocess.Popen(
            [sys.executable, "-P", str(METERS), "tcp", "127.0.0.1", str(server.getsockname()[1])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if peer is reset:
            meter.wait(20)
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                meter.wait(0.5)
        out, _ = meter.communicate("", 20)
        thread.join()
    found = Connection(**json.loads(out))
    assert found.intact is intact
    assert (found.ended is not None) is (peer is reset)
