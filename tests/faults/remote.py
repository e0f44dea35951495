"""What arrives at the far end of the overlay, request by request: the guests' echo requests on the remote VXLAN device.

A ring that two switches served would send a request twice. The guests themselves cannot tell that from an answer that
reached them twice, so it is counted here. Each request carries its number and the time it was made (guest-ping.pl),
which no other request shares, also not after the guest has been started again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter

from pyroute2 import netns

from ovs_hotswap.lab.layout import REMOTE_INNER, VXLAN_DEVICE

_ETH_P_IP = 0x0800
_ICMP, _ECHO = 1, 8
_OUTGOING = 4  # PACKET_OUTGOING, packet(7)
_POLL_S = 0.2
_REMOTE = socket.inet_aton(REMOTE_INNER)


class Requests:
    """Counts echo requests on the lab's remote VXLAN device while entered."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._seen: dict[bytes, set[bytes]] = {}
        self._doubled: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)
        self._socket = self._open()

    def _open(self) -> socket.socket:
        """In a thread of its own: entering a namespace is for the whole life of that thread."""
        opened: list[socket.socket] = []

        def enter() -> None:
            netns.setns(self._namespace)
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            sniffer.bind((VXLAN_DEVICE, _ETH_P_IP))
            sniffer.settimeout(_POLL_S)
            opened.append(sniffer)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return opened[0]

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def begin(self) -> None:
        """Count from now on."""
        with self._lock:
            self._seen.clear()
            self._doubled.clear()

    def doubled(self) -> dict[str, int]:
        """Requests that came more than once since ``begin``, by the sender's address."""
        with self._lock:
            return dict(self._doubled)

    def counted(self) -> int:
        """Different requests since ``begin``."""
        with self._lock:
            return sum(map(len, self._seen.values()))

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                frame, address = self._socket.recvfrom(2048)
                if address[2] != _OUTGOING:
                    self.take(frame)

    def take(self, frame: bytes) -> None:
        """One Ethernet frame with an IPv4 packet (RFC 791, 792)."""
        packet = frame[14:]
        header = (packet[0] & 0x0F) * 4
        if packet[9] != _ICMP or packet[header] != _ECHO or packet[16:20] != _REMOTE:
            return
        sender, request = packet[12:16], packet[header + 8 : header + 20]  # number and time
        with self._lock:
            known = self._seen.setdefault(sender, set())
            if request in known:
                self._doubled[socket.inet_ntoa(sender)] += 1
            known.add(request)
