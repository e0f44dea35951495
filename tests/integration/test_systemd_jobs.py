"""Jobs under a real systemd: in which unit they live, and what ends with them. No switch is needed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ovs_hotswap.remote.launch import UNIT
from tests.integration.test_systemd import OVERLAY, config
from tests.support.machine import Machine
from tests.support.waiting import eventually

OTHER = "/etc/ovs-hotswap/other.toml"  # with a run directory that no unit serves


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as made:
        made.write("/etc/ovs-hotswap/config.toml", config())
        made.write(OTHER, 'run_dir = "/run/other"\n' + config())
        made.write("/etc/ovs-hotswap/overlay.toml", OVERLAY)
        yield made


def ask(machine: Machine, *words: str) -> Any:
    return json.loads(machine.run(["ovs-hotswap", "--json", *words]).stdout)


def state(machine: Machine, job: str) -> tuple[str, int | None]:
    (found,) = [each for each in ask(machine, "job", "list")["jobs"] if each["id"] == job]
    return found["state"], found["exit_code"]


def start(machine: Machine) -> str:
    """A job that has begun its command, which runs until it is interrupted."""
    job: str = ask(machine, "job", "start", "status", "--watch", "--interval", "3600")["id"]
    events = f"/run/ovs-hotswap/jobs/{job}/events.jsonl"
    eventually(lambda: machine.run(["test", "-s", events], check=False).returncode == 0, "the job prints")
    assert state(machine, job) == ("running", None)
    return job


def unit_is_gone(machine: Machine, unit: str) -> bool:
    return machine.show(unit, "LoadState") == "not-found"


def test_a_job_is_a_unit_of_the_system_and_not_of_a_session(machine: Machine) -> None:
    job = start(machine)
    unit = f"{UNIT}{job}.service"
    assert machine.show(unit, "Slice") == "system.slice"
    assert machine.show(unit, "KillMode") == "process"
    assert len(machine.processes(unit)) == 1
    machine.run(["ovs-hotswap", "job", "interrupt", job])
    assert machine.run(["ovs-hotswap", "attach", job]).returncode == 0
    assert state(machine, job) == ("ended", 0)
    eventually(lambda: unit_is_gone(machine, unit), "nothing is left of the unit")


def test_what_a_job_has_started_outlives_it(machine: Machine) -> None:
    """A broker, or an instance, that no unit serves is a child of the job."""
    machine.run(["ovs-hotswap", "--config", OTHER, "job", "start", "--follow", "--", "broker", "start"])
    (job,) = json.loads(machine.run(["ovs-hotswap", "--config", OTHER, "--json", "job", "list"]).stdout)["jobs"]
    assert (job["state"], job["exit_code"]) == ("ended", 0)
    unit = f"{UNIT}{job['id']}.service"
    eventually(lambda: machine.show(unit, "ActiveState") == "inactive", "the unit has ended")
    machine.run(["ovs-hotswap", "--config", OTHER, "broker", "status"])
    machine.run(["ovs-hotswap", "--config", OTHER, "broker", "stop"])
    eventually(lambda: unit_is_gone(machine, unit), "nothing is left of the unit")


def test_a_unit_that_is_stopped_ends_its_job_in_order(machine: Machine) -> None:
    """That is what happens when the host goes down."""
    job = start(machine)
    machine.run(["systemctl", "stop", f"{UNIT}{job}.service"])
    assert state(machine, job) == ("ended", 0)


def test_a_job_that_is_killed_is_reported(machine: Machine) -> None:
    job = start(machine)
    machine.run(["systemctl", "kill", "--signal=KILL", f"{UNIT}{job}.service"])
    eventually(lambda: state(machine, job)[0] == "lost", "its end is noticed")
    assert machine.run(["ovs-hotswap", "attach", job], check=False).returncode == 6
