"""Facts about a host whose switch others installed and programmed. This module is pure; the other modules of this
package read the facts, and ``upgrade.stock_checks`` judges them.

``None`` always means that something is not known, and ``Facts.unreadable`` then says why.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StockLog:
    """What the log of ovs-vswitchd has. ``file``: the one that the process has open; ``None`` if it writes none.
    ``level``: of the module ``dpdk`` for that file, such as ``INFO`` (vlog/list). ``vhost_level``: of DPDK's vhost
    library, such as ``info`` (dpdk/log-list)."""

    file: str | None
    level: str | None
    vhost_level: str | None


@dataclass(frozen=True, slots=True)
class StockSwitch:
    """The two processes. ``database``: the file that ovsdb-server serves. ``pmd_cores``: the cores on which PMD threads
    run. ``other_config`` and ``external_ids``: of the Open_vSwitch table. ``unit``: the unit of systemd that
    ovs-vswitchd belongs to. ``monitor``: the process that starts ovs-vswitchd again when it is killed
    (--monitor), if there is one. ``locks_memory``: it allocates all that it maps at once (--mlockall).
    ``lacks_memif``, ``lacks_af_packet``: it has not loaded this driver of DPDK, and no longer can."""

    vswitchd_pid: int | None
    ovsdb_pid: int | None
    ovs_version: str | None
    dpdk_version: str | None
    dpdk_ready: bool
    database: str | None
    pmd_cores: tuple[int, ...]
    other_config: Mapping[str, str]
    external_ids: Mapping[str, str]
    log: StockLog
    unit: str | None = None
    monitor: int | None = None
    locks_memory: bool = False
    lacks_memif: bool = False
    lacks_af_packet: bool = False


class PortKind(enum.StrEnum):
    """How a VM's port meets its QEMU. ``CLIENT``: the switch connects to QEMU. ``SERVER``: QEMU connects to the switch
    (``dpdkvhostuser``). ``VDUSE``: no QEMU, but a device of the kernel below /dev/vduse."""

    CLIENT = "client"
    SERVER = "server"
    VDUSE = "vduse"


@dataclass(frozen=True, slots=True)
class Monitor:
    """A QMP socket of a QEMU. ``path`` is empty if it is no Unix socket. ``client``: who is connected to it."""

    path: str
    client: str | None = None


@dataclass(frozen=True, slots=True)
class StockQemu:
    """The QEMU at the other end of a VM's port. ``guest``: its name. ``version``: as in ``7.2``; ``None`` if it could
    not be found out. ``libvirt``: libvirt holds its monitor. ``memory``: its memory back ends, such as
    ``memory-backend-memfd``. ``label``: its AppArmor profile or SELinux context. ``traceable``: whether this process
    may duplicate its descriptors."""

    pid: int
    guest: str | None
    version: str | None
    monitors: tuple[Monitor, ...]
    libvirt: bool
    memory: tuple[str, ...]
    machine: str | None
    kvm: bool
    label: str
    traceable: bool


@dataclass(frozen=True, slots=True)
class VmLog:
    """What the log tells of a VM's connection. ``regions``: memory regions of the last memory table. ``small_pages``:
    bytes of the guest's memory in pages of 4 KiB. ``fault``: why it does not tell all that was sent over it, and
    ``hint`` what helps; then nothing else is known from it."""

    regions: int | None = None
    small_pages: int = 0
    fault: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class StockVm:
    """A VM's port. ``socket``: its path. ``acked``: the features that its guest acknowledged; ``None`` if it is not
    connected. ``vrings``: two for each queue pair. ``adopted``: the broker is at the other end already. ``fault``: why
    the switch could not make the port."""

    name: str
    bridge: str
    kind: PortKind
    socket: str
    ofport: int | None = None
    connected: bool = False
    acked: int | None = None
    vrings: int = 0
    mtu: int | None = None
    tag: int | None = None
    vlan_mode: str | None = None
    trunks: tuple[int, ...] = ()
    adopted: bool = False
    fault: str | None = None
    qemu: StockQemu | None = None
    log: VmLog = VmLog()


@dataclass(frozen=True, slots=True)
class MarkUse:
    """A flow or group that uses ``pkt_mark``. ``sets``: the value that it sets; ``None`` if it only matches on the
    mark. ``computed``: the value comes from a field or is set in part, so it may be any."""

    flow: str
    sets: int | None = None
    computed: bool = False


@dataclass(frozen=True, slots=True)
class StockBridge:
    """A bridge. ``datapath``: ``netdev`` is in user space; ``system`` or an empty text is the kernel's. ``mirrors`` has
    their names, ``exports`` those of the protocols by which it reports flows. ``flows``: how many there are. ``marks``:
    the first uses of pkt_mark. ``to_all``: the first flows and groups that output to ALL. ``highest``: the first flows
    of table 0 with the highest priority. ``tables``: those that have flows. ``identity_nat``: a flow commits
    connections with ``nat(src)`` or ``nat(dst)`` without an address."""

    name: str
    datapath: str = "netdev"
    mirrors: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()
    stp: bool = False
    rstp: bool = False
    snooping: bool = False
    flows: int | None = 0
    marks: tuple[MarkUse, ...] = ()
    to_all: tuple[str, ...] = ()
    highest: tuple[str, ...] = ()
    tables: tuple[int, ...] = ()
    identity_nat: bool = False

    @property
    def in_user_space(self) -> bool:
        return self.datapath == "netdev"


class DeviceKind(enum.StrEnum):
    """What DPDK drives: a physical or a virtual function of a NIC, a representor, or a device that DPDK itself makes,
    such as net_af_packet. ``ABSENT``: no such device is seen."""

    PF = "physical function"
    VF = "virtual function"
    REPRESENTOR = "representor"
    VIRTUAL = "virtual device"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class StockUplink:
    """A port of type dpdk. ``driver``: the kernel's driver of a PCI device."""

    name: str
    bridge: str
    devargs: str
    kind: DeviceKind
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class KernelPort:
    """A port that the kernel knows: ``kind`` is ``internal`` (a tap of the switch), ``veth``, ``tap`` or another kind
    of device. ``addresses`` with their prefixes; those that the kernel makes for a link do not count. ``routes``: how
    many routes lead over it. ``daemons``: processes that listen on it, as ``NAME (PID)``."""

    name: str
    bridge: str
    kind: str
    addresses: tuple[str, ...] = ()
    routes: int = 0
    daemons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StockOvn:
    """OVN on this host. ``pid``: of ovn-controller, ``None`` if it does not run."""

    remote: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the bridges consist of besides the VMs' ports. ``lacp``, ``bfd``, ``cfm`` and ``qos`` have the names of
    ports, ``tunnels`` the type of each port. ``agents``: processes of Neutron's agent."""

    bridges: tuple[StockBridge, ...] = ()
    uplinks: tuple[StockUplink, ...] = ()
    kernel_ports: tuple[KernelPort, ...] = ()
    lacp: tuple[str, ...] = ()
    bfd: tuple[str, ...] = ()
    cfm: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    tunnels: Mapping[str, str] = field(default_factory=dict)
    managers: tuple[str, ...] = ()
    ovn: StockOvn | None = None
    agents: tuple[int, ...] = ()

    @property
    def identity_nat(self) -> bool:
        return any(bridge.identity_nat for bridge in self.bridges)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What limits this process towards others. ``ptrace_scope``: Yama's; ``None`` without Yama. ``own_label``: this
    process's AppArmor profile or SELinux context. ``selinux``: SELinux enforces its rules."""

    ptrace_scope: int | None = None
    own_label: str = "unconfined"
    selinux: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. ``unreadable``: what could not be read, and why, one text each."""

    switch: StockSwitch
    vms: tuple[StockVm, ...] = ()
    pipeline: Pipeline = Pipeline()
    confinement: Confinement = Confinement()
    unreadable: tuple[str, ...] = ()
