"""What a fleet consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.guests.plan import NOBODY, REMOTE
from bench.guests.rings import HUGE_PAGE, PAGE, Shape
from ovs_hotswap.vhostuser.messages import Feature
from tests.support.vhost_qemu import GUEST_FEATURES


@dataclass(frozen=True, slots=True)
class VmSpec:
    """``socket``: where the VM's QEMU listens for its switch."""

    name: str
    mac: str
    socket: Path


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """A device of a network namespace that leads into the VMs' network, as another host's VM would be connected."""

    namespace: str
    device: str
    mac: str


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """The VMs and their traffic. The first ``remote_vms`` VMs exchange frames with the remote host. The others do so in
    pairs, each with the VM that is half of them away; a last one without a partner has no traffic. ``pairs``: the queue
    pairs of each VM. ``frame``: the bytes of a frame without its checksum. ``pause_us``: how long the drivers sleep
    between two looks; 0 is not at all. ``nice``: the drivers' nice value. ``talking_pairs``: so many pairs have
    traffic; ``None`` is all. ``begin``: bytes of each VM's memory before its rings. ``receive_size``: the descriptors
    of receive rings, if they are fewer than ``ring_size``. ``flows``: so many UDP ports does each queue send from.
    """

    vms: tuple[VmSpec, ...]
    pairs: int = 1
    ring_size: int = 256
    features: int = GUEST_FEATURES
    frame: int = 128
    buffer: int = 2048
    hugepages: bool = False
    remote: RemoteHost | None = None
    remote_vms: int = 0
    pause_us: int = 50
    nice: int = -10
    talking_pairs: int | None = None
    begin: int = 0
    receive_size: int | None = None
    flows: int = 1

    @property
    def targets(self) -> tuple[int, ...]:
        """Whom each VM sends to; see ``Plan``."""
        remote = self.remote_vms if self.remote is not None else 0
        half = (len(self.vms) - remote) // 2
        talking = half if self.talking_pairs is None else min(half, self.talking_pairs)
        silent = [NOBODY] * (half - talking)
        first = list(range(remote + half, remote + half + talking)) + silent
        second = list(range(remote, remote + talking)) + silent
        return tuple([REMOTE] * remote + first + second + [NOBODY] * (len(self.vms) - remote - 2 * half))

    @property
    def header(self) -> int:
        """Bytes of ``struct virtio_net_hdr``: with ``num_buffers`` or without (virtio 1.2, 5.1.6)."""
        return 12 if self.features & (1 << Feature.VERSION_1 | 1 << Feature.NET_MRG_RXBUF) else 10

    @property
    def shape(self) -> Shape:
        page = HUGE_PAGE if self.hugepages else PAGE
        return Shape(len(self.vms), self.pairs, self.ring_size, self.buffer, page, self.begin,
                     self.receive_size)  # fmt: skip
