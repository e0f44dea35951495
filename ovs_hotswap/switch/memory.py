"""How much huge page memory an instance needs: its pool of packet buffers, and what DPDK keeps for each VM.

This module is pure. Open vSwitch makes one pool for all ports whose frames fit in the same buffer size. It requests
262 144 buffers, and halves that as long as the memory is not available, down to 16 384 (lib/netdev-dpdk.c,
``dpdk_calculate_mbufs`` and ``dpdk_mp_create``); only its log says that the pool became smaller. ``dpdk-socket-mem`` is
no limit, so without ``dpdk-socket-limit`` an instance takes 750 MiB for buffers of which it uses a few per cent.
``reserve`` finds the smallest of these pools that can hold every packet which the ports may hold at once, and a limit
under which Open vSwitch makes exactly that pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

POOL_SIZES = (16_384, 32_768, 65_536, 131_072, 262_144)  # MIN_NB_MBUF to MAX_NB_MBUF (lib/netdev-dpdk.c)
DEFAULT_MTU = 1500
_MIB = 1 << 20

# Buffers. A network device's ring is full of them: NIC_PORT_DEFAULT_RXQ_SIZE and ..._TXQ_SIZE (lib/netdev-dpdk.c).
RING = 2048
_CACHE = 768  # kept by each thread: RTE_MEMPOOL_CACHE_MAX_SIZE, flushed at one and a half times that
_BURST = 32  # NETDEV_MAX_BURST

# Bytes. A buffer is a struct dp_packet with headroom, a data room in steps of 1024 bytes for the largest frame
# (``dpdk_buf_size``), and the pool's own header and trailer: 3 008 for an MTU of 1500 under OVS 3.1 and 3.5.
_PACKET = 704 + 128
_OBJECT = 64 + 64
_FRAME = 26  # Ethernet header and checksum, two VLAN tags (MTU_TO_MAX_FRAME_LEN)
_RING_SLOT = 16  # per buffer, for the pool's own ring, which has at most twice as many slots as buffers
# What DPDK keeps for a device of vhost-user, as measured with 4 to 255 of them (OVS 3.1): some 75 KiB, and for each
# ring 2 KiB and 40 bytes an entry (shadow_used_split and batch_copy_elems, lib/vhost/vhost_user.c). A ring has 1024
# entries at most in QEMU (VIRTIO_NET_RX_QUEUE_MAX_SIZE).
_DEVICE = 75 << 10
_VIRTQUEUE = (2 << 10) + 40 * 1024
_START = 1 * _MIB  # an instance without ports
_BASE = 5 * _MIB  # for threads, and for devices without a NIC
_DRIVER = 12 * _MIB  # for rings and tables of a NIC's driver


@dataclass(frozen=True, slots=True)
class Uplink:
    """The queues and descriptors of the uplink's device; the defaults are those of Open vSwitch without ``options``."""

    rx_queues: int = 1
    rx_ring: int = RING
    tx_ring: int = RING

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Uplink:
        """Return the uplink of an interface with ``options`` (ovs-vswitchd.conf.db(5)), of which only numbers count."""
        values = {key: int(value) for key, value in options.items() if value.isdecimal() and len(value) < 7}
        return cls(values.get("n_rxq", 1), values.get("n_rxq_desc", RING), values.get("n_txq_desc", RING))


@dataclass(frozen=True, slots=True)
class Demand:
    """What an instance is to serve.

    ``vms`` has the queue pairs of each VM, ``mtus`` the MTUs of all ports, in bytes. ``pmds`` is the number of PMD
    threads. Each of them, and the main thread, has a transmit queue at every port. ``uplinks``: one for each NIC.
    """

    vms: tuple[int, ...]
    mtus: tuple[int, ...]
    pmds: int
    uplinks: tuple[Uplink, ...] = (Uplink(),)

    @property
    def buffers(self) -> int:
        """The most packets that ports and threads hold at once: full rings of the uplinks, each thread's cache, and a
        burst of broadcasts on its way to every port."""
        threads = self.pmds + 1
        rings = sum(each.rx_queues * each.rx_ring + threads * each.tx_ring for each in self.uplinks)
        return rings + threads * _CACHE + self.pmds * _BURST * (len(self.vms) + len(self.uplinks) + 2)

    @property
    def device_bytes(self) -> int:
        """The bytes that DPDK keeps for the VMs besides packets."""
        return sum(_DEVICE + 2 * pairs * _VIRTQUEUE for pairs in self.vms)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The memory of an instance on each NUMA node on which it has PMD threads.

    ``mib`` is what the instance takes, and may take at most. ``buffers`` is the number of buffers in its pool.
    ``shared_mtu`` is the MTU that fixes one buffer size for all ports, if they would otherwise make several pools
    (``other_config:shared-mempool-config``).
    """

    mib: int
    buffers: int
    shared_mtu: int | None = None


@dataclass(frozen=True, slots=True)
class HugePages:
    """The kernel's pages of ``size_kib`` on a NUMA ``node`` (Documentation/admin-guide/mm/hugetlbpage.rst)."""

    size_kib: int
    free: int
    total: int
    node: int = 0


@dataclass(frozen=True, slots=True)
class PacketPool:
    """A pool on a NUMA ``node``: its number of packet ``buffers``, how many of them are ``in_use`` (in the rings of
    devices and on their way, without those in the caches of threads), and the bytes of each."""

    node: int
    buffers: int
    in_use: int
    buffer_bytes: int

    @property
    def mib(self) -> int:
        return self.buffers * self.buffer_bytes >> 20


def buffer_bytes(mtu: int) -> int:
    """Return the size, in bytes, of a packet buffer for frames of ``mtu``, with all that the pool adds."""
    return _OBJECT + _PACKET + data_room(mtu)


def data_room(mtu: int) -> int:
    """Return the bytes for a frame, rounded as Open vSwitch does it: ports with the same value share a pool."""
    return -(-(mtu + _FRAME) // 1024) * 1024


def pool_bytes(buffers: int, mtu: int) -> int:
    """Return the size of a whole pool, in bytes."""
    return buffers * (buffer_bytes(mtu) + _RING_SLOT)


def shared_mtu(mtus: Iterable[int]) -> int | None:
    """Return the MTU whose buffers all ports are to share, or ``None`` if they share a pool by themselves."""
    mtus = list(mtus)
    return max(mtus) if len({data_room(mtu) for mtu in mtus}) > 1 else None


def reserve(demand: Demand, page_mib: int = 2) -> Reservation:
    """Return the least memory with which the instance gets a pool that is large enough.

    ``page_mib`` is the size of a huge page, in MiB.

    Open vSwitch takes the largest pool that fits below the limit, before the VMs connect. So the limit must leave room
    for the VMs beside that pool and none for one of twice the size.
    """
    mtu = max(demand.mtus, default=DEFAULT_MTU)
    for buffers in POOL_SIZES:
        needed = _START + _BASE + len(demand.uplinks) * _DRIVER + demand.device_bytes + pool_bytes(buffers, mtu)
        mib = -(-needed // (page_mib * _MIB)) * page_mib
        if demand.buffers <= buffers and fits(mib, mtu) == buffers:
            break
    return Reservation(mib, buffers, shared_mtu(demand.mtus))


def fits(mib: int, mtu: int) -> int:
    """Return how many buffers Open vSwitch's pool gets under a limit of ``mib``; 0 if not even the smallest fits."""
    room = mib * _MIB - _START
    return max((size for size in POOL_SIZES if size * buffer_bytes(mtu) <= room), default=0)


def limited(wanted: Reservation, limit_mib: int, demand: Demand) -> Reservation:
    """Return what an instance gets that may take at most ``limit_mib``: ``wanted`` if that is within the limit,
    otherwise what fits, which may be too little."""
    if wanted.mib <= limit_mib:
        return wanted
    mtu = max(demand.mtus, default=DEFAULT_MTU)
    return Reservation(limit_mib, fits(limit_mib, mtu), wanted.shared_mtu)
