"""The contract of network namespaces, kept by the kernel and by the fake of the unit tests."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Device
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.uplink.frames import in_namespace
from tests.unit.test_instance import FakeNamespaces

TAG = f"ovsh-t{os.getpid()}"
FROM, TO = f"{TAG}-from", f"{TAG}-to"


@pytest.fixture(params=["kernel", "fake"])
def namespaces(request: pytest.FixtureRequest) -> Iterator[Namespaces]:
    """Namespaces ``FROM`` with a device ``vf-a`` that is up, and ``TO``."""
    made = Namespaces() if request.param == "kernel" else FakeNamespaces({})
    made.create(FROM)
    made.create(TO)
    if isinstance(made, FakeNamespaces):
        made.devices[FROM].add("vf-a")
    else:
        with IPRoute(netns=FROM, flags=0) as route:
            route.link("add", ifname="vf-a", kind="veth", peer={"ifname": "rep-a"}, state="up")
    yield made
    made.remove(FROM)
    made.remove(TO)
    made.remove(TO)
    assert not made.exists(FROM)
    assert not made.exists(TO)


def test_a_device_moves_in_and_back(namespaces: Namespaces) -> None:
    device = namespaces.look("vf-a", FROM)
    assert device == Device("vf-a", FROM, up=True)
    namespaces.move_in(device, TO)
    assert namespaces.look("vf-a", FROM) is None
    assert namespaces.look("vf-a", TO) == Device("vf-a", TO, up=True)
    for _ in range(2):
        namespaces.move_back(device, TO)
        assert namespaces.look("vf-a", FROM) == device
        assert namespaces.look("vf-a", TO) is None


def read_only_file(path: Path, text: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only /proc/sys"])
def test_the_kernel_is_silent_on_a_device_while_it_is_moved_in(
    read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(namespace: str) -> list[str]:
        keys = ("ipv4/conf/vf-a/arp_ignore", "ipv4/conf/vf-a/rp_filter", "ipv6/conf/vf-a/disable_ipv6")
        return in_namespace(namespace, lambda: [Path(f"/proc/sys/net/{key}").read_text().strip() for key in keys])

    namespaces = Namespaces()
    for name in (FROM, TO):
        namespaces.create(name)
    try:
        with IPRoute(netns=FROM, flags=0) as route:
            route.link("add", ifname="vf-a", kind="veth", peer={"ifname": "rep-a"}, state="up")
        before, device = settings(FROM), namespaces.look("vf-a", FROM)
        assert device is not None
        with monkeypatch.context() as patched:
            if read_only:  # as under a unit with ProtectKernelTunables=
                patched.setattr(Path, "write_text", read_only_file)
            namespaces.move_in(device, TO)
        assert settings(TO) == ["8", "1", "0" if read_only else "1"]
        assert namespaces.addresses("vf-a", TO) == set()
        namespaces.move_back(device, TO)
        assert settings(FROM) == before
    finally:
        for name in (FROM, TO):
            namespaces.remove(name)


def test_moving_back_out_of_a_namespace_that_is_gone_is_no_error(namespaces: Namespaces) -> None:
    namespaces.move_back(Device("vf-a", FROM, up=True), f"{TAG}-never")
    assert namespaces.look("vf-a", FROM) is not None


def test_namespaces_exist_once() -> None:
    kernel = Namespaces()
    kernel.create(FROM)
    try:
        with pytest.raises(SwitchError, match=f"network namespace {FROM} cannot be made"):
            kernel.create(FROM)
        with pytest.raises(SwitchError, match="no network namespace"):
            kernel.look("lo", f"{TAG}-never")
        assert not kernel.exists(f"{TAG}-never")  # looking makes none
    finally:
        kernel.remove(FROM)


def test_a_device_that_was_down_is_down_again() -> None:
    kernel = Namespaces()
    kernel.create(FROM)
    kernel.create(TO)
    try:
        with IPRoute(netns=FROM, flags=0) as route:
            route.link("add", ifname="vf-a", kind="veth", peer={"ifname": "rep-a"})
        device = Device("vf-a", FROM, up=False)
        assert kernel.look("vf-a", FROM) == device
        kernel.move_in(device, TO)
        kernel.move_back(device, TO)
        assert kernel.look("vf-a", FROM) == device
    finally:
        kernel.remove(FROM)
        kernel.remove(TO)


def test_addresses_are_put_once() -> None:
    kernel = Namespaces()
    kernel.create(TO)
    try:
        for _ in range(2):
            kernel.put_address("lo", "172.31.0.1", 24, TO)
        assert "172.31.0.1/24" in kernel.addresses("lo", TO)
        assert kernel.addresses("no-such", TO) == set()
        with pytest.raises(SwitchError, match="no network device no-such"):
            kernel.put_address("no-such", "172.31.0.1", 24, TO)
    finally:
        kernel.remove(TO)


def test_which_processes_a_namespace_holds() -> None:
    kernel = Namespaces()
    kernel.create(TO)
    inside = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{TO}", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert inside.stdin is not None
        assert inside.stdout is not None
        inside.stdin.write(b"in\n")
        inside.stdin.flush()
        assert inside.stdout.readline() == b"in\n"  # it has entered
        assert kernel.holds(TO, inside.pid)
        assert not kernel.holds(TO, os.getpid())
    finally:
        inside.communicate()
        kernel.remove(TO)
    assert not kernel.holds(TO, inside.pid)
