"""The packet pool that an instance needs, the memory for it, and the prechecks of both."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.host import memory_checks
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.memory import (
    POOL_SIZES,
    Demand,
    HugePages,
    PacketPool,
    Reservation,
    Uplink,
    buffer_bytes,
    fits,
    limited,
    reserve,
    shared_mtu,
)
from ovs_hotswap.switch.pools import huge_page_pools, parse_pools

MIB = 1 << 20

demands = st.builds(
    Demand,
    vms=st.lists(st.integers(1, 16), max_size=255).map(tuple),
    mtus=st.lists(st.integers(576, 9600), max_size=4).map(tuple),
    pmds=st.integers(1, 16),
    uplinks=st.lists(
        st.builds(Uplink, st.integers(1, 16), st.sampled_from([256, 2048, 4096]), st.sampled_from([2048, 4096])),
        min_size=1,
        max_size=2,
    ).map(tuple),
)


def test_a_buffer_is_as_large_as_open_vswitch_makes_it() -> None:
    """total_obj_size as OVS 3.1 with DPDK 22.11 prints it."""
    assert buffer_bytes(1500) == 3008


@given(demands, st.sampled_from([2, 1024]))
def test_a_reservation_leads_open_vswitch_to_the_pool_it_promises(demand: Demand, page_mib: int) -> None:
    got = reserve(demand, page_mib)
    mtu = max(demand.mtus, default=1500)
    assert got.buffers in POOL_SIZES
    assert got.mib % page_mib == 0
    # Beside the pool, everything else fits.
    assert got.mib * MIB >= got.buffers * buffer_bytes(mtu) + demand.device_bytes
    if got.buffers < POOL_SIZES[-1]:
        assert got.buffers >= demand.buffers
        assert fits(got.mib, mtu) == got.buffers  # neither half of it nor twice


def test_a_host_of_64_vms_takes_no_gibibyte() -> None:
    assert reserve(Demand((1,) * 64, (1500, 1508), 2)) == Reservation(76, 16_384)
    assert reserve(Demand((4,) * 255, (1500,), 4)) == Reservation(310, 65_536)


def test_pages_of_a_gibibyte_hold_the_largest_pool() -> None:
    assert reserve(Demand((1,) * 4, (1500,), 1), page_mib=1024) == Reservation(1024, 262_144)


def test_more_queues_of_the_uplink_need_a_larger_pool() -> None:
    few, many = (
        Demand((1,), (1500,), 4, (Uplink.of(options),)) for options in ({}, {"n_rxq": "8", "n_rxq_desc": "4096"})
    )
    assert many.buffers == few.buffers + 8 * 4096 - 2048
    assert reserve(many).buffers > reserve(few).buffers


@pytest.mark.parametrize("value", ["", "many", "-1", "9" * 5000])
def test_an_option_that_is_no_number_is_as_if_not_given(value: str) -> None:
    assert Uplink.of({"n_rxq": value, "dpdk-devargs": "x"}) == Uplink()


@pytest.mark.parametrize(
    ("mtus", "shared"),
    [((1500, 1508), None), ((1500, 9000), 9000), ((9000, 9008), None), ((1450, 2022), None), ((2022, 2023), 2023)],
)
def test_ports_share_one_pool(mtus: tuple[int, ...], shared: int | None) -> None:
    assert shared_mtu(mtus) == shared


def test_a_limit_below_the_need_is_kept_to_and_told() -> None:
    demand = Demand((1,) * 4, (1500,), 1)
    assert limited(reserve(demand), 512, demand) == reserve(demand)
    assert limited(reserve(demand), 64, demand) == Reservation(64, 16_384)
    assert limited(reserve(demand), 32, demand).buffers == 0
    (finding,) = memory_checks.allowed(Side.B, demand, reserve(demand), 64)
    assert finding.severity is Severity.ERROR
    hint = f"set instances.b.memory_mb to {reserve(demand).mib} or more, then `ovs-hotswap config check`"
    assert finding.hint == hint
    assert memory_checks.allowed(Side.B, demand, reserve(demand), 66)[0].severity is Severity.OK


@pytest.mark.parametrize(
    ("pools", "severities"),
    [
        ([HugePages(2048, 256, 256)], [Severity.OK]),
        ([HugePages(2048, 255, 1000)], [Severity.ERROR]),
        ([HugePages(2048, 0, 9), HugePages(1 << 20, 1, 1)], [Severity.OK]),
        ([HugePages(2048, 128, 128), HugePages(1 << 20, 0, 0)], [Severity.ERROR]),
        ([], [Severity.ERROR]),
        ([HugePages(2048, 128, 128), HugePages(2048, 256, 256, node=1)], [Severity.ERROR]),
        ([HugePages(2048, 256, 256), HugePages(2048, 0, 0, node=1)], [Severity.OK, Severity.WARNING]),
    ],
)
def test_huge_pages_are_counted_on_the_node_that_needs_them(pools: list[HugePages], severities: list[Severity]) -> None:
    assert [finding.severity for finding in memory_checks.huge_pages(pools, 512, [0])] == severities


def test_the_peer_link_needs_pages_on_node_0() -> None:
    elsewhere = [HugePages(2048, 256, 256, node=1)]
    found = memory_checks.huge_pages([HugePages(2048, 0, 0), *elsewhere], 512, [1])
    assert [finding.severity for finding in found] == [Severity.OK, Severity.ERROR]
    found = memory_checks.huge_pages([HugePages(2048, 1, 1), *elsewhere], 512, [1])
    assert [finding.severity for finding in found] == [Severity.OK]


def test_the_hint_is_the_command_that_suffices() -> None:
    (finding,) = memory_checks.huge_pages([HugePages(2048, 100, 400, node=1)], 512, [1])
    assert finding.text == "NUMA node 1: the standby needs 512 MiB, 200 MiB are free"
    assert finding.hint == "echo 556 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"


@pytest.mark.parametrize(
    ("pools", "hint"),
    [
        # VMs have all that there are: the command must not take any away from them.
        ([HugePages(2048, 0, 700, node=1)], "echo 956 > {}-2048kB/nr_hugepages"),
        ([HugePages(1 << 20, 0, 0, node=1), HugePages(2048, 0, 700, node=1)], "echo 956 > {}-2048kB/nr_hugepages"),
        ([HugePages(1 << 20, 0, 0, node=1), HugePages(2048, 0, 0, node=1)], "echo 256 > {}-2048kB/nr_hugepages"),
        ([HugePages(1 << 20, 0, 90, node=1), HugePages(2048, 0, 0, node=1)], "echo 91 > {}-1048576kB/nr_hugepages"),
    ],
)
def test_the_hint_adds_to_what_a_node_has(pools: list[HugePages], hint: str) -> None:
    place = "/sys/devices/system/node/node1/hugepages/hugepages"
    (needing,) = memory_checks.huge_pages(pools, 512, [1])
    _, beside = memory_checks.huge_pages([HugePages(2048, 256, 256), *pools], 512, [0])
    assert (needing.hint, beside.hint) == (hint.format(place), hint.format(place))


def test_a_pool_that_became_smaller_is_seen() -> None:
    pools = [PacketPool(0, 32_768, 100, 3008), PacketPool(1, 16_384, 0, 3008)]
    assert memory_checks.too_small(pools, 16_384) is None
    assert memory_checks.too_small([], 16_384) is None
    assert memory_checks.too_small(pools, 16_385) == (
        "its packet pool on NUMA node 1 has 16384 buffers, and its ports can fill 16385"
    )


def test_what_the_active_instance_holds_must_fit() -> None:
    pools = [PacketPool(0, 262_144, 20_000, 3008)]
    assert memory_checks.in_use(Side.A, pools, Reservation(150, 32_768)) == []
    (finding,) = memory_checks.in_use(Side.A, pools, Reservation(66, 16_384))
    assert finding.severity is Severity.ERROR


DUMP = """\
mempool <vhost_iotlb>@0x1
  socket_id=0
  populated_size=9
  total_obj_size=64
  common_pool_count=9
mempool <ovs1ec5524300021580262144>@0x119004f2c0
  flags=10
  socket_id=1
  size=262144
  populated_size=262144
  elt_size=2880
  total_obj_size=3008
  private_data_size=64
  avg bytes/object=3008.837646
  internal cache infos:
    cache_size=512
    cache_count[0]=0
    cache_count[1]=513
    total_cache_count=513
  common_pool_count=261600
  no statistics available
"""


def test_the_dump_of_the_pools() -> None:
    assert parse_pools(DUMP) == [PacketPool(1, 262_144, 31, 3008)]
    assert parse_pools("") == []


def pages(place: Path, total: int, free: int, promised: int = 0) -> None:
    place.mkdir(parents=True)
    for name, value in (("nr", total), ("free", free), ("resv", promised)):
        (place / f"{name}_hugepages").write_text(f"{value}\n")


def test_pages_of_each_node(tmp_path: Path) -> None:
    pages(tmp_path / "kernel/mm/hugepages/hugepages-2048kB", 30, 20, 5)
    assert huge_page_pools(tmp_path) == [HugePages(2048, 15, 30)]
    for node in (0, 1):
        pages(tmp_path / f"devices/system/node/node{node}/hugepages/hugepages-2048kB", 15, 10 + node)
    assert huge_page_pools(tmp_path) == [HugePages(2048, 10, 15), HugePages(2048, 11, 15, 1)]
