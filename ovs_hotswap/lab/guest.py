"""One guest: QEMU's command line, and the ways to communicate with a running guest (QMP, its console, its log)."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.layout import GUEST_MTU, OVERLAY_PREFIX, REMOTE, GuestLayout, GuestOptions, Layout, Target
from ovs_hotswap.model import Side
from ovs_hotswap.system import System

READY = b"lab: ready"
_MOST_MB = 4096  # with memory that is plugged
_STATUS = re.compile(rb"<status> (\d+)\r?\n")


def command_line(layout: Layout, guest: GuestLayout, kernel: Path) -> list[str]:
    """QEMU's command line for one guest.

    ``vectors=0``: QEMU 7.2 under TCG ends with a segmentation fault if MSI-X is used with vhost-user.
    ``server=on,wait=off``: QEMU listens for its switch, and does so again after each disconnect. At its start it waits
    for the first switch before it runs the guest or answers QMP (net/vhost-user.c, net_vhost_user_init).
    Port 0 is the console's; the reports have the ports from 1 on.
    """
    options = layout.options
    pages = "hugetlb=on,hugetlbsize=2M" if options.hugepages else "hugetlb=off"
    queues = options.queues
    device = [f"mac={guest.mac}", *(["mq=on"] if queues > 1 else []), "vectors=0", *options.device]
    slots = f",slots={options.memory_slots},maxmem={_MOST_MB}M" if options.memory_slots else ""
    targets = ",".join(f"{target.address}:{_payload(target, options)}" for target in guest.targets)
    boot = [
        "console=ttyS0", "quiet", "panic=-1", "mitigations=off",
        f"lab_address={guest.address}/{OVERLAY_PREFIX}", f"lab_mtu={options.mtu}", f"lab_targets={targets}",
        f"lab_interval={options.ping_interval_ms / 1000:g}",
    ]  # fmt: skip
    reports = []
    for number, target in enumerate(guest.targets, 1):
        path = layout.report_file(guest.name, target.name)
        reports += ["-chardev", f"file,id=report{number},path={path},append=on"]
        reports += ["-device", f"virtserialport,chardev=report{number},nr={number}"]
    return [
        options.qemu, "-name", guest.name, "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "pc,usb=off,vmport=off,memory-backend=memory", "-accel", "tcg",
        "-smp", str(queues), "-m", f"{options.memory_mb}M{slots}",
        "-object", f"memory-backend-memfd,id=memory,size={options.memory_mb}M,share=on,{pages}",
        "-kernel", str(kernel), "-initrd", str(layout.initramfs_file), "-append", " ".join(boot),
        "-chardev", f"file,id=log,path={layout.guest_file(guest.name, 'log')},append=on", "-serial", "chardev:log",
        "-qmp", f"unix:{layout.guest_file(guest.name, 'qmp')},server=on,wait=off",
        *_network(layout, guest),
        "-device", ",".join(["virtio-net-pci,netdev=network", *device]),
        "-device", "virtio-serial-pci,vectors=0",
        "-chardev", f"socket,id=console,path={layout.guest_file(guest.name, 'console')},server=on,wait=off",
        "-device", "virtconsole,chardev=console,nr=0",
        *reports,
    ]  # fmt: skip


def _network(layout: Layout, guest: GuestLayout) -> list[str]:
    """The options of a guest's network device. Side a's socket is the netdev's ``chardev``. The back-end mode
    ``qemu-dual`` needs a monitor of its own."""
    backend = f"vhost-user,id=network,queues={layout.options.queues},chardev=side-a"
    if layout.options.backend is not BackendMode.QEMU_DUAL:
        return [*_socket(layout, guest, Side.A), "-netdev", backend]
    return [
        *_socket(layout, guest, Side.A), *_socket(layout, guest, Side.B),
        "-netdev", f"{backend},standby-chardev=side-b",
        "-qmp", f"unix:{layout.guest_file(guest.name, 'monitor')},server=on,wait=off",
    ]  # fmt: skip


def _socket(layout: Layout, guest: GuestLayout, side: Side) -> list[str]:
    return ["-chardev", f"socket,id=side-{side},path={layout.vhost_file(guest.name, side)},server=on,wait=off"]


def dual_qemu() -> str:
    """The path of the newest installed QEMU with two back ends. Raises LabError."""
    base = Path(os.environ.get("OVS_HOTSWAP_PACKAGES", "/opt/ovs-hotswap"))
    found = sorted(base.glob("qemu-*/bin/qemu-system-x86_64"))
    if not found:
        raise LabError(f"no QEMU with two back ends below {base}", hint="`make packages`")
    return str(found[-1])


def _payload(target: Target, options: GuestOptions) -> int:
    """The number of bytes in a ping after the headers of IP and ICMP. It is that of ping(8), or all that fit into a
    jumbo frame, except to the remote host if the underlay does not carry such frames."""
    carried = target.name != REMOTE or options.mtu <= options.wire.tunnel_mtu
    return options.mtu - 28 if options.mtu > GUEST_MTU and carried else 56


class Guest:
    """A guest of a lab that is up. All methods raise LabError."""

    def __init__(self, layout: Layout, guest: GuestLayout, system: System) -> None:
        self.layout = guest
        self.name = guest.name
        self.sockets = [layout.vhost_file(guest.name, side) for side in Side]
        self.pid_file = layout.guest_file(guest.name, "pid")
        self.log = layout.guest_file(guest.name, "log")
        self._qmp = layout.guest_file(guest.name, "qmp")
        self._console = layout.guest_file(guest.name, "console")
        self._system = system

    @property
    def pid(self) -> int | None:
        """The pid of QEMU; ``None`` if it does not run."""
        pid = self._system.read_pid(self.pid_file)
        return pid if pid is not None and str(self._qmp) in " ".join(self._system.cmdline(pid)) else None

    def boots(self) -> int:
        """How often the guest has come up since the lab was made."""
        try:
            return self.log.read_bytes().count(READY)
        except FileNotFoundError:
            return 0

    def run(self, command: str, timeout: float = 10.0) -> str:
        """Run a shell command in the guest, and return what it printed. Raises LabError for a status other than 0, or
        after ``timeout`` seconds."""
        with self._connect(self._console, timeout) as console:
            try:
                console.sendall(command.encode() + b"\n")
                out = b""
                while not (end := _STATUS.search(out)):
                    more = console.recv(65536)
                    if not more:
                        raise LabError(f"{self.name}: its console was closed")
                    out += more
            except TimeoutError as error:
                raise LabError(f"{self.name}: `{command}` did not end within {timeout:g} s") from error
        printed = out[: end.start()].decode(errors="replace").replace("\r\n", "\n")
        if end[1] != b"0":
            raise LabError(f"{self.name}: `{command}` exited with {int(end[1])}: {printed.strip()}")
        return printed

    def qmp(self, command: str, timeout: float = 5.0, **arguments: object) -> object:
        """Execute a QMP command, and return its result. QEMU does not answer until its first switch has connected."""
        with self._connect(self._qmp, timeout) as link, link.makefile("rwb") as stream:
            try:
                stream.readline()  # greeting
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    reply = json.loads(stream.readline() or b'{"event": "end"}')
                    while "return" not in reply and "error" not in reply:
                        reply = json.loads(stream.readline() or b'{"error": {"desc": "QEMU closed the connection"}}')
            except TimeoutError as error:
                raise LabError(f"{self.name}: QEMU does not answer: it waits for its switch, or it hangs") from error
        if "error" in reply:
            raise LabError(f"{self.name}: {command}: {reply['error']['desc']}")
        return reply["return"]

    def reset(self) -> None:
        """Reboot the guest as a reset button does."""
        self.qmp("system_reset")

    @contextmanager
    def _connect(self, path: Path, timeout: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout)
            try:
                link.connect(str(path))
            except OSError as error:
                raise LabError(f"{self.name}: QEMU does not run ({path}: {error.strerror})") from error
            yield link
