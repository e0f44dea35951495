"""Reads from the log of ovs-vswitchd what QEMU has sent over one vhost-user connection. This module is pure.

DPDK's vhost library writes several lines for each message (lib/vhost/vhost_user.c and socket.c; 22.11 and 24.11 have
the same texts), at level ``info`` of ``lib.vhost.config``. The lines of all VMs come from one thread, except those
about connecting. Each thread numbers its lines (lib/vlog.c, ``msg_num``), so that lines that are missing in the middle
are noticed. Lines that were never written, because their rate was too high, are announced by a later line.

A log that lacks something, or has something that cannot be understood, is refused as a whole: what QEMU sent is only
known if every message is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ovs_hotswap.errors import StateUnknown

RECONNECT = "the connection has to be made again: reconnect (about 12 ms), migrate or restart the VM"
FENCE = "VHOST_USER_GET_QUEUE_NUM"

# vlog(7): TIME|NUMBER|MODULE|LEVEL|TEXT. The module of a thread that Open vSwitch has started has the thread's name.
_LINE = re.compile(r"(?P<time>[^|]*)\|(?P<number>\d{5,})\|(?P<module>[^|]*)\|(?P<level>[A-Z]+)\|(?P<text>.*)")
_VHOST = re.compile(r"VHOST_CONFIG: \((?P<socket>.*?)\) (?P<text>.*)")
_DROPPED = re.compile(r"Dropped \d+ log messages in last ")
_READ = re.compile(r"read message (VHOST_USER_[A-Z_]+)")
_NEW = re.compile(r"new device, handle is \d+")
_ENDED = re.compile(
    r"vhost peer closed|vhost read message .*failed|vhost message handling failed\.|processing \S+ failed\."
)
_HEX, _FD, _INDEX = "0x([0-9a-f]{1,16})", r"(-?\d{1,9})", r"(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])"  # 256 rings at most
_CALL = re.compile(rf"vring call idx:{_INDEX} file:{_FD}")
_KICK = re.compile(rf"vring kick idx:{_INDEX} file:{_FD}")
_STOP = re.compile(rf"vring base idx:{_INDEX} file:{_FD}")
_ENABLE = re.compile(rf"set queue enable: ([01]) to qp idx: {_INDEX}")
_FEATURES = re.compile(f"negotiated Virtio features: {_HEX}")
_PROTOCOL = re.compile(f"negotiated Vhost-user protocol features: {_HEX}")
_STATUS = re.compile(rf"new device status\({_HEX}\):")
_UNCHANGED = re.compile(r"memory regions not changed")
_REGION = tuple(
    re.compile(rf"\s*{text}\s*: {_HEX}")
    for text in ("guest memory region size", "guest physical addr", "guest virtual  ?addr", "host  ?virtual  ?addr",
                 "mmap addr", "mmap size", "mmap align", "mmap off")
)  # fmt: skip
_BEGINNINGS = ("vring call", "vring kick", "vring base", "set queue enable", "negotiated ", "new device status",
               "read message", "guest memory region", "guest physical", "guest virtual")  # fmt: skip
# What has to be known of these is not in the log, or the switch's state after them is not.
_REFUSED = {"VHOST_USER_RESET_OWNER", "VHOST_USER_POSTCOPY_ADVISE", "VHOST_USER_POSTCOPY_LISTEN",
            "VHOST_USER_POSTCOPY_END", "VHOST_USER_SET_INFLIGHT_FD"}  # fmt: skip
_FIRST = ("VHOST_USER_GET_FEATURES",)  # hw/virtio/vhost-user.c, ``vhost_user_backend_init``
_MESSAGES = {f"VHOST_USER_{name}" for name in (
    "GET_FEATURES", "SET_FEATURES", "SET_OWNER", "RESET_OWNER", "SET_MEM_TABLE", "SET_LOG_BASE", "SET_LOG_FD",
    "SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_KICK", "SET_VRING_CALL",
    "SET_VRING_ERR", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_VRING_ENABLE", "SEND_RARP",
    "NET_SET_MTU", "SET_SLAVE_REQ_FD", "SET_BACKEND_REQ_FD", "IOTLB_MSG", "GET_CONFIG", "SET_CONFIG",
    "POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "POSTCOPY_END", "GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "SET_STATUS",
    "GET_STATUS",
)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoggedRegion:
    """One region of a memory table; sizes, addresses and the offset in the file are in bytes. ``page``: the size of the
    pages of its file."""

    size: int
    guest_address: int
    user_address: int
    offset: int
    page: int = 4096


@dataclass(frozen=True, slots=True)
class LoggedRing:
    """The numbers that the descriptors have in the switch; negative if QEMU sent none. ``None``: not sent."""

    kick: int | None = None
    call: int | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """What QEMU has sent on the last connection, as far as it is logged. ``messages`` are their names, in order."""

    features: int | None = None
    protocol_features: int | None = None
    status: int | None = None
    memory: tuple[LoggedRegion, ...] = ()
    rings: tuple[LoggedRing, ...] = ()
    messages: tuple[str, ...] = ()

    def ring(self, index: int) -> LoggedRing:
        return self.rings[index] if index < len(self.rings) else LoggedRing()

    def with_ring(self, index: int, ring: LoggedRing) -> Logged:
        rings = list(self.rings) + [LoggedRing()] * (index + 1 - len(self.rings))
        rings[index] = ring
        return replace(self, rings=tuple(rings))


@dataclass(frozen=True, slots=True)
class Since:
    """What the log says of one connection behind a mark.

    ``messages`` are the names of the messages read. ``dropped``: lines were left out. ``ended``: the switch closed it.
    """

    messages: tuple[str, ...]
    dropped: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    module: str
    text: str
    vhost: str | None  # the text behind the socket, if the line is about a socket
    socket: str | None


def begins_in(text: str, socket: str) -> bool:
    """Whether ``text`` has the beginning of a connection over ``socket``."""
    return any(entry.socket == socket and _NEW.fullmatch(entry.vhost or "") for entry in _entries(text))


def read_connection(text: str, socket: str) -> Logged:
    """Return what was sent on the last connection over ``socket``.

    ``text`` is the log up to a mark. A last line that has no end yet is not read. Raises StateUnknown, which names what
    cannot be proven, if the log does not have every message since the connection was made.
    """
    entries = list(_entries(text))
    begins = [at for at, entry in enumerate(entries) if entry.socket == socket and _NEW.fullmatch(entry.vhost or "")]
    if not begins:
        raise _unproven(socket, "the log does not have the beginning of the connection",
                        "the log was rotated, or its level is too low")  # fmt: skip
    own = entries[begins[-1] + 1 :]
    _complete(own, socket)
    reader = _Reader(socket)
    for entry in own:
        if entry.socket == socket:
            reader.line(entry.vhost or "")
    return reader.result()


def messages_since(text: str, socket: str) -> Since:
    """Return what happened on the connection in the part ``text`` of the log, which begins with a whole line."""
    entries = list(_entries(text))
    own = [entry.vhost or "" for entry in entries if entry.socket == socket]
    read = tuple(found[1] for line in own if (found := _READ.fullmatch(line)))
    ended = any(_ENDED.match(line) or _NEW.fullmatch(line) for line in own)
    return Since(read, any(map(_is_dropped, entries)), ended)


def whole_lines(text: str) -> str:
    """Return ``text`` without what follows its last line end."""
    return text[: text.rfind("\n") + 1]


def _entries(text: str) -> Iterator[_Entry]:
    for line in whole_lines(text).split("\n")[:-1]:
        found = _LINE.fullmatch(line)
        if found is None:
            yield _Entry(-1, "", line, None, None)
            continue
        vhost = _VHOST.fullmatch(found["text"]) if _is_dpdk(found["module"]) else None
        yield _Entry(int(found["number"]), found["module"], found["text"],
                     None if vhost is None else vhost["text"], None if vhost is None else vhost["socket"])  # fmt: skip


def _is_dpdk(module: str) -> bool:
    return module == "dpdk" or module.startswith("dpdk(")


def _is_dropped(entry: _Entry) -> bool:
    return _is_dpdk(entry.module) and _DROPPED.match(entry.text) is not None


def _complete(entries: Sequence[_Entry], socket: str) -> None:
    """Raise StateUnknown if lines of the message thread are missing between the first and the last of ``entries``."""
    last, between = None, set[int]()
    for entry in entries:
        if entry.number < 0 and ("VHOST_CONFIG" in entry.text or socket in entry.text):
            raise _unproven(socket, "the log has a line that is damaged", entry.text[:200])
        if _is_dropped(entry):
            raise _unproven(socket, "the log lacks lines", entry.text)
        if entry.vhost is not None and entry.vhost.startswith("read message "):
            if last is not None and not set(range(last + 1, entry.number)) <= between:
                raise _unproven(socket, "the log lacks lines", f"between number {last} and number {entry.number}")
            if last is not None and entry.number <= last:
                raise _unproven(socket, "the log's lines are not in order", f"{entry.number} follows {last}")
            last, between = entry.number, set()
        else:
            between.add(entry.number)


@dataclass
class _Reader:
    """Reads the lines of one connection one after the other. Each message is followed by the lines that it causes."""

    socket: str
    known: Logged = field(default_factory=Logged)
    message: str | None = None
    regions: list[list[int]] = field(default_factory=list)
    said: bool = False  # the message has had the line, or the first of the lines, that it causes

    def line(self, text: str) -> None:
        if _ENDED.match(text):
            raise _unproven(self.socket, "the switch has closed the connection", text)
        if found := _READ.fullmatch(text):
            self._finish()
            self._begin(found[1])
        elif not self._detail(text) and text.lstrip().startswith(_BEGINNINGS):
            raise self._cannot(text)

    def result(self) -> Logged:
        self._finish()
        if self.known.messages[:1] != _FIRST:
            raise _unproven(
                self.socket, "the log lacks the first messages", f"it begins with {self.known.messages[:1]}"
            )
        return self.known

    def _begin(self, message: str) -> None:
        if message not in _MESSAGES:
            raise _unproven(self.socket, "the log names a message that is not known", message)
        if message in _REFUSED:
            raise _unproven(self.socket, f"QEMU has sent {message}", "what follows from it is not in the log")
        self.message, self.regions, self.said = message, [], False
        self.known = replace(self.known, messages=(*self.known.messages, message))

    def _finish(self) -> None:
        """Check that the message before has had its lines."""
        if self.message == "VHOST_USER_SET_MEM_TABLE" and self.regions:
            if any(len(region) != len(_REGION) for region in self.regions):
                raise _unproven(self.socket, "the log has an incomplete memory region", "some of its lines are missing")
            memory = tuple(LoggedRegion(each[0], each[1], each[2], each[7], each[6]) for each in self.regions)
            self.known = replace(self.known, memory=memory)
        elif self.message in _CAUSES and not self.said:
            if self.message == "VHOST_USER_SET_FEATURES" and self.known.features is not None:
                return  # a running device that is sent the same features logs nothing (``vhost_user_set_features``)
            raise _unproven(self.socket, f"the log lacks what {self.message} said", "its line is missing")

    def _detail(self, text: str) -> bool:
        """Take a line that the message has caused. Return false if it is not one of those."""
        if self.message == "VHOST_USER_SET_MEM_TABLE":
            return self._memory(text)
        for pattern, take in _CAUSES.get(self.message or "", ()):
            if found := pattern.fullmatch(text):
                if self.said:
                    raise self._cannot(text)
                self.said = True
                self.known = take(self.known, found)
                return True
        return self.message == "VHOST_USER_SET_VRING_BASE" and text.startswith("vring base idx:")

    def _memory(self, text: str) -> bool:
        if _UNCHANGED.fullmatch(text):
            if not self.known.memory or self.said:
                raise self._cannot(text)
            self.said = True
            return True
        if found := _REGION[0].fullmatch(text):
            self.regions.append([int(found[1], 16)])
            self.said = True
            return True
        part = len(self.regions[-1]) if self.regions else len(_REGION)
        found = _REGION[part].fullmatch(text) if part < len(_REGION) else None
        if found is not None:
            self.regions[-1].append(int(found[1], 16))
        return found is not None

    def _cannot(self, text: str) -> StateUnknown:
        return _unproven(self.socket, "the log has a line that cannot be understood", text)


def _call(known: Logged, found: re.Match[str]) -> Logged:
    index = int(found[1])
    return known.with_ring(index, replace(known.ring(index), call=int(found[2])))


def _kick(known: Logged, found: re.Match[str]) -> Logged:
    index = int(found[1])
    return known.with_ring(index, replace(known.ring(index), kick=int(found[2])))


def _stop(known: Logged, found: re.Match[str]) -> Logged:
    """Forget kick and call, as DPDK does (``vhost_user_get_vring_base``); the ring stays enabled."""
    index = int(found[1])
    return known.with_ring(index, LoggedRing(enabled=known.ring(index).enabled))


def _enable(known: Logged, found: re.Match[str]) -> Logged:
    index = int(found[2])
    return known.with_ring(index, replace(known.ring(index), enabled=found[1] == "1"))


_Take = Callable[[Logged, re.Match[str]], Logged]
# The lines that a message causes, of which one comes each time, and what follows from them.
_CAUSES: dict[str, tuple[tuple[re.Pattern[str], _Take], ...]] = {
    "VHOST_USER_SET_VRING_CALL": ((_CALL, _call),),
    "VHOST_USER_SET_VRING_KICK": ((_KICK, _kick),),
    "VHOST_USER_GET_VRING_BASE": ((_STOP, _stop),),
    "VHOST_USER_SET_VRING_ENABLE": ((_ENABLE, _enable),),
    "VHOST_USER_SET_FEATURES": ((_FEATURES, lambda known, found: replace(known, features=int(found[1], 16))),),
    "VHOST_USER_SET_PROTOCOL_FEATURES": (
        (_PROTOCOL, lambda known, found: replace(known, protocol_features=int(found[1], 16))),
    ),
    "VHOST_USER_SET_STATUS": ((_STATUS, lambda known, found: replace(known, status=int(found[1], 16))),),
    "VHOST_USER_SET_MEM_TABLE": (),
}


def continuous(older: str, newer: str) -> bool:
    """Whether the log ``newer`` continues ``older`` without a gap.

    ovs-vswitchd was told to open its log again, and noted that in the new file (lib/vlog.c, ``vlog_set_log_file__``);
    until then it wrote to the old one, under another name. A log that was copied and cut short begins with something
    else, and that of a process that has been started again begins with its first line. The line before, of the same
    thread, is in the older file; or else the one before that: the line between is ``closing log file``, and is lost if
    the file is closed before it is written, which is done by another thread (``async_append_destroy`` comes after).
    """
    first = next(_entries(newer), None)
    if first is None or first.module != "vlog" or not first.text.startswith("opened log file") or first.number < 2:
        return False
    before = {first.number - 1, first.number - 2}
    return any(entry.number in before and "(" not in entry.module for entry in _entries(older))


def joined(pieces: Iterable[str]) -> str:
    """Return the pieces of a rotated log, oldest first, as one text. Raises StateUnknown if there is a gap."""
    whole = ""
    for piece in pieces:
        if whole and not continuous(whole, piece):
            raise StateUnknown("the log of ovs-vswitchd was rotated, and it is not known that no line was lost",
                               hint=RECONNECT)  # fmt: skip
        whole = whole_lines(whole) + piece
    return whole


def _unproven(socket: str, what: str, why: str) -> StateUnknown:
    return StateUnknown(f"{socket}: {what}: {why}", hint=RECONNECT)
