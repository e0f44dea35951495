"""A bridge that a script has programmed: access ports, NORMAL, learn, conntrack, a select group and a meter.

Every IP packet passes all of it, and is dropped if a part is missing: the destination must have been learnt (table 10),
the connection must be in zone 7 with the mark of the port that opened it, and the group must have its buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

VLAN = 5  # of the guests' access ports; the uplink is a trunk
ZONE = 7
METERS = ("meter=1,kbps,burst,band=type=drop,rate=200000,burst_size=200000",)
GROUPS = (
    "group_id=1,type=select,selection_method=dp_hash,"
    "bucket=bucket_id=1,weight=1,actions=resubmit(,4),bucket=bucket_id=2,weight=1,actions=resubmit(,4)",
)


def flows(vms: Sequence[int], uplink: int) -> list[str]:
    """The flows, with the cookies of two programs. ``vms`` and ``uplink`` are OpenFlow port numbers."""
    entry = [f"cookie=0xa1,table=0,priority=90,in_port={port},actions=meter:1,resubmit(,1)" for port in vms]
    marks = [
        f"cookie=0xb2,table=3,priority=100,ct_state=+trk+new,ip,in_port={port},"
        f"actions=ct(commit,zone={ZONE},exec(set_field:{port:#x}->ct_mark)),group:1"
        for port in (*vms, uplink)
    ]
    return [
        *entry,
        f"cookie=0xa1,table=0,priority=80,in_port={uplink},actions=resubmit(,1)",
        "cookie=0xa1,table=0,priority=0,actions=drop",
        "cookie=0xa1,table=1,actions=learn(table=10,idle_timeout=300,priority=50,cookie=0xc3,"
        "NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:NXM_OF_IN_PORT[]->NXM_NX_REG6[0..15]),resubmit(,2)",
        "cookie=0xa1,table=2,priority=100,arp,actions=NORMAL",
        f"cookie=0xa1,table=2,priority=90,ip,actions=ct(table=3,zone={ZONE})",
        *marks,
        "cookie=0xb2,table=3,priority=90,ct_state=+trk+est,ct_mark=0,ip,actions=drop",
        "cookie=0xb2,table=3,priority=80,ct_state=+trk+est,ip,actions=group:1",
        "cookie=0xb2,table=3,priority=0,actions=drop",
        "cookie=0xb2,table=4,actions=resubmit(,10),resubmit(,5)",
        "cookie=0xb2,table=5,priority=100,reg6=0,actions=drop",
        "cookie=0xb2,table=5,priority=0,actions=NORMAL",
    ]
