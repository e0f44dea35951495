"""A stock host whose guests are libvirt's domains, with ``<interface type='vhostuser'>``."""

from __future__ import annotations

import contextlib
import json
import operator
from xml.sax.saxutils import quoteattr

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.initramfs import find_kernel
from ovs_hotswap.lab.layout import OVERLAY_PREFIX, GuestLayout, Layout
from ovs_hotswap.waiting import wait_until
from tests.support.stock_guest import GuestKind, StockGuest, boot_line
from tests.support.stock_host import StockHost
from tests.support.stock_space import PLACES

LIBVIRT_PLACES = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
_READY_S = 30.0

# No daemon beside libvirtd, no control groups and no confinement: the host has no systemd.
_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_LIBVIRTD_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
_MEMORY = {
    "memfd": "<source type='memfd'/><access mode='shared'/>",
    "hugetlb": "<hugepages><page size='2' unit='M'/></hugepages><source type='memfd'/><access mode='shared'/>",
    "file": "<hugepages><page size='2' unit='M'/></hugepages><access mode='shared'/>",
}


def interface(guest: GuestLayout, kind: GuestKind, socket: str) -> str:
    """The XML of a domain's interface, for ``domain`` and for ``virsh attach-device``."""
    queues = f"<driver queues='{kind.queues}'/>" if kind.queues > 1 else ""
    return f"""\
<interface type='vhostuser'>
  <mac address='{guest.mac}'/>
  <source type='unix' path={quoteattr(socket)} mode='server'/>
  <model type='virtio'/>
  {queues}
</interface>
"""


def domain(layout: Layout, guest: GuestLayout, kind: GuestKind, socket: str) -> str:
    """The XML of a domain (libvirt.org, formatdomain). The guest uses no MSI-X, with which QEMU 7.2 ends under TCG if
    the device is vhost-user's; ``acpi`` is what tells the guest of a device that is plugged."""
    kernel = find_kernel().image
    reports = "".join(
        f"<channel type='file'><source path={quoteattr(str(layout.report_file(guest.name, target.name)))} append='on'/>"
        f"<target type='virtio' name='report{number}'/>"
        f"<address type='virtio-serial' controller='0' bus='0' port='{number}'/></channel>"
        for number, target in enumerate(guest.targets, 1)
    )
    return f"""\
<domain type='qemu'>
  <name>{guest.name}</name>
  <memory unit='MiB'>{kind.memory_mb}</memory>
  <memoryBacking>{_MEMORY[kind.memory]}</memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{layout.initramfs_file}</initrd>
    <cmdline>{boot_line(layout, guest)} pci=nomsi</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/{layout.options.qemu}</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0' vectors='0'/>
    {interface(guest, kind, socket)}
    <serial type='file'><source path='{layout.guest_file(guest.name, "log")}' append='on'/></serial>
    <console type='file'><source path='{layout.guest_file(guest.name, "log")}' append='on'/>
      <target type='serial'/></console>
    <console type='unix'><source mode='bind' path='{layout.guest_file(guest.name, "console")}'/>
      <target type='virtio'/><address type='virtio-serial' controller='0' bus='0' port='0'/></console>
    {reports}
    <memballoon model='none'/>
  </devices>
</domain>
"""


class LibvirtHost(StockHost):
    """A stock host that starts, stops and asks its guests through ``virsh``."""

    places = (*PLACES, *LIBVIRT_PLACES)

    def virsh(self, *words: str, timeout: float = 30.0) -> str:
        return self.run(["virsh", "--connect", "qemu:///system", "--quiet", *words], timeout=timeout)

    def start_guest(self, name: str) -> None:
        guest = self.guest(name)
        file = self.layout.guest_file(name, "xml")
        file.write_text(domain(self.layout, guest.layout, guest.kind, str(guest.socket)))
        self.virsh("create", str(file))

    def stop_guest(self, name: str) -> None:
        self.virsh("destroy", name)

    def power_off(self, name: str) -> None:
        """Have the guest power itself off; return when its domain has ended."""
        with contextlib.suppress(LabError):
            self.guest(name).run("poweroff -f", timeout=1.0)  # its console does not answer any more

        def running() -> list[str]:
            return [each for each in self.virsh("list", "--name").split() if each == name]

        assert wait_until(running, _READY_S, self._system, done=operator.not_, poll_s=0.1) == []

    def unplug(self, name: str) -> None:
        """Take the interface out of the running domain; return when the guest no longer has it."""
        guest = self.guest(name)
        guest.run("true", timeout=_READY_S)  # a guest that boots does not hear of it
        self.virsh("detach-interface", name, "vhostuser", "--mac", guest.mac)
        gone = operator.not_
        assert wait_until(lambda: self._interfaces(name), _READY_S, self._system, done=gone, poll_s=0.1) == []

    def plug_in(self, name: str) -> None:
        """Put the interface back, and give the guest's device its address again."""
        guest = self.guest(name)
        file = self.layout.guest_file(name, "device.xml")
        file.write_text(interface(guest.layout, guest.kind, str(guest.socket)))
        self.virsh("attach-device", name, str(file))
        guest.run(
            "until [ -e /sys/class/net/eth0 ]; do usleep 10000; done; "
            f"ip link set eth0 mtu {self.layout.options.mtu} up; "
            f"ip address add {guest.address}/{OVERLAY_PREFIX} dev eth0"
        )

    def _interfaces(self, name: str) -> list[str]:
        return [line for line in self.virsh("domiflist", name).splitlines() if line.strip()]

    def _install(self) -> None:
        super()._install()
        directory = self.outside("/etc/libvirt")
        (directory / "qemu.conf").write_text(_QEMU_CONF)
        (directory / "libvirtd.conf").write_text(_LIBVIRTD_CONF)
        self.run(["libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid"])

        def answers() -> bool:
            return self.completed(["virsh", "--connect", "qemu:///system", "list"]).status == 0

        assert wait_until(answers, _READY_S, self._system, done=operator.truth, poll_s=0.2), "libvirtd does not answer"

    def _make_guest(self, guest: GuestLayout, kind: GuestKind) -> StockGuest:
        return LibvirtGuest(self, guest, kind)


class LibvirtGuest(StockGuest):
    """A domain. libvirtd has its monitor, so that ``qmp`` goes through libvirtd."""

    def __init__(self, host: LibvirtHost, guest: GuestLayout, kind: GuestKind) -> None:
        super().__init__(host.layout, guest, kind, host.vhost_dir / f"{guest.name}.sock", host._system)
        self._host = host

    @property
    def pid(self) -> int | None:
        return self._system.read_pid(self._host.outside(f"/run/libvirt/qemu/{self.name}.pid"))

    def qmp(self, command: str, timeout: float = 5.0, **arguments: object) -> object:
        request = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(self._host.virsh("qemu-monitor-command", self.name, request, timeout=timeout))
        if "error" in reply:
            raise LabError(f"{self.name}: {command}: {reply['error']['desc']}")
        return reply["return"]
