"""The rules of the driver ``i40e``: cloud filters of Intel's out-of-tree driver i40e. Pure.

What is said here of that driver was read in its version 2.28.16. A cloud filter is a classification rule whose user-def
data has bit 63 set (i40e_ethtool.c, i40e_parse_rx_flow_user_data). Unlike a rule of the flow director it gives a
virtual function (VF) what would not have come to it otherwise. Two forms serve the overlay:

- The UDP port. The driver must be loaded with l4mode=0, and compares the port alone, not the address
  (i40e_cloud_filter_mask2flags, and i40e_add_cloud_filter_ethtool for UDP_V4_FLOW). Queue 0xffff is the VF's own
  distribution to its queues (RSS).
- The destination address. With bit 62 the NIC compares the outer address, for which it needs a DDP package of Intel's
  with the track id 0x8000000e (i40e_check_custom_cf_package); queue 0xffff is allowed then. Without the package the
  rule must name one queue of the VF.

The driver refuses a rule whose match another location has already, so there is never more than one rule of ours. Each
side has its own location. So a rule shows whose it is, also after a reset of its VF, when it leads to no VF any longer
(i40e_get_cloud_filter_entry).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ovs_hotswap.model import Side
from ovs_hotswap.uplink.ethtool import IP_USER_FLOW, UDP_V4_FLOW, FlowRule

CLOUD, OUTER = 1 << 63, 1 << 62
ANY_QUEUE = 0xFFFF  # I40E_CLOUD_FILTER_ANY_QUEUE


class Place(enum.Enum):
    """What is at one of our locations. ``STALE``: a rule of ours that does not lead to the VF of its side, or whose
    match is an earlier one."""

    FREE = enum.auto()
    OURS = enum.auto()
    STALE = enum.auto()
    FOREIGN = enum.auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules that the driver may make. ``address``: the VTEP's, if that is what is matched; otherwise ``port`` is.
    ``vfs`` and ``locations`` are those of each side."""

    vfs: Mapping[Side, int]
    locations: Mapping[Side, int]
    port: int
    address: str | None = None

    def rules(self, side: Side) -> Sequence[FlowRule]:
        """The rules that give ``side`` the traffic. The first that the NIC can carry out is the right one."""
        location, vf = self.locations[side], self.vfs[side]
        if self.address is None:
            return [FlowRule(location, UDP_V4_FLOW, vf, ANY_QUEUE, port=self.port, user=CLOUD)]
        return [
            FlowRule(location, IP_USER_FLOW, vf, ANY_QUEUE, address=self.address, user=CLOUD | OUTER),
            FlowRule(location, IP_USER_FLOW, vf, 0, address=self.address, user=CLOUD),
        ]

    def place(self, side: Side, found: FlowRule | None) -> Place:
        """What the rule that was ``found`` at the side's location is."""
        if found is None:
            return Place.FREE
        if any(same(found, each) for each in self.rules(side)):
            return Place.OURS
        ours = any(same(replace(found, vf=each.vf), each) for each in self.rules(side)) and found.vf is None
        earlier = found.vf == self.vfs[side] and found.user & CLOUD and found.flow in (UDP_V4_FLOW, IP_USER_FLOW)
        return Place.STALE if ours or earlier else Place.FOREIGN

    def rivals(self, rules: Sequence[FlowRule]) -> list[FlowRule]:
        """Rules elsewhere with the same match, beside which ours is refused."""
        wanted, mine = [each for side in Side for each in self.rules(side)], set(self.locations.values())
        return [rule for rule in rules if rule.location not in mine and any(alike(rule, each) for each in wanted)]


def alike(one: FlowRule, other: FlowRule) -> bool:
    """Whether two cloud filters match the same. The flow is not compared, because with l4mode every rule for an address
    is reported as one for UDP without a port."""
    return bool(one.user & other.user & CLOUD) and (one.address, one.port) == (other.address, other.port)


def same(found: FlowRule, wanted: FlowRule) -> bool:
    """Whether what was read back is what was wanted."""
    flags = CLOUD | OUTER
    return (
        alike(found, wanted)
        and (found.location, found.vf, found.queue) == (wanted.location, wanted.vf, wanted.queue)
        and found.user & flags == wanted.user & flags
    )


def insertable(found: FlowRule) -> FlowRule:
    """A rule of ours as it was read, as it has to be inserted again."""
    flow = IP_USER_FLOW if found.port is None and found.address is not None else found.flow
    return replace(found, flow=flow, user=found.user & (CLOUD | OUTER))


def words(rule: FlowRule) -> str:
    """The rule in words."""
    to = "the device itself" if rule.vf is None else f"VF {rule.vf}"
    match = [f"UDP port {rule.port}"] if rule.port else []
    match += [f"{'outer ' if rule.user & OUTER else ''}address {rule.address}"] if rule.address else []
    queue = "" if rule.queue == ANY_QUEUE else f", queue {rule.queue}"
    what = " and ".join(match) or "another kind of packets"
    return f"rule {rule.location}: {what} to {to}{queue}"
