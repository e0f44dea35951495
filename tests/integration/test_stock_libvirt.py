"""libvirt's domains with ``<interface type='vhostuser'>`` on a stock host: an upgrade and back under their traffic, and
what is done with domains on any day, on the upgraded host and while an upgrade is under way.

``OVS_HOTSWAP_STOCK_ROUNDS``: if it is more than one, each act is done at each moment, and each packet counts; otherwise
each is done at one.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import Operator, differences, programmed, stepwise, without_own
from tests.support.stock_libvirt import LibvirtHost

ALL = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1")) > 1
MOST = 0 if ALL else 30  # packets that may be lost or doubled; none on a machine that does nothing else
_SERVED_S = 30.0

# A guest that starts under 3.5 would use it, and 3.1 could not serve it then.
SETTINGS = f'{SHORT_SOAK}\n[broker]\nwithhold_features = ["NET_CSUM"]\n'


@pytest.fixture(scope="module")
def host(system: System) -> Iterator[LibvirtHost]:
    with LibvirtHost(system, guests=2) as made:
        yield made


@pytest.fixture(scope="module")
def operator(host: LibvirtHost, tree_release: Release) -> Operator:
    operator = Operator(host, SETTINGS)
    operator.make_ready(tree_release)
    return operator


# What is done with a domain. Each takes the name of one that runs, and leaves it running.


def started_again(host: LibvirtHost, name: str) -> None:
    host.stop_guest(name)
    host.start_guest(name)


def reset(host: LibvirtHost, name: str) -> None:
    host.virsh("reset", name)


def plugged_again(host: LibvirtHost, name: str) -> None:
    host.unplug(name)
    host.plug_in(name)


def shut_down(host: LibvirtHost, name: str) -> None:
    """The guest powers itself off, and its domain is started later."""
    host.power_off(name)
    host.start_guest(name)


Act = Callable[[LibvirtHost, str], None]
ACTS: dict[str, Act] = {
    "start-again": started_again, "reset": reset, "plug-again": plugged_again, "shut-down": shut_down,
}  # fmt: skip


def test_domains_carry_every_packet(host: LibvirtHost) -> None:
    with host.traffic() as traffic:
        time.sleep(2.0)
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []


def test_check_finds_the_domains_and_asks_them_through_libvirt(host: LibvirtHost, operator: Operator) -> None:
    """One of them has an interface that was plugged while it ran, so that its command line does not have it."""
    plugged_again(host, "vm2")
    host.pings.wait_flowing(_SERVED_S)
    report = operator.ask("check")
    print([finding for finding in report["findings"] if finding["severity"] != "ok"])
    assert {vm["name"]: (vm["qemu"]["pid"], vm["qemu"]["libvirt"]) for vm in report["vms"]} == {
        guest.name: (guest.pid, True) for guest in host.guests
    }
    assert report["ready"]


def test_there_and_back_without_a_lost_packet(host: LibvirtHost, operator: Operator, tree_release: Release) -> None:
    before, pids = programmed(host), [guest.pid for guest in host.guests]
    with host.traffic() as traffic:
        assert operator.ask("upgrade", "--release", "tree")["committed"]
        after, version = programmed(host), host.appctl("version")
        assert operator.ask("rollback")["committed"]
    print(traffic.judgement.text())
    assert tree_release.ovs_version in version
    assert differences(without_own(before), without_own(after)) == []
    assert differences(without_own(before), without_own(programmed(host))) == []
    assert [guest.pid for guest in host.guests] == pids
    assert traffic.judgement.faults_beyond(MOST) == []


def moments() -> list[tuple[dict[str, tuple[Act, str]], str]]:
    """What is done in an upgrade, by the step at whose beginning it is done, with the name of each."""
    if not ALL:
        return [({"adopt": (plugged_again, "vm1"), "soak": (plugged_again, "vm2")}, "before and after the cut")]
    steps = ["start-standby", "copy", "wire", "adopt", "adopt+", "park", "move", "pause", "cut", "soak", "unwire",
             "retire"]  # fmt: skip
    vms = itertools.cycle(["vm1", "vm2", "vm2"])  # the first to be taken over, and the last; each with each act
    return [({step: (act, vm)}, f"{step}-{name}-{vm}")
            for (step, (name, act)), vm in zip(itertools.product(steps, ACTS.items()), vms, strict=False)]  # fmt: skip


@pytest.mark.parametrize("acts", [pytest.param(acts, id=name) for acts, name in moments()])
def test_what_is_done_with_a_domain_in_an_upgrade_is_followed(
    host: LibvirtHost, operator: Operator, acts: dict[str, tuple[Act, str]]
) -> None:
    operator.ask("release-vms")  # so that this upgrade takes them over
    host.pings.wait_flowing(_SERVED_S)
    before = programmed(host)
    done = stepwise(host, operator, "tree", {step: partial(act, host, vm) for step, (act, vm) in acts.items()})
    host.pings.wait_flowing(_SERVED_S)
    assert done.status == 0
    assert operator.ask("status")["active"] == "b"
    assert differences(without_own(before), without_own(programmed(host))) == []
    if ALL:
        assert operator.ask("rollback")["committed"]
        host.pings.wait_flowing(_SERVED_S)


@pytest.mark.parametrize("act", ACTS if ALL else ["shut-down"])
def test_a_domain_of_an_upgraded_host_is_used_as_ever(host: LibvirtHost, operator: Operator, act: str) -> None:
    ACTS[act](host, "vm1")
    host.pings.wait_flowing(_SERVED_S)
    assert {vm["name"]: (vm["qemu"], vm["owner"]) for vm in operator.ask("vm", "list")["vms"]} == {
        guest.name: (guest.pid, operator.ask("status")["active"]) for guest in host.guests
    }
