"""A vhost-user front end for tests: what QEMU 7.2 and the guest in it do, in Python.

``FakeQemu`` listens on a socket, as QEMU with ``server=on`` does, and says what QEMU says in QEMU's order
(``hw/virtio/vhost.c``, ``hw/virtio/vhost-user.c``, ``hw/net/vhost_net.c``). Its guest's memory is a memfd with real
split rings; ``Guest`` is the driver on them and ``Traffic`` a thread that keeps guests sending.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Feature, ProtocolFeature, Request, RingAddress
from tests.support.vhost_rings import GuestRing, Layout, Shared, page_up

_USER_BASE = 0x7F0000000000
_REGION_STEP = 1 << 32
_SMALL_REGION = 1 << 16
_PF = 1 << Feature.PROTOCOL_FEATURES
# What a Linux guest takes of what OVS offers, and the protocol features that QEMU 7.2 knows and the broker may offer.
GUEST_FEATURES = sum(
    1 << bit for bit in (Feature.NET_MRG_RXBUF, Feature.NET_MQ, Feature.RING_EVENT_IDX, Feature.VERSION_1)
)
_QEMU_PROTOCOL = sum(
    1 << bit
    for bit in (
        ProtocolFeature.MQ, ProtocolFeature.LOG_SHMFD, ProtocolFeature.RARP, ProtocolFeature.REPLY_ACK,
        ProtocolFeature.NET_MTU, ProtocolFeature.STATUS,
    )
) | 1 << 5 | 1 << 12  # fmt: skip
_ACKNOWLEDGE_DRIVER_OK, _FEATURES_OK = 1 | 2 | 4, 8


class HungUp(Exception):
    """The broker closed the connection."""


class Guest:
    """The driver of all rings. Packets are numbered through from 0; ``received`` are those that came back."""

    def __init__(self, memory: memoryview, layouts: Sequence[Layout], guest_base: int) -> None:
        self.rings = [
            GuestRing(memory, layout, guest_base, writable=index % 2 == 0) for index, layout in enumerate(layouts)
        ]
        self.received: list[int] = []

    def send(self, first: int, count: int) -> int:
        """Offer up to ``count`` packets, spread over the TX rings; return how many there was room for."""
        sent = 0
        for _ in range(count):
            ring = self.rings[1 + 2 * ((first + sent) % (len(self.rings) // 2))]
            if not ring.room:
                break
            ring.post(first + sent)
            sent += 1
        return sent

    def turn(self) -> None:
        """Take back sent buffers, take received ones and offer these again."""
        for index, ring in enumerate(self.rings):
            values = ring.collect()
            if index % 2 == 0:
                self.received += values
                for _ in range(ring.room):
                    ring.post(0)

    @property
    def outstanding(self) -> int:
        return sum(ring.posted - ring.reclaimed for ring in self.rings[1::2])

    def close(self) -> None:
        for ring in self.rings:
            ring.close()


class FrontEnd:
    """QEMU's end of one vhost-user network device: listens on a socket and says what QEMU says.

    ``memory`` holds the rings ``layouts`` (a receive and a transmit ring for each queue pair) in its first
    ``main_region`` bytes, and what further regions need behind them; it is the caller's. ``features`` are those the
    guest would take; ``active_pairs`` those it enables (``ethtool -L``).
    """

    def __init__(
        self, path: Path, memory: Shared, layouts: Sequence[Layout], main_region: int, *,
        regions: int = 1, features: int = GUEST_FEATURES,
    ) -> None:  # fmt: skip
        self.path = path
        self.memory = memory
        self.layouts = list(layouts)
        self.pairs = len(layouts) // 2
        self.ring_size = layouts[0].size
        self.regions = regions
        self.wanted = features
        self.features = 0
        self.active_pairs = self.pairs
        self.guest_base = 0  # guest address of the first region
        self._main_region = main_region
        self._masked = [_eventfd() for _ in layouts]
        self._errors = [_eventfd() for _ in layouts]
        self.kicks = [_eventfd() for _ in layouts]
        self.calls = [_eventfd() for _ in layouts]
        self._listener: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._protocol = 0

    def close(self) -> None:
        """QEMU ends, and everything but the memory with it."""
        self.quit()
        for fd in (*self._masked, *self._errors, *self.kicks, *self.calls):
            os.close(fd)

    # -- connection

    def listen(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)

    def accept(self, timeout: float = 10.0) -> None:
        assert self._listener is not None
        self._listener.settimeout(timeout)
        self._socket, _ = self._listener.accept()
        self._socket.settimeout(timeout)

    def quit(self) -> None:
        """QEMU's process ends: every socket closes, the rings stay as they are."""
        for sock in (self._socket, self._listener):
            if sock is not None:
                sock.close()
        if self._listener is not None:
            self.path.unlink(missing_ok=True)
        self._socket = self._listener = None

    def filenos(self) -> tuple[int, int | None]:
        """The listening socket, and the connection if there is one, for a caller that waits for events on them."""
        assert self._listener is not None
        return self._listener.fileno(), None if self._socket is None else self._socket.fileno()

    def drop(self) -> None:
        """Close the connection after the peer has closed it, and continue to listen."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def wait_hung_up(self, timeout: float = 10.0) -> None:
        """Return once the broker has hung up; TimeoutError if it does not."""
        assert self._socket is not None
        self._socket.settimeout(timeout)
        with contextlib.suppress(ConnectionError):
            while self._socket.recv(4096):
                pass
        self._socket.close()
        self._socket = None

    @property
    def hung_up(self) -> bool:
        if self._socket is None:
            return True
        poller = select.poll()
        poller.register(self._socket, 0)
        return bool(poller.poll(0))

    def say(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are."""
        assert self._socket is not None
        try:
            if fds:
                socket.send_fds(self._socket, [data], list(fds))
            else:
                self._socket.sendall(data)
        except ConnectionError as error:
            raise HungUp from error

    def ask(self, request: Request, data: bytes | None = None, fds: Sequence[int] = ()) -> bytes:
        """Send a request and return the payload of its reply."""
        self.say(messages.build(request) if data is None else data, fds)
        header = self._read(messages.HEADER.size)
        number, flags, size = messages.HEADER.unpack(header)
        payload = self._read(size)
        if number != request or flags != messages.VERSION | messages.REPLY:
            raise AssertionError(f"reply to {request.name}: request {number}, flags {flags:#x}")
        return payload

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except ConnectionError as error:
                raise HungUp from error
            if not part:
                raise HungUp
            data += part
        return data

    def number(self, request: Request) -> int:
        return int(messages.U64.unpack(self.ask(request))[0])

    # -- what QEMU says

    def initialise(self) -> None:
        """``vhost_dev_init`` for each queue pair, then virtio-net's realize."""
        for pair in range(self.pairs):
            offered = self.number(Request.GET_FEATURES)
            if offered & _PF:
                self._protocol = self.number(Request.GET_PROTOCOL_FEATURES) & _QEMU_PROTOCOL
                self.say(messages.build_number(Request.SET_PROTOCOL_FEATURES, self._protocol))
                many = pair == 0 and self._speaks(ProtocolFeature.MQ)
                if many and self.number(Request.GET_QUEUE_NUM) < self.pairs:
                    raise AssertionError("fewer queue pairs offered than the device has")
            if pair == 0:
                self.say(messages.build(Request.SET_OWNER))
            self.features = self.number(Request.GET_FEATURES) & (self.wanted | _PF)
            for ring in (2 * pair, 2 * pair + 1):
                self._line(Request.SET_VRING_CALL, ring, self._masked[ring])
                self._line(Request.SET_VRING_ERR, ring, self._errors[ring])
        self._enable(1)

    def _speaks(self, bit: ProtocolFeature) -> bool:
        return bool(self._protocol >> bit & 1)

    def _line(self, request: Request, ring: int, fd: int | None) -> None:
        self.say(messages.build_ring_descriptor(request, ring, present=fd is not None), () if fd is None else (fd,))

    def _enable(self, pairs: int) -> None:
        """``virtio_net_set_queue_pairs``: peer_attach for the active pairs, peer_detach for the others."""
        for ring in range(2 * self.pairs):
            self.say(messages.build_ring_value(Request.SET_VRING_ENABLE, ring, int(ring < 2 * pairs)))

    def set_active_pairs(self, pairs: int) -> None:
        """The guest changes its number of queues while it runs."""
        self.active_pairs = pairs
        self._enable(pairs)

    def start_rings(self, bases: Sequence[int]) -> None:
        """The guest's driver has set up its rings and says DRIVER_OK: ``vhost_net_start``. ``bases``: where the back
        end continues in each ring."""
        self._enable(1)
        for pair in range(self.pairs):
            if pair < self.active_pairs:
                for ring in (2 * pair, 2 * pair + 1):
                    self.say(messages.build_ring_value(Request.SET_VRING_ENABLE, ring, 1))
            self.say(messages.build_number(Request.SET_FEATURES, self.features))
            if self._speaks(ProtocolFeature.STATUS):
                self._add_status(_FEATURES_OK)
            if pair == 0:
                self.share_memory()
            for ring in (2 * pair, 2 * pair + 1):
                self._start_ring(ring, bases[ring])
        if self._speaks(ProtocolFeature.STATUS):
            self._add_status(_ACKNOWLEDGE_DRIVER_OK)
        self._enable(self.active_pairs)

    def _add_status(self, bits: int) -> None:
        status = self.number(Request.GET_STATUS)
        if status & bits != bits:
            self.say(messages.build_number(Request.SET_STATUS, status | bits))

    def _start_ring(self, ring: int, base: int) -> None:
        self.say(messages.build_ring_value(Request.SET_VRING_NUM, ring, self.layouts[ring].size))
        self.say(messages.build_ring_value(Request.SET_VRING_BASE, ring, base))
        self.say(messages.build_ring_address(ring, self.address(ring)))
        self._line(Request.SET_VRING_KICK, ring, self.kicks[ring])
        self._line(Request.SET_VRING_CALL, ring, self.calls[ring])

    def address(self, ring: int) -> RingAddress:
        layout = self.layouts[ring]
        return RingAddress(
            0, _USER_BASE + layout.descriptors, _USER_BASE + layout.used, _USER_BASE + layout.available, 0
        )

    def used_indices(self) -> list[int]:
        """The used index of each ring, at which QEMU continues after a back end has died."""
        return [self.memory.view[at.used + 2 : at.used + 4].cast("H")[0] for at in self.layouts]

    def memory_table(self) -> bytes:
        """The payload of SET_MEM_TABLE: the region with the rings, and small ones behind it."""
        table = struct.pack("<QQQQ", self.guest_base, self._main_region, _USER_BASE, 0)
        for number in range(1, self.regions):
            offset = self._main_region + (number - 1) * _SMALL_REGION
            apart = number * _REGION_STEP
            table += struct.pack("<QQQQ", apart, _SMALL_REGION, _USER_BASE + apart, offset)
        return struct.pack("<II", self.regions, 0) + table

    def share_memory(self) -> None:
        acknowledged = self._speaks(ProtocolFeature.REPLY_ACK)
        flags = messages.VERSION | (messages.NEED_REPLY if acknowledged else 0)
        data = messages.build(Request.SET_MEM_TABLE, self.memory_table(), flags)
        fds = [self.memory.fd] * self.regions
        if not acknowledged:
            self.say(data, fds)
        elif messages.U64.unpack(self.ask(Request.SET_MEM_TABLE, data, fds))[0] != 0:
            raise AssertionError("SET_MEM_TABLE was refused")

    def change_memory(self, regions: int) -> None:
        """Memory is plugged or unplugged while the guest runs."""
        self.regions = regions
        self.share_memory()

    def stop_driver(self) -> list[int]:
        """``vhost_net_stop``: the guest resets its device, or is paused. Returns the rings' bases."""
        if self._speaks(ProtocolFeature.STATUS):
            self.say(messages.build_number(Request.SET_STATUS, 0))
        bases = []
        for ring in range(2 * self.pairs):
            payload = self.ask(Request.GET_VRING_BASE, messages.build_ring_value(Request.GET_VRING_BASE, ring, 0))
            index, base = messages.VRING_STATE.unpack(payload)
            if index != ring:
                raise AssertionError(f"GET_VRING_BASE of ring {ring}: reply for ring {index}")
            bases.append(base)
        return bases


class FakeQemu(FrontEnd):
    """One VM whose guest numbers its packets. Context manager.

    ``next_packet`` continues over reboots, so that the ledger of the switches has one line for every packet ever sent.
    """

    def __init__(
        self, path: Path, pairs: int = 1, ring_size: int = 256, regions: int = 2, features: int = GUEST_FEATURES
    ) -> None:
        layouts: list[Layout] = []
        for _ in range(2 * pairs):
            layouts.append(Layout.at(layouts[-1].end if layouts else 0, ring_size))
        main_region = page_up(layouts[-1].end)
        memory = Shared("guest", main_region + 8 * _SMALL_REGION)
        super().__init__(path, memory, layouts, main_region, regions=regions, features=features)
        self.next_packet = 0
        self.guest: Guest | None = None
        self.running = False
        self.lock = threading.Lock()  # between the traffic thread and a thread that resets the guest

    def __enter__(self) -> FakeQemu:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.guest is not None:
            self.guest.close()
        self.memory.close()

    def boot(self, timeout: float = 10.0) -> None:
        """From QEMU's start to a guest whose driver runs."""
        self.accept(timeout)
        self.initialise()
        self.start_driver()

    def start_driver(self, bases: Sequence[int] | None = None) -> None:
        """Start the guest's driver. If ``bases`` are given, QEMU continues with the rings as they are (stop and cont);
        otherwise they are new and empty."""
        if bases is None:
            with self.lock:
                if self.guest is not None:
                    self.guest.close()
                self.guest = Guest(self.memory.view, self.layouts, 0)
                self.guest.turn()
        self.start_rings([0] * 2 * self.pairs if bases is None else bases)
        with self.lock:
            self.running = True

    def stop_driver(self) -> list[int]:
        with self.lock:
            self.running = False
        return super().stop_driver()

    def reboot(self, features: int | None = None) -> None:
        """The guest lets its packets go, resets, and its driver starts again, with other ``features`` if given."""
        with self.lock:
            self.running = False
        self.drain()
        self.stop_driver()
        if features is not None:
            self.features = self.number(Request.GET_FEATURES) & (features | _PF)
        self.start_driver()

    # -- packets

    def send(self, count: int) -> int:
        with self.lock:
            if self.guest is None or not self.running:
                return 0
            self.guest.turn()
            sent = self.guest.send(self.next_packet, count)
            self.next_packet += sent
            return sent

    def drained(self) -> bool:
        """Whether the switch has taken every packet."""
        with self.lock:
            assert self.guest is not None
            self.guest.turn()
            return self.guest.outstanding == 0

    def drain(self, timeout: float = 10.0) -> None:
        """Wait until the switch has taken every packet; AssertionError if it does not."""
        end = time.monotonic() + timeout
        while not self.drained():
            if time.monotonic() > end:
                raise AssertionError(f"{self.path.name}: packets left after {timeout:g} s: the VM is cut off")
            time.sleep(0.001)


class Traffic:
    """A thread that keeps VMs sending, ``burst`` packets each at a time. Context manager; raises what went wrong."""

    def __init__(self, vms: Sequence[FakeQemu], limit: int, burst: int = 8, pause_s: float = 0.0005) -> None:
        self._vms = vms
        self._limit = limit
        self._burst = burst
        self._pause_s = pause_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._ending.wait(self._pause_s):
                for vm in self._vms:
                    vm.send(min(self._burst, self._limit - vm.next_packet))
        except BaseException as error:  # noqa: BLE001 - raised again by __exit__
            self.error = error

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)
        if self.error is not None and kind is None:
            raise self.error


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
