"""Which NICs of an uplink have a link. Both instances share the physical functions, so it is the same for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.rules import TrafficControl


@dataclass(frozen=True, slots=True)
class NicLinks:
    """The links of the physical functions ``devices``, kernel network devices. ``None`` stands for one that the
    configuration does not name, whose link is not known and counts as up. ``control``: the namespace of the devices.

    A virtual function's own link may be forced to be up (`ip link set PF vf N state enable`), and some drivers of DPDK
    do not report it, so the link of the physical function decides.
    """

    control: TrafficControl
    devices: Sequence[str | None]

    def live(self) -> tuple[int, ...]:
        """The numbers of the NICs, from 0, that have a link. If none has one, or the kernel does not answer, all of
        them: there is nothing better to use."""
        try:
            with self.control.open() as kernel:
                links = [None if name is None else kernel.link(name) for name in self.devices]
        except UplinkError:
            return tuple(range(len(self.devices)))
        up = [number for number, (name, link) in enumerate(zip(self.devices, links, strict=True))
              if name is None or (link is not None and link.up and link.carrier)]  # fmt: skip
        return tuple(up or range(len(self.devices)))
