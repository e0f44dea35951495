"""What the distribution starts its switch with after a boot; the distribution's own programs work on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError
from ovs_hotswap.host import boot_database
from ovs_hotswap.model import Side
from ovs_hotswap.switch.release import OVSDB_TOOL, SCHEMA


@pytest.fixture
def config(tmp_path: Path) -> Config:
    instance = {"pmd_cores": [0], "uplink_devargs": "0000:03:02.0"}
    return Config.model_validate({
        "program": "clone", "instances": {"a": instance, "b": instance}, "state_dir": str(tmp_path / "state"),
        "run_dir": f"/tmp/ovsh-{tmp_path.name[-20:]}", "stock": {"database": str(tmp_path / "conf.db")},
    })  # fmt: skip


def create(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([OVSDB_TOOL, "create", path, SCHEMA], check=True)
    if text:
        change = f'["Open_vSwitch", {{"op": "insert", "table": "Open_vSwitch", "row": {{"db_version": "{text}"}}}}]'
        subprocess.run([OVSDB_TOOL, "transact", path, change], check=True, capture_output=True)


def query(path: Path) -> str:
    rows = '["Open_vSwitch", {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["db_version"]}]'
    return subprocess.run([OVSDB_TOOL, "query", path, rows], check=True, capture_output=True, text=True).stdout


def test_the_next_boot_starts_with_the_active_instance_s_database(config: Config) -> None:
    create(config.stock.database, "own")
    create(config.database_file(Side.B), "new")
    boot_database.lead_to(config, Side.B)
    assert boot_database.leads_to(config) == config.database_file(Side.B)
    assert "new" in query(config.stock.database)
    boot_database.lead_to(config, Side.B)
    boot_database.put_back(config)
    assert boot_database.leads_to(config) == config.stock.database
    assert "own" in query(config.stock.database)
    boot_database.put_back(config)
    assert not boot_database.kept_database(config).exists()


def test_the_distribution_s_programs_keep_the_link(config: Config) -> None:
    create(config.stock.database)
    create(config.database_file(Side.B), "new")
    boot_database.lead_to(config, Side.B)
    subprocess.run([OVSDB_TOOL, "compact", config.stock.database], check=True)
    subprocess.run([OVSDB_TOOL, "convert", config.stock.database, SCHEMA], check=True)
    assert boot_database.leads_to(config) == config.database_file(Side.B)
    assert "new" in query(config.database_file(Side.B))


def test_a_database_that_is_not_there_is_not_led_to(config: Config) -> None:
    create(config.stock.database, "own")
    with pytest.raises(HostError, match="no database of instance b"):
        boot_database.lead_to(config, Side.B)
    assert "own" in query(config.stock.database)


def test_the_other_side_follows(config: Config) -> None:
    create(config.stock.database, "own")
    for side in Side:
        create(config.database_file(side), f"of {side}")
        boot_database.lead_to(config, side)
        assert f"of {side}" in query(config.stock.database)
    boot_database.put_back(config)
    assert "own" in query(config.stock.database)
