"""One vhost-user back end for tests: what OVS's ``dpdkvhostuserclient`` port does, in Python.

It takes messages with DPDK 22.11's semantics (``lib/vhost/vhost_user.c``), moves packets and records which guest
rings it touched when. ``vhost_switch`` runs any number of them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.messages import Descriptor, Feature, Request
from tests.support.vhost_rings import Ledger, RingView, Touches

# What OVS 3.1 on DPDK 22.11 offers, near enough: mergeable buffers, multi-queue, indirect descriptors, event index.
FEATURES = sum(
    1 << bit
    for bit in (
        Feature.NET_MRG_RXBUF, Feature.NET_CTRL_VQ, Feature.NET_CTRL_RX, Feature.NET_GUEST_ANNOUNCE, Feature.NET_MQ,
        Feature.LOG_ALL, Feature.ANY_LAYOUT, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX,
        Feature.PROTOCOL_FEATURES, Feature.VERSION_1, Feature.IN_ORDER,
    )
) | 1 << 34  # RING_PACKED, which the broker must mask  # fmt: skip
PROTOCOL_FEATURES = messages.CARRIED_PROTOCOL_FEATURES | 1 << 5 | 1 << 12  # back-end requests, inflight: to be masked
_BURST = 32
_CONTROL_BATCH = 64
_DRIVER_OK = 4


@dataclass(frozen=True)
class SwitchSpec:
    """``sockets[k]`` is the broker's socket for VM ``k``. ``idle_s``: sleep of the one PMD when nothing moved.
    ``echo``: what a guest sends comes back to it on the same queue pair, if it has offered a buffer. ``unmapped``: so
    many memory tables with more regions than the one before cannot be mapped."""

    sockets: Sequence[str]
    features: int = FEATURES
    protocol_features: int = PROTOCOL_FEATURES
    queue_pairs: int = 128
    reconnect_s: float = 0.05
    idle_s: float = 0.0002
    echo: bool = True
    unmapped: int = 0


@dataclass
class _Ring:
    size: int = 0
    next: int = 0  # last_avail_idx, and last_used_idx: the data path is synchronous
    place: messages.RingAddress | None = None
    view: RingView | None = None
    kick: Descriptor | None = None
    call: Descriptor | None = None
    kicked: bool = False
    called: bool = False
    enabled: bool = False
    span: int | None = None

    @property
    def ready(self) -> bool:
        return self.view is not None and self.kicked and self.called and self.enabled


@dataclass
class _Mapped:
    region: messages.Region
    map: mmap.mmap
    view: memoryview


class Port:
    """One vhost-user device."""

    def __init__(self, vm: int, spec: SwitchSpec, ledger: Ledger, touches: Touches) -> None:
        self.vm = vm
        self.spec = spec
        self._ledger = ledger
        self._touches = touches
        self._reader = messages.FrameReader()
        self.socket: socket.socket | None = None
        # A closed connection of which another process has a duplicate would stay in an epoll set.
        self.closing: Callable[[socket.socket], object] = lambda _: None
        self.retry_at = 0.0
        self.rings: list[_Ring] = []
        self.memory: list[_Mapped] = []
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.running = False
        self.rarps = 0
        self.unmapped = spec.unmapped
        self.refused: str | None = None  # why it hung up last, if that was on something it was told
        self.fences = -1  # so many more fences are answered before this process sends itself ``signal``; -1: all
        self.signal = 0
        self.arrived: deque[bytes] = deque()  # frames for the VM, with their headers

    # -- connection

    def connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.spec.sockets[self.vm])
        except OSError:
            sock.close()
            self.retry_at = time.monotonic() + self.spec.reconnect_s
            return False
        sock.setblocking(False)
        self.socket = sock
        return True

    def hang_up(self) -> None:
        """End a connection like ``vhost_user_read_cb``: close the socket first, then the device. The next connection
        is taken only after both."""
        if self.socket is not None:
            self.closing(self.socket)
            self.socket.close()
            self.socket = None
        self.running = False
        for ring in self.rings:
            self._forget(ring)
        self.rings = []
        self._unmap()
        self._reader.close()
        self._reader = messages.FrameReader()
        self.features = self.protocol_features = self.status = 0
        self.retry_at = time.monotonic() + self.spec.reconnect_s

    def readable(self) -> None:
        """Handle what has come; hang up on anything DPDK would hang up on."""
        for _ in range(_CONTROL_BATCH):
            try:
                frame = self._receive()
                if frame is None:
                    return
                self._handle(frame)
            except (OSError, ProtocolError, EOFError) as error:
                self.refused = str(error) if isinstance(error, ProtocolError) else self.refused
                self.hang_up()
                return

    def _receive(self) -> messages.Frame | None:
        assert self.socket is not None
        while True:
            try:
                data, numbers, _, _ = socket.recv_fds(self.socket, self._reader.wanted, 16)
            except BlockingIOError:
                return None
            if not data:
                raise EOFError
            frame = self._reader.feed(data, [OwnedFd(number) for number in numbers])
            if frame is not None:
                return frame

    def _reply(self, request: Request, payload: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(messages.reply(request, payload))

    # -- messages

    def _handle(self, frame: messages.Frame) -> None:
        kept: set[int] = set()
        try:
            message = messages.parse(frame)
            if isinstance(message.body, messages.RingValue | messages.RingPlace | messages.RingDescriptor):
                self._ring(message.body.index)
            handler = getattr(self, f"_on_{message.request.name.lower()}", None)
            if handler is not None:
                handler(message.body, kept)
            if message.need_reply:
                if message.request is Request.SET_VRING_ADDR:
                    self._fence()
                self._reply(message.request, messages.U64.pack(0))
        finally:
            for descriptor in frame.descriptors:
                if descriptor.serial not in kept:
                    descriptor.close()
        if not self.running and [ring.ready for ring in self.rings[:2]] == [True, True]:
            status_known = self.protocol_features >> messages.ProtocolFeature.STATUS & 1
            self.running = not status_known or bool(self.status & _DRIVER_OK)

    def _ring(self, index: int) -> _Ring:
        while len(self.rings) <= index | 1:
            self.rings.append(_Ring())
        return self.rings[index]

    def _fence(self) -> None:
        if self.fences == 0:
            os.kill(os.getpid(), self.signal)
        self.fences -= self.fences >= 0

    def _on_get_features(self, body: messages.Body, kept: set[int]) -> None:
        self._fence()
        self._reply(Request.GET_FEATURES, messages.U64.pack(self.spec.features))

    def _on_get_protocol_features(self, body: messages.Body, kept: set[int]) -> None:
        self._reply(Request.GET_PROTOCOL_FEATURES, messages.U64.pack(self.spec.protocol_features))

    def _on_get_queue_num(self, body: messages.Body, kept: set[int]) -> None:
        self._reply(Request.GET_QUEUE_NUM, messages.U64.pack(self.spec.queue_pairs))

    def _on_get_status(self, body: messages.Body, kept: set[int]) -> None:
        self._reply(Request.GET_STATUS, messages.U64.pack(self.status))

    def _on_set_features(self, body: messages.Number, kept: set[int]) -> None:
        if body.value & ~self.spec.features:
            raise ProtocolError("features that were not offered")
        if self.running and (self.features ^ body.value) & ~(1 << Feature.LOG_ALL):
            raise ProtocolError("features changed while the device runs")
        self.features = body.value

    def _on_set_protocol_features(self, body: messages.Number, kept: set[int]) -> None:
        if body.value & ~self.spec.protocol_features:
            raise ProtocolError("protocol features that were not offered")
        self.protocol_features = body.value

    def _on_set_status(self, body: messages.Number, kept: set[int]) -> None:
        self.status = body.value

    def _on_send_rarp(self, body: messages.Number, kept: set[int]) -> None:
        self.rarps += 1

    def _on_set_mem_table(self, body: messages.MemoryTable, kept: set[int]) -> None:
        """Take a memory table like ``vhost_user_set_mem_table``: a table that equals the one before is not mapped, and
        no address is translated again."""
        layouts = [[(region.guest_address, region.size, region.user_address) for region in regions]
                   for regions in (body.regions, [mapped.region for mapped in self.memory])]  # fmt: skip
        if layouts[0] == layouts[1]:
            return
        if self.unmapped and 0 < len(self.memory) < len(body.regions):
            self.unmapped -= 1
            raise ProtocolError("a region cannot be mapped")
        again = [ring for ring in self.rings if ring.view is not None]
        for ring in again:
            self._invalidate(ring)
        self._unmap()
        for region in body.regions:
            mapping = mmap.mmap(region.descriptor.fileno(), region.offset + region.size)
            self.memory.append(_Mapped(region, mapping, memoryview(mapping)))
        for ring in again:
            self._translate(ring)

    def _on_set_log_base(self, body: messages.DirtyLog, kept: set[int]) -> None:
        self._reply(Request.SET_LOG_BASE, b"")

    def _on_set_vring_num(self, body: messages.RingValue, kept: set[int]) -> None:
        self.rings[body.index].size = body.value

    def _on_set_vring_base(self, body: messages.RingValue, kept: set[int]) -> None:
        if self.running and self.rings[body.index].ready:
            raise ProtocolError("SET_VRING_BASE on a running ring is not safe")
        self.rings[body.index].next = body.value

    def _on_set_vring_addr(self, body: messages.RingPlace, kept: set[int]) -> None:
        if not self.memory:
            raise ProtocolError("SET_VRING_ADDR before SET_MEM_TABLE")
        ring = self.rings[body.index]
        accessible = ring.view is not None
        ring.place = body.address
        self._invalidate(ring)
        if accessible or (ring.enabled and self.features >> Feature.PROTOCOL_FEATURES & 1):
            self._translate(ring)

    def _on_set_vring_kick(self, body: messages.RingDescriptor, kept: set[int]) -> None:
        ring = self.rings[body.index]
        self._translate(ring)
        if not self.features >> Feature.PROTOCOL_FEATURES & 1:
            ring.enabled = True
        _close(ring.kick)
        ring.kick, ring.kicked = _keep(body, kept), True

    def _on_set_vring_call(self, body: messages.RingDescriptor, kept: set[int]) -> None:
        ring = self.rings[body.index]
        _close(ring.call)
        ring.call, ring.called = _keep(body, kept), True

    def _on_set_vring_enable(self, body: messages.RingValue, kept: set[int]) -> None:
        self.rings[body.index].enabled = bool(body.value)

    def _on_get_vring_base(self, body: messages.RingValue, kept: set[int]) -> None:
        ring = self.rings[body.index]
        self.running = False
        base = ring.next
        self._forget(ring)
        self._reply(Request.GET_VRING_BASE, messages.VRING_STATE.pack(body.index, base))

    # -- memory

    def _find(self, user_address: int, length: int) -> memoryview | None:
        for mapped in self.memory:
            if mapped.region.holds(user_address, length):
                start = mapped.region.offset + user_address - mapped.region.user_address
                return mapped.view[start : start + length]
        return None

    def _buffer(self, guest_address: int, length: int) -> memoryview | None:
        for mapped in self.memory:
            start = guest_address - mapped.region.guest_address
            if start >= 0 and start + length <= mapped.region.size:
                return mapped.view[mapped.region.offset + start : mapped.region.offset + start + length]
        return None

    def _translate(self, ring: _Ring) -> None:
        """Translate like ``translate_ring_addresses``: a failure is silent, and the used index in memory wins."""
        if ring.view is not None or ring.place is None or not ring.size:
            return
        parts = [
            self._find(ring.place.descriptors, 16 * ring.size),
            self._find(ring.place.available, 6 + 2 * ring.size),
            self._find(ring.place.used, 6 + 8 * ring.size),
        ]
        descriptors, available, used = parts
        if descriptors is None or available is None or used is None:
            return
        ring.view = RingView(descriptors, available, used, ring.size)
        ring.next = ring.view.used16[1]

    def _invalidate(self, ring: _Ring) -> None:
        if ring.view is not None:
            ring.view.close()
        ring.view, ring.span = None, None

    def _forget(self, ring: _Ring) -> None:
        self._invalidate(ring)
        _close(ring.kick)
        _close(ring.call)
        ring.kick = ring.call = ring.place = None
        ring.kicked = ring.called = False

    def _unmap(self) -> None:
        for mapped in self.memory:
            mapped.view.release()
            with contextlib.suppress(BufferError):
                mapped.map.close()
        self.memory = []

    # -- packets

    def serve(self) -> int:
        """One turn of the PMD over the guest's TX rings; the number of packets moved."""
        if not self.running:
            return 0
        while self.arrived:
            self._put(0, self.arrived[0])
            self.arrived.popleft()
        return sum(
            self._take(index) for index in range(1, len(self.rings), 2) if self.rings[index].ready
        )  # fmt: skip

    def _touch(self, index: int) -> int | None:
        """Begin or continue the record of a guest's ring; ``None`` for a ring that is not a guest's."""
        ring = self.rings[index]
        assert ring.place is not None
        if ring.place.descriptors >> 63:  # no guest has such an address: the parking place
            return None
        if ring.span is None:
            ring.span = self._touches.begin(self.vm, index)
        return ring.span

    def _take(self, index: int) -> int:
        ring = self.rings[index]
        assert ring.view is not None
        span = self._touch(index)
        view, moved = ring.view, 0
        count = min((view.available[1] - ring.next) & 0xFFFF, _BURST)
        for _ in range(count):
            head = view.available[2 + ring.next % ring.size]
            word = view.descriptors[2 * head + 1]
            buffer = self._buffer(view.descriptors[2 * head], word & 0xFFFFFFFF)
            if buffer is not None:
                value = int.from_bytes(buffer[:8], "little")
                buffer.release()
                self._ledger.count(self.vm, value)
                if self.spec.echo:
                    self._put(index - 1, value.to_bytes(8, "little"))
            view.give_back(ring.next, head, 0)
            ring.next = (ring.next + 1) & 0xFFFF
            moved += 1
        if moved:
            view.used16[1] = ring.next
            _signal(ring.call)
        if span is not None:
            self._touches.touched(span, moved)
        return moved

    def _put(self, index: int, data: bytes) -> None:
        ring = self.rings[index]
        if not ring.ready:
            return
        assert ring.view is not None
        span, view = self._touch(index), ring.view
        if view.available[1] != ring.next:
            head = view.available[2 + ring.next % ring.size]
            buffer = self._buffer(view.descriptors[2 * head], len(data))
            if buffer is not None:
                buffer[: len(data)] = data
                buffer.release()
            view.give_back(ring.next, head, len(data))
            ring.next = (ring.next + 1) & 0xFFFF
            view.used16[1] = ring.next
            _signal(ring.call)
        if span is not None:
            self._touches.touched(span, 1)


def _keep(body: messages.RingDescriptor, kept: set[int]) -> Descriptor | None:
    if body.descriptor is not None:
        kept.add(body.descriptor.serial)
    return body.descriptor


def _close(descriptor: Descriptor | None) -> None:
    if descriptor is not None:
        descriptor.close()


def _signal(descriptor: Descriptor | None) -> None:
    if descriptor is not None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(descriptor.fileno(), 1)
