"""A stock host whose guests are libvirt's domains, with ``<interface type='vhostuser'>``."""

from __future__ import annotations

import json
import operator
from xml.sax.saxutils import quoteattr

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.initramfs import find_kernel
from ovs_hotswap.lab.layout import GuestLayout, Layout
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


def domain(layout: Layout, guest: GuestLayout, kind: GuestKind, socket: str) -> str:
    """The XML of a domain (libvirt.org, formatdomain). ``vectors`` is 0 as in ``stock_guest.command_line``."""
    kernel = find_kernel().image
    queues = f"<driver queues='{kind.queues}'/>" if kind.queues > 1 else ""
    reports = "".join(
        f"<channel type='file'><source path={quoteattr(str(layout.report_file(guest.name, target.name)))} append='on'/>"
        f"<target type='virtio' name='report{number}'/>"
        f"<address type='virtio-serial' controller='0' bus='0' port='{number}'/></channel>"
        for number, target in enumerate(guest.targets, 1)
    )
    return f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{guest.name}</name>
  <memory unit='MiB'>{kind.memory_mb}</memory>
  <memoryBacking>{_MEMORY[kind.memory]}</memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{layout.initramfs_file}</initrd>
    <cmdline>{boot_line(layout, guest)}</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/{layout.options.qemu}</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0' vectors='0'/>
    <interface type='vhostuser'>
      <mac address='{guest.mac}'/>
      <source type='unix' path={quoteattr(socket)} mode='server'/>
      <model type='virtio'/>
      {queues}
    </interface>
    <serial type='file'><source path='{layout.guest_file(guest.name, "log")}' append='on'/></serial>
    <console type='file'><source path='{layout.guest_file(guest.name, "log")}' append='on'/>
      <target type='serial'/></console>
    <console type='unix'><source mode='bind' path='{layout.guest_file(guest.name, "console")}'/>
      <target type='virtio'/><address type='virtio-serial' controller='0' bus='0' port='0'/></console>
    {reports}
    <memballoon model='none'/>
  </devices>
  <qemu:override>
    <qemu:device alias='net0'>
      <qemu:frontend><qemu:property name='vectors' type='unsigned' value='0'/></qemu:frontend>
    </qemu:device>
  </qemu:override>
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
