"""What a QEMU says about a network device and its rings, by commands that send nothing to the switch.

``x-query-virtio-queue-status`` of a ring of the first queue pair sends GET_VRING_BASE, which stops the ring in the
switch (hw/virtio/virtio-qmp.c, ``qmp_x_query_virtio_queue_status``: a ring from ``vq_index`` on, ``nvqs`` of them, of
the device's first ``vhost_dev``). Its sibling ``x-query-virtio-vhost-queue-status`` sends nothing, and knows exactly
those rings. So a ring is asked about by the sibling first, and by the other command only if QEMU has just said that the
sibling does not know the ring, and never about the first queue pair.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ovs_hotswap.adopt.processes import same_path
from ovs_hotswap.errors import BrokerError, CommandError, StateUnknown
from ovs_hotswap.qemu.monitor import Command, Monitors, Refused
from ovs_hotswap.system import System

LIBVIRT = Path("/run/libvirt")
_ANSWER_S = 5.0
_OLD = "QEMU 7.2 or newer is needed to enter a running connection; otherwise the connection is made again"
_BACKEND = re.compile(r"(?P<netdev>\S+): index=\d+,type=vhost-user,(?:vhost-user\d+ to |chardev=)(?P<chardev>[^\s,]+)")
_FIRST_PAIR = 2  # rings
_NOT_KNOWN = "Invalid vhost virtqueue number"  # hw/virtio/virtio-qmp.c (in 7.2 virtio.c), the sibling's error


class Monitor(Protocol):
    """The monitor of one QEMU."""

    def ask(self, command: str, **arguments: object) -> Any:
        """Return the answer to a command. Raises Refused if QEMU answers with an error, BrokerError if not at all."""


class SocketMonitor:
    """The monitor at a Unix socket, which serves one client at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._monitors = Monitors(lambda _: path, _ANSWER_S)

    def __repr__(self) -> str:
        return f"the monitor at {self._path}"

    def ask(self, command: str, **arguments: object) -> Any:
        answer = self._monitors.ask({str(self._path): Command(command, arguments)})[str(self._path)]
        if answer.error is not None:
            raise answer.error
        return answer.value


class VirshMonitor:
    """The monitor of a domain of libvirt, which is libvirt's alone. libvirt marks the domain as tainted by this."""

    def __init__(self, domain: str, system: System) -> None:
        self._domain, self._system = domain, system

    def __repr__(self) -> str:
        return f"the monitor of libvirt's domain {self._domain}"

    def ask(self, command: str, **arguments: object) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        argv = ["virsh", "--connect", "qemu:///system", "qemu-monitor-command", self._domain, text]
        try:
            done = self._system.run(argv, timeout=_ANSWER_S)
            answer = json.loads(done.stdout)
        except (CommandError, ValueError) as error:
            raise BrokerError(
                f"domain {self._domain}: {command}: {error}", hint=f"`virsh domstate {self._domain}`"
            ) from error
        if not isinstance(answer, dict) or "return" not in answer:
            said = answer.get("error", {}).get("desc", answer) if isinstance(answer, dict) else answer
            raise Refused(f"domain {self._domain}: {command}: {said}")
        return answer["return"]


@dataclass(frozen=True, slots=True)
class MonitorPlace:
    """Where the monitor of a QEMU is: at a socket, or held by libvirt, with the name of its domain. If both are known,
    the socket is libvirt's, and has room for another client only where libvirt does not run."""

    socket: Path | None = None
    domain: str | None = None

    def monitor(self, system: System, libvirt: Path = LIBVIRT) -> Monitor:
        """Return the monitor. ``libvirt`` is the directory of libvirt's sockets.

        Raises StateUnknown if libvirt holds the monitor and there is no ``virsh``.
        """
        if self.domain is not None and (self.socket is None or any(libvirt.glob("*-sock"))):
            if shutil.which("virsh") is None:
                raise StateUnknown(
                    f"libvirt holds the monitor of its domain {self.domain}, and `virsh` is not installed",
                    hint="install libvirt-clients",
                )
            return VirshMonitor(self.domain, system)
        assert self.socket is not None
        return SocketMonitor(self.socket)


@dataclass(frozen=True, slots=True)
class QueueFact:
    """One ring, as QEMU has it. The addresses are those in QEMU's memory if ``translated``, else the guest's."""

    size: int
    descriptors: int
    available: int
    used: int
    translated: bool
    guest_descriptors: int


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """The network device behind one vhost-user socket. ``path`` is that of its virtio device in QEMU's object model."""

    path: str
    netdev: str
    mac: str
    mtu: int | None


def find_monitor(arguments: Sequence[str]) -> MonitorPlace:
    """Return where the monitor of a QEMU is, from its command line. Raises StateUnknown if it has none.

    libvirt's monitor is the chardev ``charmonitor`` (src/qemu/qemu_command.c); another client cannot connect to it.
    """
    pairs = list(itertools.pairwise(arguments))
    chardevs = {
        options.get("id", ""): options for flag, value in pairs if flag == "-chardev" and (options := _options(value))
    }
    controls = [_options(value) for flag, value in pairs if flag == "-mon"]
    for flag, value in pairs:
        if flag in ("-qmp", "-qmp-pretty") and value.startswith("unix:"):
            return MonitorPlace(socket=Path(value.removeprefix("unix:").split(",")[0]))
    names = [options.get("chardev", "") for options in controls if options.get("mode") == "control"]
    for name in names:
        if name != "charmonitor" and (path := chardevs.get(name, {}).get("path")):
            return MonitorPlace(socket=Path(path))
    if "charmonitor" in names:
        guest: dict[str, str] = next((_options(value) for flag, value in pairs if flag == "-name"), {})
        path = chardevs.get("charmonitor", {}).get("path")
        if path or "guest" in guest:
            return MonitorPlace(None if path is None else Path(path), guest.get("guest"))
    raise StateUnknown("QEMU has no monitor at a Unix socket", hint=_OLD)


def _options(text: str) -> dict[str, str]:
    """Return the options of one argument. What stands before the first comma without a name is ``""``."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        found[name if equals else ""] = value if equals else name
    return found


def device_at(monitor: Monitor, socket: Path) -> DeviceFact:
    """Return the network device whose back end listens at ``socket``. Raises StateUnknown, BrokerError."""
    chardevs = [each["label"] for each in _list(monitor.ask("query-chardev")) if _listens_at(each, socket)]
    network = monitor.ask("human-monitor-command", **{"command-line": "info network"})
    netdevs = {each["netdev"] for each in _BACKEND.finditer(str(network)) if each["chardev"] in chardevs}
    if len(netdevs) != 1:
        raise StateUnknown(f"{socket}: {monitor!r} names {len(netdevs)} vhost-user netdevs at this path, not one")
    try:
        devices = [each for each in _list(monitor.ask("x-query-virtio")) if "virtio-net" in str(each.get("name"))]
    except Refused as error:
        raise StateUnknown(f"{socket}: QEMU does not describe its devices: {error.message}", hint=_OLD) from error
    found = []
    for each in devices:
        path = str(each["path"])
        if (netdev := monitor.ask("qom-get", path=path, property="netdev")) in netdevs:
            mtu = monitor.ask("qom-get", path=path, property="host_mtu")
            mac = monitor.ask("qom-get", path=path, property="mac")
            found.append(DeviceFact(path, str(netdev), str(mac), int(mtu) or None))
    if len(found) != 1:
        raise StateUnknown(f"{socket}: {len(found)} network devices have the netdev {', '.join(netdevs)}, not one")
    return found[0]


def _listens_at(chardev: Mapping[str, Any], socket: Path) -> bool:
    kind, _, name = str(chardev.get("filename", "")).removeprefix("disconnected:").partition(":")
    return kind == "unix" and same_path(name.split(",")[0], socket)


def why_not_running(monitor: Monitor, device: DeviceFact) -> str | None:
    """Return why the device's connection cannot be entered now, or ``None``. Raises Refused, BrokerError."""
    status = monitor.ask("x-query-virtio-status", path=device.path)
    back_end = status.get("vhost-dev") or {}
    if not status.get("vhost-started"):
        return "its guest's driver does not run, or its link is set down"
    if status.get("broken"):
        return "QEMU says that its device is broken"
    if back_end.get("log-enabled"):
        return "the VM is being migrated"
    return None


def queues(monitor: Monitor, device: DeviceFact, count: int) -> tuple[QueueFact, ...]:
    """Return the first ``count`` rings. Raises StateUnknown, BrokerError."""
    return tuple(_queue(monitor, device, index) for index in range(count))


def _queue(monitor: Monitor, device: DeviceFact, index: int) -> QueueFact:
    try:
        said = monitor.ask("x-query-virtio-vhost-queue-status", path=device.path, queue=index)
    except Refused as error:
        if index < _FIRST_PAIR or _NOT_KNOWN not in error.message:
            raise StateUnknown(f"ring {index}: QEMU does not describe it: {error.message}", hint=_OLD) from error
    else:
        return _of(index, said, ("num", "desc", "avail", "used", "desc-phys"), translated=True)
    try:
        said = monitor.ask("x-query-virtio-queue-status", path=device.path, queue=index)
    except Refused as error:
        raise StateUnknown(f"ring {index}: QEMU does not describe it: {error.message}", hint=_OLD) from error
    names = ("vring-num", "vring-desc", "vring-avail", "vring-used", "vring-desc")
    return _of(index, said, names, translated=False)


def _of(index: int, said: Any, names: tuple[str, ...], *, translated: bool) -> QueueFact:
    found = [said.get(name) for name in names] if isinstance(said, dict) else []
    values = [value for value in found if type(value) is int and 0 <= value < 1 << 64]
    if len(values) != len(names):
        raise StateUnknown(f"ring {index}: QEMU's answer cannot be understood: {said!r}")
    size, descriptors, available, used, guest = values
    return QueueFact(size, descriptors, available, used, translated, guest)


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise StateUnknown(f"QEMU's answer cannot be understood: {value!r}")
    return value
