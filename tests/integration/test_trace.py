"""Real packets of real guests are followed through the real switch, and nothing of it is left, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns

from ovs_hotswap.host import traces
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import REMOTE_INNER, REMOTE_VTEP
from ovs_hotswap.model import Side
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.trace_rows import NAME
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.tracing.capture import Capture, DeviceGone
from ovs_hotswap.tracing.wish import Wish, kernel_filter
from ovs_hotswap.uplink.frames import in_namespace
from ovs_hotswap.waiting import wait_until
from tests.support.lab_bed import SHORT_SOAK, serving_lab
from tests.unit.trace_frames import FAR, PING, SYN, VM1, ethernet, icmp, ipv4

_TUNSETIFF, _TAP = 0x400454CA, 0x1002  # include/uapi/linux/if_tun.h: IFF_TAP without a header


@dataclass(frozen=True)
class Bed:
    """A lab whose guests ping each other and the remote host, on the active instance a."""

    lab: Lab
    host: Host

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ovs_hotswap", "--config", str(self.lab.config_path), *words]

    def trace(self, *words: str) -> dict[str, Any]:
        done = System().run(self.command("--json", "trace", *words), timeout=60)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def appctl(self, *words: str) -> str:
        return appctl(self.host.control(Side.A), *words)

    def dropped(self) -> list[str]:
        """How many packets the datapath has dropped, by reason. A copy to a port that is gone would be one."""
        lines = self.appctl("coverage/show").splitlines()
        return [f"{line.split()[0]} {line.split()[-1]}" for line in lines if line.startswith("datapath_drop")]

    def left(self) -> bool:
        """Whether there is anything of a trace: in the database, in the datapath, or a device."""
        namespace = self.host.instances[Side.A].paths.netns
        devices = in_namespace(namespace, lambda: Path("/proc/thread-self/net/dev").read_text())
        return bool(traces.left(self.host)) or NAME in self.appctl("dpctl/show") or NAME in devices


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    with serving_lab(system, "ovsh-tr-", SHORT_SOAK + '[watch]\nmode = "off"\n', vms=2) as lab:
        yield Bed(lab, Host(lab.config, system))


def test_packets_of_a_guest_are_followed_both_ways(bed: Bed) -> None:
    before, dropped = bed.lab.pings.mark(), bed.dropped()
    found = bed.trace("vm1", "--to", REMOTE_INNER, "--answers", "--proto", "icmp", "--count", "8")
    assert (found["ended"], len(found["packets"]), found["missed"]) == ("count", 8, 0)
    sent, came = sorted(found["paths"], key=lambda path: path["port_in"] != "vm1")
    assert (sent["port_in"], sent["ports_out"]) == ("vm1", [f"the tunnel to {REMOTE_VTEP}"])
    assert came["port_in"].endswith(f"from the tunnel of {REMOTE_VTEP} (network 100)")
    assert (came["ports_out"], came["dropped"]) == (["vm1"], False)
    assert [path["basis"] for path in (sent, came)] == ["agrees", "agrees"]
    assert sent["steps"][0].startswith("Bridge br0, table 0: packets from a VM")
    assert {packet["direction"] for packet in found["packets"]} == {"sent", "received"}
    assert all(packet["bytes"] == 98 for packet in found["packets"])
    assert not bed.left()
    assert bed.dropped() == dropped
    # When a device appears or disappears, Open vSwitch reads its routes again. A packet of a tunnel may meet that.
    assert sum(each.lost for each in bed.lab.pings.between(before, bed.lab.pings.mark())) <= 5


CONNTRACK = """\
table=0,priority=30000,cookie=0x77,in_port=10,icmp,actions=ct(table=100,zone=5)
table=0,priority=30000,cookie=0x77,in_port=11,icmp,actions=ct(table=100,zone=5)
table=100,priority=10,cookie=0x77,ip,ct_state=+trk+new,actions=ct(commit,zone=5),resubmit(,101)
table=100,priority=10,cookie=0x77,ip,ct_state=+trk+est,actions=resubmit(,101)
table=101,priority=10,cookie=0x77,ip,in_port=10,actions=output:11
table=101,priority=10,cookie=0x77,ip,in_port=11,actions=output:10
"""


@contextlib.contextmanager
def tracked(bed: Bed) -> Iterator[OpenFlow]:
    """The guests' pings of each other pass connection tracking, as others' flow tables have it."""
    flows = bed.host.openflow(Side.A)
    flows.bundle([f"flow add {line}" for line in CONNTRACK.splitlines()])
    try:
        yield flows
    finally:
        flows.bundle(["flow delete cookie=0x77/-1"])


def test_the_state_of_a_connection_is_that_of_the_datapath(bed: Bed) -> None:
    with tracked(bed):
        wait_until(lambda: "zone=5" in bed.appctl("dpctl/dump-conntrack"), 5)
        time.sleep(1.5)  # until the flows of before are not taken for those of now
        found = bed.trace("vm1", "--to", "vm2", "--answers", "--proto", "icmp", "--count", "6")
        entries = bed.appctl("dpctl/dump-conntrack", "zone=5")
        assert found["paths"], found
        ways = {(path["port_in"], *path["ports_out"]): path for path in found["paths"]}
        assert ways.keys() >= {("vm1", "vm2"), ("vm2", "vm1")}, json.dumps(found["paths"])
        for path in (ways["vm1", "vm2"], ways["vm2", "vm1"]):
            assert path["basis"] == "agrees", path
            assert path["conntrack"][0].startswith("zone 5: "), path
        asked = bed.appctl("dpctl/dump-conntrack", "zone=5")
    assert asked.count("orig=") == entries.count("orig="), "to ask the flow tables makes no connection"


@pytest.mark.parametrize("with_guard", [False, True])
def test_a_trace_that_is_killed_is_cleaned_up(bed: Bed, with_guard: bool) -> None:
    """With its guard, it is found and named by others, and removed by the next command."""
    words = bed.command("trace", "vm1", "--to", "192.0.2.99", "--seconds", "30")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as trace:
        assert wait_until(lambda: NAME in bed.appctl("dpctl/show"), 20)
        if with_guard:
            for child in Path(f"/proc/{trace.pid}/task/{trace.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        trace.kill()
    if with_guard:
        assert len(traces.abandoned(bed.host)) == 1
        System().run(bed.command("trace", "--clean"), timeout=20)
    assert wait_until(lambda: not bed.left(), 10)


# -- the device


@pytest.fixture
def tap() -> Iterator[tuple[str, int]]:
    """A device as ovs-vswitchd makes it, in a namespace of its own."""
    namespace = f"ovsh-tap-{os.getpid()}"
    netns.create(namespace)

    def made() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14x", NAME.encode(), _TAP))
        return descriptor

    descriptor = in_namespace(namespace, made)
    try:
        yield namespace, descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        netns.remove(namespace)


def test_the_kernel_passes_the_packets_that_are_meant(tap: tuple[str, int]) -> None:
    namespace, device = tap
    tagged = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 1, icmp()), 7)
    with Capture(namespace, kernel_filter(Wish(proto="icmp"))) as capture:
        for frame in (PING, SYN, tagged):
            os.write(device, frame)
        assert [each.frame for each in capture.read(10, 5.0)] == [PING, tagged]
        assert (capture.copied(), capture.missed) == (3, 0)


def test_the_end_of_the_device_is_noticed(tap: tuple[str, int]) -> None:
    namespace, device = tap
    with Capture(namespace, kernel_filter(Wish())) as capture:
        os.close(device)
        with pytest.raises(DeviceGone):
            capture.read(1, 5.0)
        with pytest.raises(DeviceGone):
            capture.copied()
