"""The link between two instances over a pair of veth devices, in a network namespace of the test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.veth import make_pair, pair_is_up, pairs, remove_pair, veth_spec
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

NAMES = "ovsh-testa", "ovsh-testb"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    remove_pair(NAMES[0])
    yield
    remove_pair(NAMES[0])


def test_a_pair_is_made_once_and_removed_once() -> None:
    assert not pair_is_up(*NAMES)
    for _ in range(2):
        make_pair(*NAMES, 1508)
        assert wait_until(lambda: pair_is_up(*NAMES), 5.0, System())
    assert pairs("ovsh-test*") == list(NAMES)
    for _ in range(2):
        remove_pair(NAMES[0])
        assert pairs("ovsh-test*") == []


def test_a_name_that_no_device_can_have_is_an_error() -> None:
    with pytest.raises(SwitchError, match="cannot be made"):
        make_pair("ovsh-" + "x" * 20, NAMES[1], 1500)


@pytest.mark.parametrize("mtu", [68, 1500, 1920, 1921, 9000])
def test_a_frame_of_the_mtu_fits_into_a_slot_and_slots_into_a_block(mtu: int) -> None:
    spec = veth_spec("link", 7, "ovsh-testa", device="wire1", mtu=mtu)
    devargs = spec.options["dpdk-devargs"]
    assert devargs.startswith("net_af_packet_wire1,iface=ovsh-testa,")
    slot, block = (int(found[1]) for name in ("framesz", "blocksz") if (found := re.search(rf"{name}=(\d+)", devargs)))
    assert slot >= mtu + 18 + 52  # the Ethernet header with a tag, and TPACKET2_HDRLEN
    assert block % slot == 0
    assert block % 4096 == 0
    assert (spec.mtu, spec.ofport) == (mtu, 7)
