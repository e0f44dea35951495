"""Upgrades and overlay changes whose uplink passes nothing though its link is up, on the real Open vSwitch and QEMU."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.config_uplink import UplinkConfig
from ovs_hotswap.errors import PrecheckFailed, RolledBack, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance, stop_for_good
from ovs_hotswap.lab import Lab
from ovs_hotswap.model import Release, Severity, Side
from ovs_hotswap.overlay.intent import load_intent
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.switch.datapath import ports
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.switch.tunnel import ANCHORS
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import collect
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.upgrade.uplink_checks import PROGRAMS
from ovs_hotswap.upgrade.uplink_proof import SAMPLE_S
from tests.support.bpf import program
from tests.support.lab_bed import serving_lab


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    """A lab with two guests that ping each other and the remote end, on an active instance."""
    with serving_lab(system, "ovsh-ul-") as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Iterator[Host]:
    """Instance a serves every VM before and after each test, alone."""
    host = Host(bed.config, system)
    yield host
    assert {vm.owner for vm in host.backends.vms()} == {"a"}
    assert host.uplink.owner() is Side.A
    assert host.instances[Side.B].status().state is State.STOPPED
    bed.pings.wait_flowing(30.0)


def again(host: Host, observe: object = nobody) -> None:
    """An upgrade to the release that runs."""
    Upgrader(host).upgrade("host", observe, force=True)  # type: ignore[arg-type]


def test_a_mute_uplink_is_found_before_any_vm_is_moved(bed: Lab, host: Host) -> None:
    begun = bed.pings.mark()
    with program("xdp-drop", bed.layout.host_namespace, "rep-b"):
        with pytest.raises(RolledBack, match=r"step prove failed: .* it is mute"):
            again(host)
    assert [(seen.guest, seen.lost) for seen in bed.pings.between(begun, bed.pings.mark()) if seen.lost] == []


@contextlib.contextmanager
def deaf(bed: Lab, system: System) -> Iterator[None]:
    """What is given to instance b's virtual function does not come in."""
    tc = ["ip", "netns", "exec", bed.layout.host_namespace, "tc"]
    taken = ["protocol", "all", "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", "lo"]
    system.run([*tc, "filter", "add", "dev", "rep-b", "egress", "pref", "1", *taken])
    try:
        yield
    finally:
        system.run([*tc, "filter", "del", "dev", "rep-b", "egress", "pref", "1"])


def test_a_function_that_is_up_and_drops_everything_is_found_before_any_vm_is_moved(
    bed: Lab, host: Host, system: System
) -> None:
    begun = bed.pings.mark()
    with deaf(bed, system), program("xdp-drop", bed.layout.host_namespace, "rep-b"):
        with pytest.raises(RolledBack, match=r"step prove failed: .* it is mute.*; it is deaf"):
            again(host)
    assert [(seen.guest, seen.lost) for seen in bed.pings.between(begun, bed.pings.mark()) if seen.lost] == []


def steered_by_another(bed: Lab, host: Host, system: System) -> tuple[Host, Callable[[Event], None]]:
    """The host with the driver ``none``, and an observer of an upgrade who steers its traffic with it, and back."""
    uplink = UplinkConfig(namespace=bed.layout.host_namespace)
    unsteered = Host(bed.config.model_copy(update={"uplink": uplink}), system)

    def steer(event: Event) -> None:
        if event.step == "steer" and event.kind in (EventKind.DONE, EventKind.UNDONE):
            upgraded = host.recorded_active() or Side.A
            host.uplink.steer(upgraded.other if event.kind is EventKind.DONE else upgraded)

    return unsteered, steer


def test_what_something_else_steers_to_a_dead_function_is_taken_back(bed: Lab, host: Host, system: System) -> None:
    """The driver has no device for a proof by frames: the counters of the instance's port are compared."""
    unsteered, steer = steered_by_another(bed, host, system)
    with deaf(bed, system), program("xdp-drop", bed.layout.host_namespace, "rep-b"):
        with pytest.raises(RolledBack, match=r"step soak failed: .* nothing comes in from .*; its port has received"):
            again(unsteered, steer)


def test_what_something_else_steers_is_proven_by_the_vms_traffic(bed: Lab, host: Host, system: System) -> None:
    for _ in range(2 * int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))):
        unsteered, steer = steered_by_another(bed, host, system)
        again(unsteered, steer)
        bed.pings.wait_flowing(30.0)


def test_an_uplink_that_fails_later_is_found_before_the_commit(bed: Lab, host: Host) -> None:
    """Nothing comes in any more, and what the old side received before says that something should."""
    with contextlib.ExitStack() as stack:

        def strike(event: Event) -> None:
            if event.step == "steer" and event.kind is EventKind.DONE:
                stack.enter_context(program("xdp-drop", bed.layout.host_namespace, "pf0"))
            if event.kind is EventKind.UNDOING and event.step == "move":
                stack.close()

        with pytest.raises(RolledBack, match=r"step soak failed: .* nothing comes in from other hosts on instance b"):
            again(host, strike)


def test_what_takes_packets_before_the_filters_is_an_error(bed: Lab, host: Host) -> None:
    with program("tcx-pass", bed.layout.host_namespace, "pf0"):
        time.sleep(SAMPLE_S)  # what came before is in the counters only then
        with pytest.raises(PrecheckFailed, match=r"pf0: 1 tcx programs on ingress .* none came to the instance"):
            again(host)
    with program("tcx-next", bed.layout.host_namespace, "pf0"):
        found = collect.precheck(host, Side.A, Side.B, "host")
    assert [each.severity for each in found if each.check == PROGRAMS] == [Severity.WARNING]


@contextlib.contextmanager
def overlay(bed: Lab, *changes: tuple[str, str]) -> Iterator[None]:
    """The intent's text with changes, each of the first place."""
    path, before = bed.config.overlay, bed.config.overlay.read_text()
    after = before
    for old, new in changes:
        assert old in after
        after = after.replace(old, new, 1)
    path.write_text(after)
    try:
        load_intent(path)
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def active_release(bed: Lab, system: System, name: str) -> Iterator[None]:
    """Instance a runs another release during the block."""
    host = Host(bed.config, system)
    stop_for_good(host, Side.A)
    start_instance(host, Side.A, host.releases.get(name))
    bed.pings.wait_flowing(30.0)
    try:
        yield
    finally:
        stop_for_good(host, Side.A)
        start_instance(host, Side.A, host.releases.get("host"))


JUMBO = {
    "uplink": [("[vtep]\n", "[vtep]\nmtu = 9000\n")],
    "vm1": [("[vtep]\n", "[vtep]\nlocal_jumbo = true\n"), ("mtu = 1450", "mtu = 9000")],
}


@pytest.mark.parametrize("port", JUMBO)
def test_an_mtu_that_a_port_cannot_have_is_undone(bed: Lab, host: Host, system: System, port: str) -> None:
    refuses_jumbo(bed, system, port)
    bed.pings.wait_flowing(30.0)
    host.follow_intent([Side.A])


def test_an_mtu_that_a_port_of_a_newer_release_cannot_have_is_undone(
    bed: Lab, host: Host, system: System, tree_release: Release
) -> None:
    """Open vSwitch 3.5 tells of it elsewhere than 3.1 does."""
    Releases(bed.config, system).add("newer", from_directory=Path(str(tree_release.root)))
    with active_release(bed, system, "newer"):
        assert {name: host.datapath_ports(Side.A)[name].mtu for name in JUMBO} == {"uplink": 1500, "vm1": 1450}
        for port in JUMBO:
            refuses_jumbo(bed, system, port)
            bed.pings.wait_flowing(30.0)
            assert {name: host.datapath_ports(Side.A)[name].mtu for name in JUMBO} == {"uplink": 1500, "vm1": 1450}
        with overlay(bed, ("mtu = 1450", "mtu = 1400")):
            Host(bed.config, system).follow_intent([Side.A], untried=True)
            assert host.datapath_ports(Side.A)["vm1"].mtu == 1400


def refuses_jumbo(bed: Lab, system: System, port: str) -> None:
    with overlay(bed, *JUMBO[port]):
        changed = Host(bed.config, system)
        with pytest.raises(SwitchError, match=rf"port {port} under traffic, and instance b has not tried this"):
            changed.follow_intent([Side.A])
        bed.pings.wait_flowing(10.0)
        with pytest.raises(SwitchError, match=rf"port {port}: the datapath does not have it.* was put back"):
            changed.follow_intent([Side.A], untried=True)
    assert port in ports(changed.control(Side.A))


def test_what_leaves_the_intent_leaves_the_instance(bed: Lab, host: Host, system: System) -> None:
    tunnels = host.tunnels(Side.A)

    def programmed() -> tuple[set[str], set[str]]:
        found = Namespaces().addresses(host.config.bridge, host.instances[Side.A].paths.netns)
        routes = {each.destination for each in tunnels.routes() if each.user} - {*ANCHORS}
        return {each for each in found if ":" not in each}, routes

    host.follow_intent([Side.A])
    route = '\n[[route]]\ndestination = "10.9.0.0/16"\ngateway = "172.31.0.2"\n[[remote]]'
    with overlay(bed, ("172.31.0.1/24", "172.31.0.9/24"), ("\n[[remote]]", route)):
        changed = Host(bed.config, system)
        changed.follow_intent([Side.A])
        assert programmed() == ({"172.31.0.9/24"}, {"10.9.0.0/16"})
        assert changed.uplink.owner() is Side.A, "the filter is for the new address"
        assert host.uplink.owner() is None
    host.follow_intent([Side.A])
    assert programmed() == ({"172.31.0.1/24"}, set())
    assert host.uplink.owner() is Side.A
