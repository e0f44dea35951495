"""An upgrade under QEMU guests where systemd runs the broker, both instances and the watchdog, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ovs_hotswap.model import Release
from tests.integration.test_systemd import BROKER, UNITS, WATCH
from tests.support.machine import PREFIX, PYTHON, Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as made:
        made.run(["sh", "-c", f"install -m 644 {PREFIX}/src/systemd/*.service /etc/systemd/system/"])
        made.run(["systemctl", "daemon-reload"])
        yield made


def test_an_upgrade_under_the_units_loses_nothing(machine: Machine, tree_release: Release) -> None:
    drive = f"cd {PREFIX}/src && exec {PYTHON} -m tests.support.upgrade_drive {tree_release.root}"
    done = json.loads(machine.run(["sh", "-c", drive], timeout=600).stdout.splitlines()[-1])
    print(done)
    assert done["committed"] == [True, True]
    assert [sorted(moves) for moves in done["moves"]] == [["vm1", "vm2"]] * 2
    assert done["sent"] > 1000
    assert done["lost"] == 0
    assert {machine.show(unit, "ActiveState") for unit in (BROKER, WATCH, *UNITS.values())} == {"active"}
    assert [machine.show(unit, "NRestarts") for unit in (BROKER, WATCH)] == ["0", "0"]
