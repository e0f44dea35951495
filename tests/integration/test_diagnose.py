"""Faults that are planted in a lab with real guests are what `diagnose` finds first, and nothing else comes before.

Each fault is one kind of what keeps a VM from its network, is planted as it comes about on a host, and is taken back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from ovs_hotswap.diagnose.asking import answers, asked
from ovs_hotswap.diagnose.found import Cause, Report
from ovs_hotswap.diagnose.judging import report
from ovs_hotswap.diagnose.looking import Look
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import REMOTE_INNER, REMOTE_INNER_MAC, REMOTE_VTEP, VNI
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from tests.integration.bpf import program
from tests.support.lab_bed import SHORT_SOAK, serving_lab

SECONDS = 1.2  # the switch adds packets to flows every half second
FAR = REMOTE_INNER_MAC


@dataclass(frozen=True)
class Bed:
    """A lab whose guests ping each other and the remote host, on the active instance a. No standby is kept."""

    lab: Lab
    host: Host

    def report(self, vm: str | None = None, to: str | None = None) -> Report:
        look = Look(self.lab.config, System(), SECONDS, True, vm)
        facts = look.facts()
        wish = asked(facts, vm, to)
        return report(facts, wish, answers(look.host(), facts, wish))

    def appctl(self, *words: str) -> str:
        return appctl(self.host.control(Side.A), *words)

    def run(self, *argv: str) -> str:
        return System().run(argv).stdout

    def mod_port(self, port: str, how: str) -> None:
        target = self.host.openflow(Side.A).target
        self.run("ovs-ofctl", "mod-port", target, port, how)

    @contextlib.contextmanager
    def overlay(self, *changes: tuple[str, str]) -> Iterator[None]:
        """Change the overlay file, and have the host follow it."""
        path = self.lab.layout.overlay_file
        before = text = path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text)
        self.follow()
        try:
            yield
        finally:
            path.write_text(before)
            self.follow()

    def follow(self) -> None:
        Host(self.lab.config, System()).follow_intent([Side.A], untried=True)


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    settings = SHORT_SOAK + '[watch]\nmode = "off"\n'
    with serving_lab(system, "ovsh-dia-", settings, vms=2) as lab:
        yield Bed(lab, Host(lab.config, system))


Plant = Callable[[Bed], AbstractContextManager[None]]


@contextlib.contextmanager
def wrong_vni(bed: Bed) -> Iterator[None]:
    """vm1 is in another VNI than those to which it sends."""
    first = bed.lab.layout.guests[0].mac
    with bed.overlay((f'mac = "{first}"\nvni = {VNI}', f'mac = "{first}"\nvni = 101')):
        yield


@contextlib.contextmanager
def missing_neighbour(bed: Bed) -> Iterator[None]:
    """The switch forgets the next hop; the remote host, whose packets would teach it, is cut off for the moment."""
    remote = bed.lab.layout.remote_namespace
    bed.run("ip", "netns", "exec", remote, "ip", "link", "set", "vxlan100", "down")
    bed.appctl("tnl/neigh/flush")
    try:
        yield
    finally:
        bed.run("ip", "netns", "exec", remote, "ip", "link", "set", "vxlan100", "up")
        bed.host.program_tunnels(Side.A)


@contextlib.contextmanager
def stale_rule(bed: Bed) -> Iterator[None]:
    bed.host.uplink.steer(Side.B)
    try:
        yield
    finally:
        bed.host.uplink.steer(Side.A)


@contextlib.contextmanager
def silent_vf(bed: Bed) -> Iterator[None]:
    """What the VF sends is dropped behind it, as spoof checking does. Its link stays up."""
    with program("xdp-drop", bed.lab.layout.host_namespace, "rep-a"):
        yield


@contextlib.contextmanager
def port_down(bed: Bed) -> Iterator[None]:
    bed.mod_port("vm1", "down")
    try:
        yield
    finally:
        bed.mod_port("vm1", "up")


@contextlib.contextmanager
def port_blocked(bed: Bed) -> Iterator[None]:
    bed.mod_port("vm1", "no-forward")
    try:
        yield
    finally:
        bed.mod_port("vm1", "forward")


@contextlib.contextmanager
def long_packets(bed: Bed) -> Iterator[None]:
    """The guest sends packets that are 50 bytes too long for the tunnel."""
    guest = bed.lab.guest("vm1")
    guest.run("ip link set eth0 mtu 1500")
    guest.run(f"ping -i 0.1 -s 1452 {REMOTE_INNER} >/dev/null 2>&1 & true")
    try:
        yield
    finally:
        guest.run("killall ping; ip link set eth0 mtu 1450")


PLANTED: list[tuple[Plant, Cause, str | None]] = [
    (wrong_vni, Cause.WRONG_VNI, "vm1"),
    (missing_neighbour, Cause.NEIGHBOUR_MISSING, None),
    (stale_rule, Cause.UPLINK_RULE, None),
    (silent_vf, Cause.UPLINK_SILENT, None),
    (port_down, Cause.PORT_DOWN, "vm1"),
    (port_blocked, Cause.PORT_BLOCKED, "vm1"),
    (long_packets, Cause.MTU, None),
]


def test_nothing_is_found_while_all_is_well(bed: Bed) -> None:
    found = bed.report("vm1")
    assert found.findings == ()
    assert found.worst is Severity.OK
    assert [path.delivered for path in found.paths] == [True, True, True]
    shown = {each.about for each in found.seen}
    assert {"owner", "rings", "port", "PMD core", "packet pool", "uplink", "VTEP"} <= shown


@pytest.mark.parametrize(("plant", "cause", "vm"), PLANTED, ids=[each[0].__name__ for each in PLANTED])
def test_a_planted_fault_is_found_first(bed: Bed, plant: Plant, cause: Cause, vm: str | None) -> None:
    with plant(bed):
        found = bed.report()
    first = found.findings[0]
    assert (first.cause, first.vm) == (cause, vm), found.findings
    bed.lab.pings.wait_flowing(60.0)


def test_what_the_flows_do_is_told_of_both_ways(bed: Bed) -> None:
    found = bed.report("vm1", FAR)
    assert [path.delivered for path in found.paths] == [True, True]
    assert any(f"into the tunnel to {REMOTE_VTEP}" in step for step in found.paths[0].steps)
    nowhere = bed.report("vm1", "02:00:00:00:00:09")
    assert nowhere.findings[0].cause is Cause.UNKNOWN_MAC
    assert nowhere.paths[0].delivered is False
    assert any(re.search(r"unknown unicast MAC", step) for step in nowhere.paths[0].steps)
