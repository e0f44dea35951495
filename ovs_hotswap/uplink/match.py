"""Which packets on the wire are the overlay's: those of tunnels to the VTEP."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from ovs_hotswap.uplink.frames import ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, VXLAN_UDP_PORT


@dataclass(frozen=True, slots=True)
class Match:
    """Unfragmented UDP packets to ``udp_port`` of ``address``, with the VLAN tag ``vlan`` or, if it is ``None``,
    without any. RFC 7348 section 4.3 forbids fragmenting between VTEPs."""

    address: str
    udp_port: int = VXLAN_UDP_PORT
    vlan: int | None = None

    @property
    def protocol(self) -> int:
        """The protocol of a filter of traffic control for them. The kernel takes a packet's tag off before it asks any
        filter, and then calls the packet one of 802.1Q (net/core/dev.c, __netif_receive_skb_core; include/linux/
        if_vlan.h, skb_protocol)."""
        if self.vlan is not None:
            return ETH_P_8021Q
        return ETH_P_IP if ip_address(self.address).version == 4 else ETH_P_IPV6

    def __str__(self) -> str:
        tag = "" if self.vlan is None else f" in VLAN {self.vlan}"
        return f"UDP port {self.udp_port} of {self.address}{tag}"
