"""Takes a snapshot of the connection between a switch and the QEMU of one of its ports.

Each fact is checked against a second source:

| fact | from | checked against |
|---|---|---|
| features | the log | the interface's status in the switch's database |
| memory regions | the log | QEMU's memory map, and the descriptors of the files that it maps |
| place and size of a ring | QEMU's monitor | the regions (both kinds of address), the sizes in the status |
| kick and call | the log | the numbers of the eventfds in both processes |
| enabled or not | the log | the queues that PMD threads poll; both rings of a pair are alike |
| number of rings | the log | the status |
| the two ends | the names of the sockets | credentials, and the proof of ``adopt.guard`` |

Nothing is sent to the switch or to QEMU but questions that change nothing. The status in the database and the PMD
threads follow a change with some delay, so a difference to them asks for another attempt.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.adopt import log_files
from ovs_hotswap.adopt.log_reader import RECONNECT, Logged
from ovs_hotswap.adopt.processes import RIGHTS, ForeignProcess, placed
from ovs_hotswap.adopt.qmp_facts import (
    DeviceFact,
    Monitor,
    QueueFact,
    device_at,
    find_monitor,
    queues,
    why_not_running,
)
from ovs_hotswap.adopt.snapshot import (
    EventFact,
    LogMark,
    RegionFact,
    RingFact,
    RingPlaceFact,
    Snapshot,
    why_not_carried,
)
from ovs_hotswap.errors import NotServed, StateUnknown, TryAgain
from ovs_hotswap.peer import credentials
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import pmd_rxqs, vhost_log_level
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.rxqs import RxQueue
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser.guest_state import ring_parts

_ANSWER_S = 5.0
_LOUD = {"info", "debug"}


@dataclass(frozen=True, slots=True)
class PortFact:
    """A ``dpdkvhostuserclient`` port, as the switch's database describes it (lib/netdev-dpdk.c,
    ``netdev_dpdk_vhost_user_get_status``). ``sizes`` are those of its rings, in entries."""

    socket: Path
    features: int
    sizes: tuple[int, ...]


def take(paths: InstancePaths, port: str, system: System, monitor: Monitor | None = None) -> Snapshot:
    """Return a snapshot of the connection of ``port`` of the running switch with these ``paths``.

    ``monitor`` is that of its QEMU; without it, QEMU's command line says where it is. Raises TryAgain if QEMU sent
    something in the meantime, StateUnknown, which names the fact that is not proven and the alternative, and
    BrokerError and SwitchError if QEMU or the switch cannot be asked.
    """
    mark = log_files.mark(paths.log)
    fact = read_port(paths, port)
    try:
        found = _Taking(paths, port, fact, mark, system).snapshot(monitor)
    except TryAgain as error:
        raise TryAgain(f"port {port}: {error.message}") from error
    except StateUnknown as error:
        if heard := log_files.since(mark, fact.socket).messages:
            raise TryAgain(f"port {port}: QEMU has sent {heard[-1]} in the meantime ({error.message})") from error
        raise StateUnknown(f"port {port}: {error.message}", hint=error.hint or RECONNECT) from error
    since = log_files.since(mark, fact.socket)
    if since.messages or since.ended:
        raise TryAgain(f"port {port}: QEMU has sent {', '.join(since.messages[-1:])} in the meantime")
    if (why := why_not_carried(found)) is not None:
        raise StateUnknown(f"port {port}: {why}", hint=RECONNECT)
    return found


def read_port(paths: InstancePaths, port: str) -> PortFact:
    """Return a port as the database describes it. Raises StateUnknown, and SwitchError if the database is silent."""
    (answer,) = transact(
        paths.db_socket,
        [{"op": "select", "table": "Interface", "where": [["name", "==", port]],
          "columns": ["type", "options", "status"]}],
        timeout=_ANSWER_S,
    )  # fmt: skip
    rows = answer["rows"]
    if len(rows) != 1:
        raise StateUnknown(f"the switch has no port {port}", hint="`ovs-vsctl show`")
    return parse_port(port, rows[0])


def parse_port(port: str, row: Mapping[str, Any]) -> PortFact:
    """Return the port of which ``row`` is the JSON row of its interface (RFC 7047, 5.1). Raises StateUnknown."""
    options, status = _map(row["options"]), _map(row["status"])
    path = options.get("vhost-server-path")
    if row["type"] != "dpdkvhostuserclient" or path is None:
        raise StateUnknown(f"port {port} is no dpdkvhostuserclient port, but {row['type'] or 'system'}")
    if status.get("status") != "connected" or "features" not in status:
        raise NotServed(
            f"port {port}: no guest is served over {path}: no QEMU is connected, its guest's driver does not run, or"
            " its link is set down",
            hint="a connection that is made later comes to the broker by itself",
        )
    try:
        count = int(status["num_of_vrings"])
        sizes = tuple(int(status[f"vring_{index}_size"]) for index in range(count))
        return PortFact(Path(path), int(status["features"], 16), sizes)
    except (KeyError, ValueError) as error:
        raise StateUnknown(f"port {port}: the switch does not describe its rings: {error}", hint=RECONNECT) from error


def _map(column: Sequence[Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in column[1]}


class _Taking:
    def __init__(self, paths: InstancePaths, port: str, fact: PortFact, mark: LogMark, system: System) -> None:
        self._paths, self._port, self._fact, self._mark, self._system = paths, port, fact, mark, system

    def snapshot(self, monitor: Monitor | None) -> Snapshot:
        pid = self._system.read_pid(self._paths.vswitchd_pid)
        if pid is None:
            raise StateUnknown(f"{self._paths.vswitchd_pid}: no ovs-vswitchd runs")
        path = self._fact.socket
        with ForeignProcess(pid) as switch:
            self._check_log(switch)
            logged = log_files.connection(self._mark, path)
            switch_fd = _only(switch.connections(path, listener=False), "connections of the switch", path)
            with self._qemu(switch, switch_fd) as qemu:
                qemu_fd = _only(qemu.connections(path, listener=True), "connections of QEMU", path)
                _check_peer(qemu, qemu_fd, switch)
                ask = monitor or find_monitor(self._system.cmdline(qemu.pid)).monitor(self._system)
                device = device_at(ask, path)
                if (why := why_not_running(ask, device)) is not None:
                    raise StateUnknown(why)
                memory = placed(logged.memory, qemu.mappings(), qemu.files())
                rings = self._rings(ask, device, logged, memory, switch, qemu)
                if logged.features != self._fact.features:
                    raise TryAgain(f"the log says that the features are {logged.features or 0:#x}, and the status"
                                       f" of the interface says {self._fact.features:#x}")  # fmt: skip
                return Snapshot(
                    socket=path, qemu=qemu.fact, qemu_fd=qemu_fd, switch=switch.fact, switch_fd=switch_fd,
                    features=self._fact.features, protocol_features=_known(logged.protocol_features),
                    status=logged.status, mtu=self._mtu(logged, device), memory=memory, rings=rings, log=self._mark,
                )  # fmt: skip

    def _check_log(self, switch: ForeignProcess) -> None:
        if (self._mark.device, self._mark.inode) not in switch.files().values():
            raise StateUnknown(f"{self._paths.log} is not the file to which the switch logs",
                               hint="`ovs-appctl vlog/reopen`, `[stock] log`")  # fmt: skip
        if (level := vhost_log_level(self._paths.vswitchd_ctl)) not in _LOUD:
            raise StateUnknown(f"DPDK's vhost library logs from level {level} on",
                               hint=f"`ovs-appctl dpdk/log-set lib.vhost.config:info`; {RECONNECT}")  # fmt: skip

    def _qemu(self, switch: ForeignProcess, switch_fd: int) -> ForeignProcess:
        """Return the process that has accepted the connection. It need not have made the listening socket: libvirt
        may have (qemu_chardev, ``qemuProcessPrepareHostBackendChardev``)."""
        with socket.socket(fileno=switch.fetch(switch_fd, own=True).detach()) as end:
            listener = credentials(end).pid
        for pid in dict.fromkeys([listener, *self._system.pids()]):
            if pid == listener or _is_qemu(pid):
                with contextlib.suppress(StateUnknown), contextlib.ExitStack() as stack:
                    process = stack.enter_context(ForeignProcess(pid))
                    if process.connections(self._fact.socket, listener=True):
                        stack.pop_all()
                        return process
        raise StateUnknown(f"no QEMU has a connection at {self._fact.socket}", hint=RIGHTS)

    def _rings(
        self, monitor: Monitor, device: DeviceFact, logged: Logged, memory: Sequence[RegionFact],
        switch: ForeignProcess, qemu: ForeignProcess,
    ) -> tuple[RingFact, ...]:  # fmt: skip
        if len(logged.rings) != len(self._fact.sizes):
            raise TryAgain(f"the log has {len(logged.rings)} rings, the switch {len(self._fact.sizes)}")
        started = [index for index, ring in enumerate(logged.rings) if ring.kick is not None]
        if started[:2] != [0, 1] or started != list(range(len(started))):
            raise StateUnknown(f"QEMU has started the rings {started}")
        places = [place_of(index, queue, memory) for index, queue in enumerate(queues(monitor, device, len(started)))]
        check_enabled(logged, pmd_rxqs(self._paths.vswitchd_ctl).get(self._port, ()))
        events, theirs = switch.eventfds(), set(qemu.eventfds().values())
        rings = []
        for index, ring in enumerate(logged.rings):
            place = places[index] if index < len(places) else None
            if place is not None and place.size != self._fact.sizes[index]:
                raise TryAgain(f"ring {index} has {place.size} entries in QEMU and {self._fact.sizes[index]} in the"
                                   " switch")  # fmt: skip
            kick = _event(f"kick of ring {index}", ring.kick, events, theirs)
            call = _event(f"call of ring {index}", ring.call, events, theirs)
            rings.append(RingFact(place=place, kick=kick, call=call, enabled=ring.enabled))
        return tuple(rings)

    def _mtu(self, logged: Logged, device: DeviceFact) -> int | None:
        """The log does not have the value (``vhost_user_net_set_mtu``); QEMU sends its device's ``host_mtu``."""
        if "VHOST_USER_NET_SET_MTU" not in logged.messages:
            return None
        if device.mtu is None:
            raise StateUnknown("QEMU has sent an MTU, and its device has none")
        return device.mtu


def place_of(index: int, queue: QueueFact, memory: Sequence[RegionFact]) -> RingPlaceFact:
    """Return where a ring is in QEMU's memory. Raises StateUnknown if that is not in the regions as a whole, or if
    QEMU's two addresses of the ring do not agree with them."""

    def translated(guest: int) -> int:
        for region in memory:
            if region.guest_address <= guest < region.guest_address + region.size:
                return region.user_address + guest - region.guest_address
        raise StateUnknown(f"ring {index} at the guest's address {guest:#x} is in no memory region of the switch")

    parts = [queue.descriptors, queue.available, queue.used]
    if not queue.translated:
        parts = [translated(part) for part in parts]
    elif translated(queue.guest_descriptors) != queue.descriptors:
        raise StateUnknown(f"ring {index} is at {queue.descriptors:#x} for QEMU, and not there by the switch's regions")
    if queue.size <= 0 or queue.size & (queue.size - 1):
        raise StateUnknown(f"ring {index} has {queue.size} entries")
    for part, length in zip(parts, ring_parts(queue.size), strict=True):
        if not any(region.holds(part, length) for region in memory):
            raise StateUnknown(f"ring {index}: {length} bytes at {part:#x} are not in one memory region")
    return RingPlaceFact(size=queue.size, descriptors=parts[0], available=parts[1], used=parts[2])


def check_enabled(logged: Logged, polled: Sequence[RxQueue]) -> None:
    """Raise StateUnknown if the log does not say of each started ring whether it is enabled, and TryAgain if the PMD
    threads differ: they follow a second later."""
    for index, ring in enumerate(logged.rings):
        if ring.enabled is None and ring.kick is not None:
            raise StateUnknown(f"the log does not say whether ring {index} is enabled")
        if ring.enabled != logged.ring(index ^ 1).enabled:
            raise StateUnknown(f"the log says that one of the rings {index & ~1} and {index | 1} is enabled")
    if not polled:
        raise TryAgain("no PMD thread polls the port")
    for queue in polled:
        if queue.enabled != bool(logged.ring(2 * queue.queue + 1).enabled):
            raise TryAgain(f"queue {queue.queue} is {'' if queue.enabled else 'not '}enabled in the switch, and the"
                               " log says the contrary")  # fmt: skip


def _event(what: str, fd: int | None, events: Mapping[int, int], theirs: set[int]) -> EventFact | None:
    if fd is None or fd < 0:
        return None
    if fd not in events:
        raise StateUnknown(f"descriptor {fd}, the {what} according to the log, is no eventfd of the switch")
    if events[fd] not in theirs:
        raise StateUnknown(f"descriptor {fd}, the {what} according to the log, is not shared with QEMU")
    return EventFact(fd=fd, eventfd=events[fd])


def _known(value: int | None) -> int:
    if value is None:
        raise StateUnknown("the log does not have the protocol features")
    return value


def _only(found: Sequence[int], what: str, path: Path) -> int:
    if len(found) != 1:
        raise StateUnknown(f"there are {len(found)} {what} at {path}, not one")
    return found[0]


def _check_peer(qemu: ForeignProcess, qemu_fd: int, switch: ForeignProcess) -> None:
    with socket.socket(fileno=qemu.fetch(qemu_fd, own=True).detach()) as end:
        pid = credentials(end).pid
    if pid != switch.pid:
        raise StateUnknown(f"the connection of QEMU is with process {pid}, not with the switch, process {switch.pid}",
                           hint="`ovs-hotswap vm list` says whether the VM is adopted already")  # fmt: skip


def _is_qemu(pid: int) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.startswith(("qemu", "kvm"))
    except OSError:
        return False
