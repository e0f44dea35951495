"""The broker's unit under a real systemd, whose descriptor store outlives the broker: traffic from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.test_systemd import BROKER, OVERLAY, config
from tests.support.machine import PREFIX, PYTHON, Machine
from tests.support.store_drive import VM

RESTARTS, KILLS = 20, 5


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as made:
        made.write("/etc/ovs-hotswap/config.toml", config())
        made.write("/etc/ovs-hotswap/overlay.toml", OVERLAY)
        made.run(["sh", "-c", f"install -m 644 {PREFIX}/src/systemd/*.service /etc/systemd/system/"])
        made.run(["systemctl", "daemon-reload"])
        made.run(["systemctl", "start", BROKER])
        yield made


def test_restarts_and_kills_lose_nothing(machine: Machine) -> None:
    drive = f"cd {PREFIX}/src && exec {PYTHON} -m tests.support.store_drive {RESTARTS} {KILLS}"
    done = json.loads(machine.run(["sh", "-c", drive], timeout=180).stdout.splitlines()[-1])
    print(done)
    assert (done["lost"], done["doubled"], done["touched_by_two"]) == (0, 0, [])
    assert done["owners"] == [["a" if number % 2 == 0 else "b", "owns"] for number in range(RESTARTS + KILLS)]
    assert max(done["descriptors"]) - min(done["descriptors"]) <= 1
    log = machine.log(BROKER)
    assert log.count(f"vm {VM}: QEMU connected") == 1
    assert [log.count(f"vm {VM}: switch {side} connected") for side in "ab"] == [1, 1]
    assert done["stored"] == 2
    assert done["late_ns"] == 0  # a stop, unlike a restart, takes the rings back first
