"""The relay of the flow log: takes what both instances export, and sends it to the collectors as one exporter.

An instance is in a network namespace of its own, from which no collector can be reached. So the relay has a socket in
each of the two namespaces, and sends from the host's own. It holds no lock while it waits, and nothing waits for it: an
ovs-vswitchd sends by UDP, and what is not taken is lost.

A namespace that is removed is kept by a socket in it. So the relay looks often, and closes the socket of one that is
gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.config_flowlog import IPFIX_PORT, split
from ovs_hotswap.config_follower import ConfigFollower
from ovs_hotswap.errors import BusyError, HotswapError, UplinkError
from ovs_hotswap.flowlog import state
from ovs_hotswap.flowlog.mediator import Mediator
from ovs_hotswap.flowlog.state import Collector, Gap, RelayState, Source
from ovs_hotswap.host import flow_log
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.netns import DIRECTORY
from ovs_hotswap.system import System
from ovs_hotswap.uplink.frames import in_namespace

log = logging.getLogger(__name__)

LOOK_S = 0.2
_SAY_S = 2.0  # between two writes of the state
_REFRESH_S = 60.0  # between two sendings of all templates: RFC 7011, 8.4, leaves it to us
_RENEW_S = 60.0  # before an instance is made to send its templates again
_CHECK_S = 15.0  # between two looks whether the instances have their rows
_AT_ONCE = 512  # messages of one instance before the others' turn
_LONGEST = 1 << 16
_ROOM = 16 << 20  # bytes of a socket's queue: an instance exports all that it holds at once when it ends
_SO_RCVBUFFORCE, _SO_MEMINFO, _DROPS = 33, 55, 8  # include/uapi/asm-generic/socket.h, linux/sock_diag.h
_MEMINFO = struct.Struct("=9I")

Open = Callable[[str], socket.socket]


def open_in(namespace: str) -> socket.socket:
    """A socket to which the instance in ``namespace`` exports. Raises UplinkError."""
    return in_namespace(namespace, lambda: listener("127.0.0.1", IPFIX_PORT))


def listener(address: str, port: int) -> socket.socket:
    """Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        except PermissionError:  # without CAP_NET_ADMIN it may have what the host allows
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made


def identity(namespace: str) -> tuple[int, int] | None:
    """What tells one network namespace from a later one of the same name; ``None`` if there is none."""
    try:
        found = os.stat(f"{DIRECTORY}/{namespace}")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def overflowed(receiving: socket.socket) -> int:
    """The messages for which a socket had no room."""
    with contextlib.suppress(OSError):
        answer = receiving.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        if len(answer) == _MEMINFO.size:  # an earlier kernel than 4.12 has none
            return int(_MEMINFO.unpack(answer)[_DROPS])
    return 0


@dataclass
class _Ear:
    """The socket in one namespace. ``before``: the messages for which earlier ones had no room."""

    side: Side
    namespace: str
    heard: tuple[int, int] | None = None
    receives: socket.socket | None = None
    before: int = 0
    told: str = ""
    renewed: float = float("-inf")
    unknown: int = 0
    exporting: float | None = None  # when its instance was last seen to have its rows

    @property
    def overflowed(self) -> int:
        return self.before + (0 if self.receives is None else overflowed(self.receives))


@dataclass
class _Mouth:
    """The socket to one collector."""

    collector: str
    sends: socket.socket | None = None
    counts: dict[str, Any] = field(default_factory=lambda: {"sent": 0, "refused": 0, "fault": None})

    def send(self, messages: list[bytes]) -> None:
        """Send messages. A fault is counted, and one that stays is logged once."""
        for message in messages:
            try:
                if self.sends is None:
                    self.sends = self._connected()
                self.sends.send(message)
                self.counts["sent"] += 1
            except OSError as error:  # no route, or the collector's host says that nothing listens there
                fault = error.strerror or str(error)
                if fault != self.counts["fault"]:
                    log.warning("collector %s: %s", self.collector, fault)
                self.counts["refused"] += 1
                self.counts["fault"] = fault

    def _connected(self) -> socket.socket:
        address, port = split(self.collector)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        if self.sends is not None:
            self.sends.close()


class Relay:
    """``run`` returns after ``stop`` was called. One process at a time is the relay of a configuration."""

    def __init__(self, config: Config, system: System, path: Path | None = None, *, listen: Open = open_in,
                 find: Callable[[str], tuple[int, int] | None] = identity,
                 make_host: Callable[[Config, System], Host] = Host) -> None:  # fmt: skip
        """``path``: the configuration file, of which the flow log is followed."""
        self._system, self._follower = system, ConfigFollower(config, path)
        self._listen, self._find, self._make_host = listen, find, make_host
        self._mediator = Mediator(state.read_templates(config))
        self._ears = [_Ear(side, config.namespace(side)) for side in Side]
        self._mouths: dict[str, _Mouth] = {}
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._due = dict.fromkeys(("say", "refresh", "check"), 0.0)
        self._gaps: list[Gap] = []
        self._counted: tuple[float, dict[str, Source]] = (system.wall(), {})

    def stop(self) -> None:
        self._stop.set()

    def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Raises BusyError if another process is the relay."""
        config = self._follower.config
        with self._system.lock(state.lock_path(config), "a relay of the flow log"):
            self._remember(state.read(config))
            try:
                self.look()
                ready()
                while not self._stop.is_set():
                    self.turn(LOOK_S)
            finally:
                self.turn(0)
                self._say()
                self._close()

    def _remember(self, last: RelayState | None) -> None:
        """Take over the gaps of the last relay, and add the time without one. Both instances may have exported in it,
        and a relay that was not there since the boot has missed nothing."""
        now = self._system.wall()
        if last is not None:
            gap = Gap(begin=last.time, end=now, why="the relay did not run")
            self._gaps = state.added(last.gaps, gap)

    def turn(self, seconds: float) -> None:
        """Wait for messages for ``seconds``, send them on, and look after the sockets."""
        for key, _ in self._selector.select(seconds):
            self._hear(key.data)
        self.look()

    def _hear(self, ear: _Ear) -> None:
        if ear.receives is None:
            return
        for _ in range(_AT_ONCE):
            try:
                data = ear.receives.recv(_LONGEST)
            except OSError:  # nothing more, or the namespace is gone
                return
            self._send(self._mediator.take(ear.side, data))

    def _send(self, messages: list[bytes]) -> None:
        for mouth in self._mouths.values():
            mouth.send(messages)

    # -- what is done now and then

    def look(self) -> None:
        """Follow the configuration and the namespaces, repeat the templates, and say what was done."""
        config, now = self._follower.config, self._system.monotonic()
        for ear in self._ears:
            self._follow(ear, on=config.flowlog.on)
        self._reach(config.flowlog.collectors)
        if self._is_due("refresh", now, _REFRESH_S):
            for message in self._mediator.refresh(int(self._system.wall())):
                self._send([message])
        if self._mediator.learned:
            self._mediator.learned = False
            self._try("templates are not kept", lambda: state.write_templates(
                config, self._system, self._mediator.templates))  # fmt: skip
        if self._is_due("say", now, _SAY_S):
            self._say()
        if config.flowlog.on and self._is_due("check", now, _CHECK_S):
            self._check(config)
        self._renew(config, now)

    def _is_due(self, what: str, now: float, every_s: float) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + every_s
        return True

    def _follow(self, ear: _Ear, *, on: bool) -> None:
        """Listen in the namespace that has the ear's name now, and in no earlier one."""
        found = self._find(ear.namespace) if on else None
        if found == ear.heard:
            return
        self._deaf(ear)
        if found is None:
            return
        try:
            ear.receives = self._listen(ear.namespace)
        except UplinkError as error:
            if error.message != ear.told:
                log.warning("instance %s cannot be heard: %s", ear.side, error.message)
            ear.told = error.message
            return
        ear.heard, ear.told = found, ""
        self._selector.register(ear.receives, selectors.EVENT_READ, ear)

    def _deaf(self, ear: _Ear) -> None:
        if ear.receives is not None:
            self._hear(ear)  # what its instance sent last
            ear.before = ear.overflowed
            self._selector.unregister(ear.receives)
            ear.receives.close()
        ear.receives = ear.heard = None

    def _reach(self, collectors: list[str]) -> None:
        for name in self._mouths.keys() - set(collectors):
            self._mouths.pop(name).close()
        for name in collectors:
            if name not in self._mouths:
                self._mouths[name] = mouth = _Mouth(name)
                mouth.send(list(self._mediator.refresh(int(self._system.wall()))))

    def _check(self, config: Config) -> None:
        """Have instances gather and export that were left without their rows, as by the end of a command in the
        middle."""
        host = self._make_host(config, self._system)
        for ear in self._ears:
            if ear.receives is None or host.instances[ear.side].pid() is None:
                ear.exporting = None
                continue
            self._try(f"instance {ear.side} does not export", partial(self._ensure, host, ear))

    def _ensure(self, host: Host, ear: _Ear) -> None:
        now, lacked = self._system.wall(), flow_log.ensure(host, ear.side)
        if lacked and ear.exporting is not None:
            gap = Gap(begin=ear.exporting, end=now, why=f"instance {ear.side} had lost its settings of the flow log")
            self._gaps = state.added(self._gaps, gap)
        ear.exporting = now

    def _renew(self, config: Config, now: float) -> None:
        """Have an instance whose templates are not known send them again: it began to export before this listened."""
        for ear in self._ears:
            counts = self._mediator.counts.get(ear.side)
            if counts is None or counts.unknown == ear.unknown or now - ear.renewed < _RENEW_S:
                continue
            ear.renewed, ear.unknown = now, counts.unknown
            act = partial(flow_log.renew, self._make_host(config, self._system), ear.side)
            self._try(f"instance {ear.side} does not send its templates", act)

    @staticmethod
    def _try(what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except BusyError:  # an upgrade is under way: the next time
            return
        except HotswapError as error:
            log.warning("%s: %s", what, error.message)

    def _say(self) -> None:
        now, sources = self._system.wall(), self._sources()
        for gap in state.losses(self._counted[1], sources, self._counted[0], now):
            self._gaps = state.added(self._gaps, gap)
        self._counted = now, sources
        found = RelayState(
            pid=os.getpid(), born=start_time(os.getpid()), time=now,
            listening=[str(ear.side) for ear in self._ears if ear.receives is not None], sources=sources,
            collectors={name: Collector(**mouth.counts) for name, mouth in self._mouths.items()}, gaps=self._gaps,
        )  # fmt: skip
        self._try("the state is not written", lambda: state.write(self._follower.config, self._system, found))

    def _sources(self) -> dict[str, Source]:
        found = {}
        for ear in self._ears:
            counts = self._mediator.counts.get(ear.side)
            found[str(ear.side)] = Source(
                records=0 if counts is None else counts.records, overflowed=ear.overflowed,
                unknown=0 if counts is None else counts.unknown, malformed=0 if counts is None else counts.malformed,
            )  # fmt: skip
        return found

    def _close(self) -> None:
        for ear in self._ears:
            self._deaf(ear)
        for mouth in self._mouths.values():
            mouth.close()
        self._selector.close()
