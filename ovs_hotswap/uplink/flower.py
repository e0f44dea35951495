"""Uplink driver ``switchdev``: flower filters that the card carries out, for NICs in switchdev mode (ice, mlx5).

The filters have the flag skip_sw, so the kernel takes one only if the card does (net/sched/cls_flower.c,
fl_hw_replace_filter), and no program or filter in software sees the packets before. A ``replace`` of a handle gives the
new filter to the card before the old one is taken from it, and if the card refuses the new one, the old one stays
(fl_change). So for a moment the card has both, either instance or both get a packet, and none is lost.

All filters have priority 1: mlx5 with some firmware takes no other (mlx5e_tc_add_fdb_flow). What a VF sends is matched
by the VTEP's MAC, because ice takes no filter without a condition (ice_add_adv_rule). Priority and handle identify our
filters.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from ipaddress import ip_address

from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.uplink.frames import ETH_P_ALL
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.redirect import RedirectUplink, Scheme
from ovs_hotswap.uplink.rules import FlowerKeys, Kernel, Keys, Link, Rule

PRIORITY = 1
HANDLE = 4789  # flower takes any number


def tunnel_packets(match: Match) -> tuple[int, FlowerKeys]:
    """The protocol and the keys of a filter for the packets of ``match``."""
    return match.protocol, FlowerKeys(ip_address(match.address), match.udp_port, match.vlan)


def _ours(rule: Rule, protocol: int, keys: Keys) -> bool:
    return rule.handle == HANDLE and isinstance(rule.keys, FlowerKeys)


class FlowerUplink(RedirectUplink):
    """The driver. ``RedirectUplink`` explains the arguments. ``device`` is the NIC's uplink representor, which is its
    physical function's device."""

    def _make_scheme(self, match: Match) -> Scheme:
        taken = (ETH_P_ALL, FlowerKeys(source_mac=self._mac))
        return Scheme(PRIORITY, tunnel_packets(match), taken, _ours, in_hardware=True)

    def _why_refused(self, kernel: Kernel, name: str, link: Link, error: NetlinkError) -> UplinkError | None:
        with contextlib.suppress(NetlinkError, UplinkError):
            if error.code == errno.EOPNOTSUPP and (shared := super()._why_refused(kernel, name, link, error)):
                return shared
            for fault in self._faults(kernel):
                return UplinkError(f"{fault.text}; the card did not take the filter on {name}", hint=fault.hint)
        if error.code == errno.ENOENT:
            return UplinkError(f"this kernel has no flower filters ({name})", hint="modprobe cls_flower")
        return UplinkError(
            f"the card does not take the filter on {name}: {error.args[-1]}; nothing was changed there",
            hint=f"see `dmesg`; by hand: tc filter add dev {name} ingress prio {PRIORITY} flower skip_sw ...",
        )

    def _check_nic(self, kernel: Kernel) -> Iterator[Finding]:
        yield from self._faults(kernel)
        for name, wanted in self._places():
            link = kernel.link(name)
            ours = None if link is None else self._sort(kernel.rules(link), wanted).ours
            if ours is not None and not ours.in_hardware:
                yield Finding(
                    "uplink", Severity.ERROR, f"{name}: our filter is not in hardware, so it does nothing",
                    "`ovs-hotswap overlay apply` makes it again",
                )  # fmt: skip

    def _faults(self, kernel: Kernel) -> Iterator[Finding]:
        """The reasons why the card can take no filter."""
        device = kernel.link(self._device)
        if device is None:
            return
        nic = device.parent or f"the NIC of {self._device}"
        links = [(name, kernel.link(name)) for name in self._representors.values()]
        strange = [name for name, link in links if link is not None and link.switch != device.switch]
        if not device.switch:
            yield Finding("uplink", Severity.ERROR, f"{nic} is not in switchdev mode, so its card forwards nothing",
                          f"devlink dev eswitch set {device.parent or 'pci/ADDRESS'} mode switchdev (ice takes it "
                          "only while there are no VFs)")  # fmt: skip
        elif strange:
            yield Finding("uplink", Severity.ERROR, f"{' and '.join(strange)}: no representors of {nic}",
                          "see `devlink port show` and `devlink dev eswitch show`")  # fmt: skip
        for name in (self._device, *self._representors.values()):
            if kernel.link(name) is not None and not kernel.offloads(name):
                yield Finding("uplink", Severity.ERROR, f"{name}: hw-tc-offload is off, so its card takes no filter",
                              f"ethtool -K {name} hw-tc-offload on")  # fmt: skip
