"""Writes every vhost-user message of one connection to the log, at level debug.

A connection has a trace only if the log shows that level when the connection is made, so that without it each message
costs the test of one attribute. Messages of a handover itself pass by another way (``Channel.exchange``), which has no
trace: no line is written between the two halves of a swap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ovs_hotswap.vhostuser.messages import HEADER, REPLY, U64, VRING_INDEX_MASK, VRING_STATE, Frame, Request

log = logging.getLogger(__name__)

_NAMES = {int(request): request.name for request in Request}
# Requests whose payload begins with the index of a ring, and requests that have the index in its lowest byte.
_BY_INDEX = {Request.SET_VRING_NUM, Request.SET_VRING_ADDR, Request.SET_VRING_BASE, Request.GET_VRING_BASE,
             Request.SET_VRING_ENABLE}  # fmt: skip
_BY_BYTE = {Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR}


class MessageTrace:
    """Writes the messages of one connection of VM ``vm``. ``peer`` names the other end."""

    def __init__(self, vm: str, peer: str) -> None:
        self._vm, self._peer = vm, peer

    def sent(self, data: bytes, descriptors: int) -> None:
        """Write the messages in ``data``. The number of descriptors is written with the first of them."""
        for text in _described(data):
            log.debug("vm %s: to %s: %s, descriptors: %d", self._vm, self._peer, text, descriptors)
            descriptors = 0

    def exchanged(self, data: bytes) -> None:
        """Write the messages in ``data``, which a finished handover sent, awaiting the answer itself."""
        for text in _described(data):
            log.debug("vm %s: to %s in the handover: %s", self._vm, self._peer, text)

    def received(self, frame: Frame) -> None:
        text = _text(frame.request, frame.flags, frame.payload)
        log.debug("vm %s: from %s: %s, descriptors: %d", self._vm, self._peer, text, len(frame.descriptors))


def message_trace(vm: str, peer: str) -> MessageTrace | None:
    """Return the trace for a new connection, or ``None`` if the log does not show level debug."""
    return MessageTrace(vm, peer) if log.isEnabledFor(logging.DEBUG) else None


def _described(data: bytes) -> Iterator[str]:
    while len(data) >= HEADER.size:
        request, flags, size = HEADER.unpack_from(data)
        yield _text(request, flags, data[HEADER.size : HEADER.size + size])
        data = data[HEADER.size + size :]


def _text(request: int, flags: int, payload: bytes) -> str:
    name = _NAMES.get(request, f"request {request}")
    text = f"answer to {name}" if flags & REPLY else name
    if request in _BY_INDEX and len(payload) >= VRING_STATE.size:
        return f"{text} of ring {VRING_STATE.unpack_from(payload)[0]}"
    if request in _BY_BYTE and len(payload) == U64.size and not flags & REPLY:
        return f"{text} of ring {U64.unpack(payload)[0] & VRING_INDEX_MASK}"
    return text
