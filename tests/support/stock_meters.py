"""Two meters of an outside host, run as programs until the end of their standard input. Each prints one JSON object.

``stock_meters.py flood RATE ADDRESS``: ICMP echo requests with sequence numbers, RATE a second.
``stock_meters.py tcp ADDRESS PORT``: a connection on which 64 bytes are sent every 10 ms and are expected back.

The meters need no module of this project, so that any Python can run them in any network namespace. Neither sends in a
burst after it has waited for a core: the loss would be that of a queue's length.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from itertools import pairwise

_ECHO, _REPLY = 8, 0
_IP_HEADER = 20
_PATIENCE_S = 1.0  # for answers after the last request
_TOTAL_RETRANSMISSIONS = 100  # offset of tcpi_total_retrans in struct tcp_info, include/uapi/linux/tcp.h
_MESSAGE = b"\5" * 64
_PERIOD_S = 0.01


def checksum(data: bytes) -> int:
    """The checksum of RFC 1071 for an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request whose payload begins with the whole sequence number."""
    body = struct.pack(">HHI", identifier, sequence & 0xFFFF, sequence) + bytes(56)
    return struct.pack(">BBH", _ECHO, 0, checksum(struct.pack(">BBH", _ECHO, 0, 0) + body)) + body


def judge(sent: int, answers: list[tuple[int, float]]) -> dict[str, float]:
    """What became of the requests 0 to ``sent`` - 1. ``answers``: sequence numbers with the time of their arrival in
    seconds, in the order of arrival. ``longest_gap_ms``: the longest time between two arrivals."""
    numbers = [number for number, _ in answers]
    distinct = set(numbers)
    return {
        "sent": sent,
        "lost": sent - len(distinct),
        "doubled": len(numbers) - len(distinct),
        "reordered": sum(later < earlier for earlier, later in pairwise(numbers)),
        "longest_gap_ms": max((b - a for (_, a), (_, b) in pairwise(answers)), default=0.0) * 1e3,
    }


def _stdin_ended(timeout: float) -> bool:
    return bool(select.select([0], [], [], timeout)[0]) and not os.read(0, 1)


def flood(rate: float, address: str) -> dict[str, float]:
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    identifier = os.getpid() & 0xFFFF
    answers: list[tuple[int, float]] = []

    def take(timeout: float) -> bool:
        """Take the answers that are there; return whether standard input may have ended."""
        ready = select.select([link.fileno(), 0], [], [], timeout)[0]
        while link in select.select([link], [], [], 0)[0]:
            packet = link.recv(2048)
            if packet[_IP_HEADER] == _REPLY and struct.unpack_from(">H", packet, _IP_HEADER + 4)[0] == identifier:
                answers.append((struct.unpack_from(">I", packet, _IP_HEADER + 8)[0], time.perf_counter()))
        return 0 in ready

    sent, due = 0, time.perf_counter()
    while not (take(max(0.0, due - time.perf_counter())) and _stdin_ended(0)):
        now = time.perf_counter()
        if now >= due:
            link.sendto(request(identifier, sent), (address, 0))
            sent, due = sent + 1, max(due + 1 / rate, now)
    end = time.perf_counter() + _PATIENCE_S
    while len({number for number, _ in answers}) < sent and time.perf_counter() < end:
        if select.select([link], [], [], 0.1)[0]:
            take(0)
    return judge(sent, answers)


def tcp(address: str, port: int) -> dict[str, object]:
    link = socket.create_connection((address, port), 5)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = echoed = 0
    ended: str | None = None
    due = last = time.perf_counter()
    longest = 0.0
    watched = [link.fileno(), 0]
    stop = float("inf")
    try:
        while (now := time.perf_counter()) < stop and (0 in watched or echoed < sent):
            if 0 in watched and now >= due:
                link.sendall(_MESSAGE)
                sent, due = sent + len(_MESSAGE), max(due + _PERIOD_S, now)
            ready = select.select(watched, [], [], min(_PERIOD_S, max(0.001, due - now)))[0]
            if 0 in ready and not os.read(0, 1):
                watched.remove(0)
                stop = time.perf_counter() + _PATIENCE_S
            if link.fileno() in ready:
                if not (data := link.recv(65536)):
                    raise ConnectionError("closed by the guest")
                now = time.perf_counter()
                longest, last, echoed = max(longest, now - last), now, echoed + len(data)
    except OSError as error:
        ended = str(error)
    waited = time.perf_counter() - last if echoed < sent else 0.0
    info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return {
        "sent": sent,
        "echoed": echoed,
        "ended": ended,
        "longest_stall_ms": max(longest, waited) * 1e3,
        "retransmissions": struct.unpack_from("I", info, _TOTAL_RETRANSMISSIONS)[0],
    }


if __name__ == "__main__":
    found = flood(float(sys.argv[2]), sys.argv[3]) if sys.argv[1] == "flood" else tcp(sys.argv[2], int(sys.argv[3]))
    print(json.dumps(found))
