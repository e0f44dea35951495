"""patches/ovs/3.1.0 at work: every test runs on the patched switch and on the stock one, which shows the old behaviour.

What needs no DPDK is tested in more depth in the series itself, in Open vSwitch's own test suite.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
from pyroute2 import NetNS

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.patched_bed import PatchedBed
from tests.support.patched_bed import bed as bed
from tests.support.threads import held, thread_names
from tests.support.vhost_qemu import FakeQemu, HungUp, Traffic
from tests.support.waiting import eventually

MAC = "02:00:00:00:00:01"
MANY = 1 << 20  # packets


def switchable(bed: PatchedBed) -> bool:
    """Whether the switch has the commands for a port's guest."""
    found = "netdev-dpdk/vhost-yield" in bed.appctl("list-commands")
    assert found is bed.is_patched
    return found


# --------------------------------------------------------------------------------------------- neighbours and routes


def test_a_static_neighbour_survives_idle_time(bed: PatchedBed, config: Config) -> None:
    bed.appctl("tnl/neigh/aging", "1")
    if bed.is_patched:
        bed.appctl("tnl/neigh/set", config.bridge, "172.31.0.2", MAC, "static")
    else:
        with pytest.raises(SwitchError, match="takes at most 3 arguments"):
            bed.appctl("tnl/neigh/set", config.bridge, "172.31.0.2", MAC, "static")
        bed.tunnels.set_neighbour("172.31.0.2", MAC)
    bed.tunnels.set_neighbour("172.31.0.3", MAC)

    def known() -> set[str]:
        return {entry.address for entry in bed.tunnels.neighbours()}

    eventually(lambda: "172.31.0.3" not in known(), "the other neighbour has aged out")
    if bed.is_patched:
        assert known() == {"172.31.0.2"}
    else:
        eventually(lambda: not known(), "all neighbours have aged out")


def test_the_routes_of_the_kernel_are_ignored(bed: PatchedBed, config: Config) -> None:
    give_address(bed)
    add_kernel_route(bed, config, "10.1.0.0/16")
    bed.tunnels.add_route("10.9.0.0/16", "172.31.0.254")

    def routes() -> dict[str, bool]:
        return {route.destination: route.user for route in bed.tunnels.routes()}

    eventually(lambda: {"10.1.0.0/16", "10.9.0.0/16"} <= set(routes()), "the kernel's route is known")
    bed.configure(system_routes="false")
    add_kernel_route(bed, config, "10.2.0.0/16")
    if not bed.is_patched:
        eventually(lambda: "10.2.0.0/16" in routes(), "the kernel's other route is known")
        assert routes()["10.1.0.0/16"] is False
        return
    assert routes() == {"10.9.0.0/16": True}
    bed.configure(some_other="change")  # the main loop has gone round
    assert routes() == {"10.9.0.0/16": True}
    bed.configure(system_routes=None)
    eventually(lambda: {"10.1.0.0/16", "10.2.0.0/16", "10.9.0.0/16"} <= set(routes()), "all routes are known")
    assert routes()["10.9.0.0/16"] is True


def give_address(bed: PatchedBed) -> None:
    """The switch takes a route only when it has heard of the address of the bridge."""
    bed.tunnels.set_address("172.31.0.1", 24)
    connected = "172.31.0.0/24"
    eventually(lambda: connected in {route.destination for route in bed.tunnels.routes()}, "the address is known")


def add_kernel_route(bed: PatchedBed, config: Config, destination: str) -> None:
    with NetNS(bed.instance.paths.netns, flags=0) as kernel:
        (index,) = kernel.link_lookup(ifname=config.bridge)
        kernel.route("add", dst=destination, gateway="172.31.0.253", oif=index)


def test_a_tunnel_keeps_its_port_when_the_kernels_routes_go(bed: PatchedBed, config: Config) -> None:
    """The flush of the kernel's routes takes the addresses of their devices away from the tunnels."""
    give_address(bed)
    bed.tunnels.add_route("10.9.0.0/16", "172.31.0.254")
    bed.add_tunnel("vxlan0")
    eventually(lambda: "dst=172.31.0.1" in bed.appctl("tnl/ports/show", "-v"), "the tunnel has its address")
    bed.configure(system_routes="false")
    assert "dst=172.31.0.1" in bed.appctl("tnl/ports/show", "-v")
    assert any(not route.user for route in bed.tunnels.routes()) is not bed.is_patched


# -------------------------------------------------------------------------------------------------- the per-port switch


def states(bed: PatchedBed) -> dict[str, str]:
    lines = (line.split() for line in bed.appctl("netdev-dpdk/vhost-list").splitlines())
    return {name: state for name, state, _ in lines}


def test_a_guest_is_given_up_and_claimed(bed: PatchedBed) -> None:
    vm = bed.vm("vm1")
    with Traffic([vm], MANY):
        eventually(lambda: vm.next_packet > 100, "traffic flows")
        if not switchable(bed):
            return
        assert states(bed) == {"vm1": "active"}
        bed.appctl("netdev-dpdk/vhost-yield", "vm1")
        left = vm.used_indices()
        assert vm.hung_up
        bed.wait_iterations(50)
        assert vm.used_indices() == left
        assert states(bed) == {"vm1": "yielded"}
        with pytest.raises(TimeoutError):  # DPDK tries each second
            vm.accept(2.5)
        bed.appctl("netdev-dpdk/vhost-claim", "vm1")
        serve_again(vm)
        eventually(lambda: vm.used_indices() != left, "traffic flows again")
    vm.drain()
    assert states(bed) == {"vm1": "active"}
    assert "rx queues: 1, enabled: 1" in bed.appctl("netdev-dpdk/vhost-state", "vm1")


def serve_again(vm: FakeQemu) -> None:
    """A back end connects and continues where the last one left the rings. A connection that it made and closed again
    before it was accepted is ignored."""
    vm.drop()
    vm.accept()
    while vm.hung_up:
        vm.drop()
        vm.accept()
    vm.initialise()
    vm.start_driver(vm.used_indices())


def test_several_guests_are_given_up_at_once(bed: PatchedBed) -> None:
    vms = [bed.vm(f"vm{number}") for number in range(3)]
    if not switchable(bed):
        return
    bed.appctl("netdev-dpdk/vhost-yield", "vm0", "vm2")
    assert [vm.hung_up for vm in vms] == [True, False, True]
    assert states(bed) == {"vm0": "yielded", "vm1": "active", "vm2": "yielded"}
    assert vms[1].send(8) == 8
    vms[1].drain()
    for wrong, what in (
        (("vm1", "vm2"), "vm2: yielded already"),
        (("vm1", "vm1"), "vm1: named twice"),
        (("vm1", "no-such"), "no-such: not a dpdkvhostuserclient port"),
    ):
        with pytest.raises(SwitchError, match=what):
            bed.appctl("netdev-dpdk/vhost-yield", *wrong)
    with pytest.raises(SwitchError, match="vm1: claimed already"):
        bed.appctl("netdev-dpdk/vhost-claim", "vm0", "vm1")
    assert states(bed) == {"vm0": "yielded", "vm1": "active", "vm2": "yielded"}
    bed.appctl("netdev-dpdk/vhost-claim", "vm0", "vm2")
    for vm in (vms[0], vms[2]):
        serve_again(vm)
        assert vm.send(8) == 8
        vm.drain()


def test_a_port_that_was_given_up_can_be_removed(bed: PatchedBed) -> None:
    vm = bed.vm("vm1", pairs=2)
    spec = bed.ports["vm1"]
    if switchable(bed):
        bed.appctl("netdev-dpdk/vhost-yield", "vm1")
    del bed.ports["vm1"]
    bed.apply()
    eventually(lambda: vm.hung_up, "the connection is closed")
    assert "Unable to unregister" not in bed.instance.paths.log.read_text()
    bed.ports["vm1"] = spec
    bed.apply()
    serve_again(vm)
    bed.wait_polled("vm1", 2)
    assert vm.send(8) == 8
    vm.drain()


def test_a_guest_that_goes_while_it_is_given_up(bed: PatchedBed) -> None:
    """Both the thread of the command and the one that serves the connections take the device away then, and either
    waits for all other threads."""
    vm = bed.vm("vm1")
    if not switchable(bed):
        return
    with ThreadPoolExecutor() as pool:
        for leave in (vm.drop, vm.stop_driver) * 10:
            left = pool.submit(leave)
            bed.appctl("netdev-dpdk/vhost-yield", "vm1")
            with contextlib.suppress(HungUp):
                left.result()
            eventually(lambda: vm.hung_up, "the connection is closed")
            bed.appctl("netdev-dpdk/vhost-claim", "vm1")
            serve_again(vm)
    vm.drain()
    assert vm.send(8) == 8
    vm.drain()


_WAITS = re.compile(r"\|ovs_rcu(?:\(vhost_yield\d+\))?\|WARN\|blocked (\d+) ms waiting for pmd")


def waits(bed: PatchedBed) -> list[int]:
    """What the threads of ``vhost-yield``, and those without a name (the main thread and DPDK's), have logged of their
    wait for a PMD thread: each how many milliseconds it waits, after 1 s and whenever that has doubled."""
    return [int(found) for found in _WAITS.findall(bed.instance.paths.log.read_text())]


def two_wait(bed: PatchedBed) -> bool:
    """One thread alone says more each time."""
    return any(later <= before for before, later in itertools.pairwise(waits(bed)))


@contextlib.contextmanager
def pmd_held(bed: PatchedBed) -> Iterator[None]:
    """Keep the PMD thread stopped during the block. When this begins, no thread waits for it: a reconfiguration of the
    datapath would wait, and it may follow the start of a guest by a turn of the main thread."""
    (pmd,) = (tid for tid, called in thread_names(bed.pid).items() if called.startswith("pmd"))
    for _ in range(5):
        assert main_thread_turns(bed, 20)  # whatever is under way: each time that it waits is another hold
        with held(pmd):
            if main_thread_turns(bed, 3):
                yield
                return
    raise AssertionError(f"the main thread waits for the PMD thread: {bed.instance.paths.log.read_text()[-2000:]}")


def main_thread_turns(bed: PatchedBed, seconds: float) -> bool:
    """Between two answers lies a whole turn."""
    try:
        for _ in range(2):
            bed.appctl("version", timeout=seconds)
    except NoAnswer:
        return False
    return True


@contextlib.contextmanager
def being_given_up(bed: PatchedBed, pool: Executor, name: str) -> Iterator[None]:
    """In the block the switch gives a guest up, but a PMD thread stands still and may be in the rings."""
    with pmd_held(bed):
        given_up = pool.submit(bed.appctl, "netdev-dpdk/vhost-yield", name)
        eventually(lambda: bool(waits(bed)), lambda: f"the command waits for the PMD thread: {given_up}")
        yield
    given_up.result()


def test_a_guest_that_goes_is_not_unmapped_under_a_thread(bed: PatchedBed) -> None:
    vm = bed.vm("vm1")
    if not switchable(bed):
        return
    with ThreadPoolExecutor() as pool, being_given_up(bed, pool, "vm1"):
        vm.drop()
        eventually(lambda: two_wait(bed) or not bed.maps(vm), "the thread that serves connections has seen it")
        assert bed.maps(vm)
    assert not bed.maps(vm)


def test_a_guest_that_stops_gets_no_reply_while_a_thread_may_be_in_its_rings(bed: PatchedBed) -> None:
    vm = bed.vm("vm1")
    if not switchable(bed):
        return
    with ThreadPoolExecutor() as pool:
        with being_given_up(bed, pool, "vm1"):
            stopped = pool.submit(vm.stop_driver)
            eventually(lambda: two_wait(bed) or stopped.done(), "the thread that serves connections has seen it")
            assert not stopped.done()
            assert not vm.hung_up
        with contextlib.suppress(HungUp):  # there is a message for each ring
            stopped.result()
    assert vm.hung_up


# ------------------------------------------------------------------------------------------- queues that come back

LOOK = 1025  # iterations of a stock PMD thread between two looks at its queues (lib/dpif-netdev.c, pmd_thread_main)
PROMPT = 100  # of 2 ms each: the time that this test itself takes must be short beside it
TRIES = 4  # a stock thread is prompt by chance in one of ten


def test_a_queue_that_is_enabled_again_is_polled_promptly(bed: PatchedBed) -> None:
    vm = bed.vm("vm1")
    bed.configure(pmd_maxsleep="2000")
    bed.wait_iterations(2 * LOOK)  # the sleep grows by 1 us in each
    waited = [iterations_until_polled(bed, vm) for _ in range(TRIES)]
    if bed.is_patched:
        assert max(waited) < PROMPT, waited
    else:
        assert max(waited) >= PROMPT, waited


def iterations_until_polled(bed: PatchedBed, vm: FakeQemu) -> int:
    """The time from the message that enables the TX ring to the first packet that the PMD thread takes from it."""
    vm.say(messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 0))
    vm.number(Request.GET_FEATURES)
    bed.wait_iterations(LOOK + PROMPT)
    assert vm.send(1) == 1
    bed.wait_iterations(2)
    assert not vm.drained()
    before = bed.iterations()
    vm.say(messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 1))
    eventually(vm.drained, "the packet is taken")
    return bed.iterations() - before
