"""A frame sent from one instance and counted on the other: the proof that both forward, before any VM depends on it."""

from __future__ import annotations

from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import PEER_PORT
from ovs_hotswap.overlay.tables import VLAN_PRESENT, Kind, cookie_kind

# No VM has this tag (ofports end at 4000), so the other instance counts the frame and drops it: no guest sees it.
_TAG = 4094
# Local experimental ethertype (IEEE 802, 9.2.3) between two locally administered addresses.
_HEADER = bytes.fromhex("02000000000f02000000000e88b5")
_OWN_TAG = 4  # the peer link's, which is pushed here
_COUNTED_S = 10.0
_AGAIN_S = 0.1


def across_peer_link(host: Host, sender: Side) -> None:
    """Send a frame as long as the longest that the link is to carry from ``sender``, and wait until the other instance
    counts it. A link that has just come up may lose the first frames, so the frame is sent repeatedly. Raises
    SwitchError if none is counted."""
    receiver = sender.other
    frame = _HEADER + bytes((host.peer_spec(sender).mtu or 0) - _OWN_TAG)
    before = _unknown_tags(host, receiver)
    sent = float("-inf")

    def came() -> bool:
        nonlocal sent
        if host.system.monotonic() - sent >= _AGAIN_S:
            sent = host.system.monotonic()
            host.openflow(sender).packet_out(
                frame, f"push_vlan:0x88a8,set_field:{VLAN_PRESENT + _TAG}->vlan_vid,output:{PEER_PORT}"
            )
        return _unknown_tags(host, receiver) > before

    host.wait(
        came,
        _COUNTED_S,
        lambda: f"a frame that instance {sender} sent over the peer link did not reach instance {receiver}",
    )


def _unknown_tags(host: Host, side: Side) -> int:
    counters = host.openflow(side).drops()
    return sum(each.packets for each in counters if cookie_kind(each.cookie) is Kind.DROP_UNKNOWN_TAG)
