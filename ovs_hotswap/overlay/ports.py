"""The names and OpenFlow numbers of the ports that every bridge has. They are the same on both instances."""

from __future__ import annotations

from ovs_hotswap.model import TAKEN_NAMES

UPLINK = "uplink"
SECOND_UPLINK = "uplink2"  # the port of the second NIC, if there is one
VXLAN = "vxlan"
PEER = "peer"

UPLINK_PORT = 1
VXLAN_PORT = 2
PEER_PORT = 3
SECOND_UPLINK_PORT = 4

FIRST_VM_PORT = 10
LAST_VM_PORT = 4000  # a VM's number is also its tag on the peer link, and 4095 is no VLAN (IEEE 802.1Q, 9.6)

RESERVED_NAMES = TAKEN_NAMES
