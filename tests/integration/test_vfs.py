"""The settings of VFs, held to what `ip` sends to the kernel. The kernel refuses them for a device that has no VFs,
and strace(1) sees the messages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.uplink.vf import NAMES, Value, command

SETTINGS: list[tuple[str, Value]] = [
    ("mac", "02:00:00:00:00:01"), ("vlan", 0), ("vlan", 100), ("vlan", 100 | 3 << 13), ("spoof_check", False),
    ("spoof_check", True), ("link_state", "auto"), ("link_state", "enable"), ("link_state", "disable"),
    ("trust", True), ("trust", False),
]  # fmt: skip
OURS = """
import sys
from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.vf import RtnlVfs
for name, value in {settings!r}:
    try:
        RtnlVfs().set("lo", 5, name, value)
    except UplinkError as error:
        print(error.message)
"""
RTM_NEWLINK, IFLA_VFINFO_LIST = 16, 22  # include/uapi/linux/rtnetlink.h, if_link.h


def messages(trace: Path, *command: str) -> Iterator[bytes]:
    """Run a command, and yield the messages with settings of VFs that it sends, without their number and sender."""
    watched = ["strace", "-f", "-o", str(trace), "-e", "trace=sendto,sendmsg", "-e", "write=all", *command]
    subprocess.run(watched, capture_output=True, text=True, check=False)
    dumps: list[bytes] = []
    for line in trace.read_text().splitlines():
        if found := re.match(r"\s*\| ([0-9a-f]{5})  ((?:[0-9a-f]{2} {1,2}){1,16})", line):
            if int(found[1], 16) == 0:
                dumps.append(b"")
            dumps[-1] += bytes.fromhex(found[2])
    for each in dumps:
        kind, first = int.from_bytes(each[4:6], "little"), int.from_bytes(each[34:36], "little")
        if kind == RTM_NEWLINK and first == IFLA_VFINFO_LIST:
            yield each[:8] + each[16:]


def test_each_setting_is_sent_as_ip_sends_it(tmp_path: Path) -> None:
    """The commands are those that our hints name."""
    assert {name for name, _ in SETTINGS} == set(NAMES)
    ours = list(messages(tmp_path / "ours", sys.executable, "-c", OURS.format(settings=SETTINGS)))
    theirs = [next(messages(tmp_path / "ip", *command("lo", 5, *each).split())) for each in SETTINGS]
    assert len(set(theirs)) == len(SETTINGS)
    assert ours == theirs
