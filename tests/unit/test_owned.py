"""What of a row is ours: only that is changed, whatever else the operator has put there."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.ovsdb import SwitchDb
from ovs_hotswap.switch.owned import CONFIGURED_SLEEP, MARK, marked, merged, remember, written
from tests.unit.fake_system import FakeSystem

WANTED: dict[str, Any] = {
    "type": "dpdk",
    "ofport_request": [1],
    "options": {"dpdk-devargs": "0000:03:02.0"},
    "other_config": {},
    "mtu_request": None,
}


def bring(row: dict[str, Any], wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    return {**row, **merged(row, WANTED if wanted is None else wanted)}


def test_a_new_row_has_what_is_wanted_and_a_mark() -> None:
    row = bring({})
    assert row["options"] == {"dpdk-devargs": "0000:03:02.0"}
    assert "mtu_request" not in row
    assert marked(row["external_ids"]) == {"type", "ofport_request", "options:dpdk-devargs"}


def test_a_row_that_is_so_already_does_not_change() -> None:
    row = bring({})
    assert bring(row) == row


def test_what_the_operator_set_stays() -> None:
    row = bring({})
    row["options"] = {**row["options"], "n_rxq": "4", "n_rxq_desc": "1024"}
    row["other_config"] = {"pmd-rxq-affinity": "0:3"}
    row["mtu_request"] = [9000]
    row["external_ids"] = {**row["external_ids"], "iface-id": "web"}
    assert bring(row) == row


def test_what_we_wrote_is_put_back_and_taken_away_again() -> None:
    row = bring({}, {**WANTED, "options": {"dpdk-devargs": "0000:03:02.0", "n_rxq": "2"}, "mtu_request": [9000]})
    row["options"] = {**row["options"], "dpdk-devargs": "other", "n_txq_desc": "512"}
    row = bring(row)
    assert row["options"] == {"dpdk-devargs": "0000:03:02.0", "n_txq_desc": "512"}
    assert row["mtu_request"] == []
    assert "mtu_request" not in marked(row["external_ids"])


def test_a_row_without_a_mark_loses_nothing() -> None:
    """An earlier version has left the interface so, or an operator has made it."""
    row = bring({"type": "dpdk", "options": {"dpdk-devargs": "x", "n_rxq": "2"}, "mtu_request": [2000]})
    assert row["options"] == {"dpdk-devargs": "0000:03:02.0", "n_rxq": "2"}
    assert row["mtu_request"] == [2000]


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "7"])
def test_a_record_that_cannot_be_read_is_an_empty_one(text: str) -> None:
    assert written({MARK: text}) == {}


def test_the_record_of_other_config() -> None:
    noted = remember({"system-id": "x"}, {"dpdk-init": "true", "vlan-limit": "1"})
    assert noted["system-id"] == "x"
    noted = remember(noted, {"vlan-limit": None, "max-idle": "5"})
    assert written(noted) == {"dpdk-init": "true", "max-idle": "5"}


class Database(SwitchDb):
    """The one row of Open_vSwitch; ``writes`` counts what changed it."""

    def __init__(self) -> None:
        self.columns: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self.writes = 0

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def set_other_config(self, values: Any, notes: Any = None) -> bool:
        before = self.columns
        self.columns = ({**before[0], **values}, {**before[1], **(notes or {})})
        self.writes += self.columns != before
        return self.columns != before

    def other_config(self) -> dict[str, str]:
        return self.columns[0]

    def external_ids(self) -> dict[str, str]:
        return self.columns[1]


class OneInstance:
    def __init__(self, database: Database) -> None:
        self._database = database

    def database(self, *_: Any, **__: Any) -> Database:
        return self._database

    def release(self) -> Any:
        return type("Release", (), {"ovs_version": "3.5.0"})


def host(path: Path, database: Database, pmd_sleep_us: int, **both: Any) -> Host:
    side = {"pmd_cores": [0], "uplink_devargs": "x", "pmd_sleep_us": pmd_sleep_us}
    config = Config.model_validate({"overlay": str(path), "instances": {"a": side, "b": side, **both}})
    made = Host(config, FakeSystem())
    made.instances = {side: OneInstance(database) for side in Side}  # type: ignore[misc]
    return made


def test_the_operator_s_pmd_sleep_stays_until_the_configured_one_changes(tmp_path: Path) -> None:
    database = Database()
    first = host(tmp_path, database, 100)
    first.settle_pmd_sleep(Side.A)
    assert database.columns == ({"pmd-sleep-max": "100"}, {CONFIGURED_SLEEP: "100"})
    assert first.own_pmd_sleep(Side.A) is None
    writes = database.writes
    first.follow_pmd_sleep(Side.A)
    assert database.writes == writes
    database.set_other_config({"pmd-sleep-max": "7"})
    first.follow_pmd_sleep(Side.A)
    assert database.other_config() == {"pmd-sleep-max": "7"}
    assert first.own_pmd_sleep(Side.A) == 7
    host(tmp_path, database, 300).follow_pmd_sleep(Side.A)
    assert database.columns == ({"pmd-sleep-max": "300"}, {CONFIGURED_SLEEP: "300"})


def test_the_window_ends_with_the_operator_s_pmd_sleep(tmp_path: Path) -> None:
    database = Database()
    made = host(tmp_path, database, 0)
    made.settle_pmd_sleep(Side.A)
    database.set_other_config({"pmd-sleep-max": "7"})
    own = made.own_pmd_sleep(Side.A)
    made.set_pmd_sleep(Side.A, 100)
    made.settle_pmd_sleep(Side.A, own)
    made.follow_pmd_sleep(Side.A)
    assert made.pmd_sleep(Side.A) == 7


def test_a_pmd_sleep_that_is_no_number_counts_as_open_vswitch_reads_it(tmp_path: Path) -> None:
    database = Database()
    database.set_other_config({"pmd-sleep-max": "a lot"})
    assert host(tmp_path, database, 0).pmd_sleep(Side.A) == 0


def test_where_each_port_has_a_pool_an_instance_gets_all_that_it_may_have(tmp_path: Path) -> None:
    """What its ports need then is not known, and the size of no one pool says anything."""
    made = host(tmp_path, Database(), 0, other_config={"per-port-memory": True})
    assert made.reservation(Side.A).mib == made.config.instance(Side.A).memory_mb
    assert made.reservation(Side.A).shared_mtu is None
    assert made.packet_pools(Side.A) == []
