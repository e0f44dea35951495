"""Counts the guests' echo requests as they arrive at the remote VXLAN device, the far end of the overlay.

A ring that two switches served would send a request twice. The guests themselves cannot distinguish this from an answer
that reached them twice, so it is counted here. Each request carries its number and the time at which it was made
(guest-ping.pl). No other request has the same two, even after the guest has been started again.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from pyroute2 import netns

from ovs_hotswap.lab.layout import REMOTE_INNER, VXLAN_DEVICE

_ETH_P_IP = 0x0800
_ETHERNET = 14  # bytes of the header
_ICMP, _ECHO = 1, 8
_OUTGOING = 4  # PACKET_OUTGOING, packet(7)
_POLL_S = 0.2
_REMOTE = socket.inet_aton(REMOTE_INNER)


class Count:
    """``requests``: the number of different requests. ``doubled``: the number of repeated requests, by the sender's
    address."""

    def __init__(self) -> None:
        self.requests = 0
        self.doubled: dict[str, int] = {}
        self._seen: set[bytes] = set()

    def take(self, frame: bytes) -> None:
        """Take an Ethernet frame with an IPv4 packet (RFC 791, 792)."""
        packet = frame[_ETHERNET:]
        message = packet[(packet[0] & 0x0F) * 4 :]
        if packet[9] != _ICMP or message[0] != _ECHO or packet[16:20] != _REMOTE:
            return
        sender = packet[12:16]
        request = sender + message[8:20]  # number and time
        if request in self._seen:
            name = socket.inet_ntoa(sender)
            self.doubled[name] = self.doubled.get(name, 0) + 1
        else:
            self._seen.add(request)
            self.requests += 1


class Requests:
    """Counts echo requests on the remote VXLAN device of the lab in ``namespace``, while entered."""

    def __init__(self, namespace: str) -> None:
        self._count = Count()
        self._socket = _listen(namespace)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def begin(self) -> None:
        """Start to count from zero."""
        self._count = Count()

    @property
    def count(self) -> Count:
        """What has arrived since ``begin``."""
        return self._count

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                frame, address = self._socket.recvfrom(2048)
                if address[2] != _OUTGOING:
                    self._count.take(frame)


def _listen(namespace: str) -> socket.socket:
    """A packet socket in another namespace. A thread that ends makes it, so that no thread has to change back."""
    opened: list[socket.socket] = []

    def enter() -> None:
        netns.setns(namespace)
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        listener.bind((VXLAN_DEVICE, _ETH_P_IP))
        listener.settimeout(_POLL_S)
        opened.append(listener)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return opened[0]
