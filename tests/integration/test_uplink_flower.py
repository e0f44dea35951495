"""The bytes of our flower filters are those of iproute2. The kernel need not have the classifier: it refuses a request
that was sent, and strace shows this."""

from __future__ import annotations

import re
import subprocess
import sys

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.uplink.flower import HANDLE, PRIORITY, tunnel_packets
from ovs_hotswap.uplink.frames import ETH_P_ALL
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.rtnl import RtnlKernel
from ovs_hotswap.uplink.rules import FlowerKeys, Rule

MAC = "52:54:00:1f:00:01"
ALL = {
    "protocol ip flower skip_sw ip_proto udp dst_ip 10.0.0.1 dst_port 4789": tunnel_packets(Match("10.0.0.1")),
    "protocol ipv6 flower skip_sw ip_proto udp dst_ip fd00:1::1 dst_port 4789": tunnel_packets(Match("fd00:1::1")),
    "protocol ip flower skip_sw ip_proto udp dst_ip 10.0.0.1 dst_port 8472":
        tunnel_packets(Match("10.0.0.1", 8472)),
    "protocol 802.1Q flower skip_sw vlan_id 7 vlan_ethtype ip ip_proto udp dst_ip 172.31.0.1 dst_port 4789":
        tunnel_packets(Match("172.31.0.1", vlan=7)),
    f"protocol all flower skip_sw src_mac {MAC}": (ETH_P_ALL, FlowerKeys(source_mac=MAC)),
}  # fmt: skip
DEVICES = [["ip", "link", "add", "pf0", "type", "veth", "peer", "name", "rep-a"],
           ["tc", "qdisc", "add", "dev", "pf0", "clsact"]]  # fmt: skip


def put_all() -> None:
    """Put every filter on pf0 through rtnetlink."""
    with IPRoute() as route:
        kernel = RtnlKernel(route)
        device, representor = kernel.link("pf0"), kernel.link("rep-a")
        assert device is not None
        assert representor is not None
        for protocol, keys in ALL.values():
            try:
                kernel.replace(device, Rule(PRIORITY, protocol, 0, keys, representor.index))
            except NetlinkError as error:
                print(error)


def requests(command: str) -> list[tuple[str, ...]]:
    """The new filters in what a shell command has sent, in a network namespace with DEVICES: handle, parent, priority
    and protocol, and the attributes in hexadecimal."""
    prepare = "; ".join(" ".join(each) for each in DEVICES)
    traced = f"{prepare}; strace -f -xx -s 65536 -e trace=sendto,sendmsg {command}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", traced], capture_output=True, text=True, check=False)
    pattern = r"RTM_NEWTFILTER.*tcm_handle=(\w+), tcm_parent=(\w+), tcm_info=(\w+)\}, (\[\[.*?\]\])"
    return re.findall(pattern, done.stderr)


def test_the_kernel_is_sent_what_iproute2_sends() -> None:
    action = "action mirred egress redirect dev rep-a"
    lines = [f"filter add dev pf0 ingress pref {PRIORITY} handle {HANDLE} {words} {action}" for words in ALL]
    theirs = requests("tc -force -batch - <<END\n" + "\n".join(lines) + "\nEND\n")
    ours = requests(f"{sys.executable} -m {__name__}")
    assert len(theirs) == len(ALL)
    assert ours == theirs


if __name__ == "__main__":
    put_all()
