"""libvirt's domains with ``<interface type='vhostuser'>`` on a stock host."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ovs_hotswap.system import System
from tests.support.stock_drive import Operator
from tests.support.stock_libvirt import LibvirtHost


@pytest.fixture(scope="module")
def host(system: System) -> Iterator[LibvirtHost]:
    with LibvirtHost(system, guests=2) as made:
        yield made


def test_domains_carry_every_packet(host: LibvirtHost) -> None:
    with host.traffic() as traffic:
        time.sleep(2.0)
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []


def test_check_finds_the_domains_and_asks_them_through_libvirt(host: LibvirtHost) -> None:
    report = Operator(host).ask("check")
    print([finding for finding in report["findings"] if finding["severity"] != "ok"])
    assert {vm["name"]: (vm["qemu"]["pid"], vm["qemu"]["libvirt"]) for vm in report["vms"]} == {
        guest.name: (guest.pid, True) for guest in host.guests
    }
    assert report["ready"]


def test_a_domain_that_is_started_again_listens_at_the_same_path(host: LibvirtHost) -> None:
    guest, before = host.guest("vm2"), host.guest("vm2").pid
    host.stop_guest("vm2")
    assert guest.pid is None
    assert not guest.socket.exists()  # QEMU removes it by its name
    host.start_guest("vm2")
    host.wait_boots()
    host.pings.wait_flowing(30.0)
    assert guest.pid not in (None, before)
    assert guest.qmp("query-status") == {"running": True, "status": "running", "singlestep": False}
