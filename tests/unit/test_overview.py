"""`status`: one look at the whole host, its problems, and how changes are followed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.overview import Document, Line, differences, lines, look, problems
from ovs_hotswap.cli.status_cmd import follow
from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import Change
from ovs_hotswap.errors import BrokerError, UplinkError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import InstanceStatus, State
from ovs_hotswap.switch.memory import PacketPool
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config


def healthy(**changes: Any) -> Document:
    """A host on which all is well, but for ``changes``; a key with two underscores is one of a part."""
    watch = {
        "mode": "automatic", "running": True, "ready": True, "active": "a", "standby": "b", "health": "healthy",
        "reason": None, "keeping": "ready", "unprotected": [], "not_parked": None, "quarantined": None,
        "failover_problem": None, "problem": None, "events_problem": None, "failures": 0, "gave_up": False,
        "uplinks": {}, "differing": [],
    }  # fmt: skip
    document: Document = {
        "active": Side.A, "uplink": Side.A, "instances": [InstanceStatus(side, State.RUNNING) for side in Side],
        "replaced": {Side.A: False, Side.B: False}, "packet_pools": {Side.A: [], Side.B: []},
        "vms": {"total": 2, "connected": 2, "owners": {"a": 2, "b": 0}, "quarantined": {}, "unprotected": []},
        "unfinished": None, "last": None, "watch": watch, "broker": {"version": "1", "pid": 9},
        "flowlog": None, "unknown": [], "unknown_fields": [], "problems": [],
    }  # fmt: skip
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            document[part] = {**document[part], field: value}
        else:
            document[part] = value
    return document


def found(**changes: Any) -> list[tuple[str, str]]:
    return [(each.about, each.text) for each in problems(healthy(**changes), steered=True)]


def test_a_healthy_host_has_no_problem() -> None:
    assert found() == []


UPGRADE = {"kind": "upgrade", "phase": "forward", "parameters": {}, "failure": "no answer", "rebooted": False}


@pytest.mark.parametrize(
    ("changes", "about", "part"),
    [
        ({"active": None, "vms__owners": {"a": 0, "b": 0}}, "active", "no instance is active"),
        ({"active": None}, "active", "none is recorded, though a owns VMs"),
        ({"instances": [InstanceStatus(Side.A, State.DEAD)]}, "instance a", "ended by itself"),
        ({"uplink": Side.B}, "uplink", "steered to b, not to the active instance a"),
        ({"uplink": None}, "uplink", "steered nowhere"),
        ({"vms__owners": {"a": 1, "b": 1}}, "VMs", "1 are owned by b"),
        ({"vms__quarantined": {"vm2": "by order"}}, "VM vm2", "in quarantine: by order"),
        ({"vms__unprotected": ["vm1", "vm2"]}, "VMs", "not parked on the standby: vm1, vm2"),
        ({"unfinished": UPGRADE}, "journal", "(forward): no answer"),
        ({"watch__running": False}, "watchdog", "does not run"),
        ({"watch__health": "suspect", "watch__reason": "a PMD thread stands still"}, "health", "suspect: a PMD"),
        ({"watch__standby": None, "watch__keeping": "starting"}, "standby", "none is ready: starting"),
        ({"watch__gave_up": True, "watch__failures": 5}, "standby", "after 5 failures"),
        ({"watch__problem": "no memory"}, "watchdog", "no memory"),
        ({"watch__failover_problem": "no uplink"}, "watchdog", "no uplink"),
        ({"watch__uplinks": {"b": {"severity": "error", "text": "b: deaf"}}}, "uplink", "b: deaf"),
        ({"watch__differing": [Change("watch.hang_ms", 500, 700)]}, "configuration", "watch.hang_ms: 700"),
        ({"broker__config_fault": "not TOML"}, "broker", "not TOML"),
        ({"broker__differing": [{"key": "run_dir", "in_use": "/x", "configured": "/y"}]}, "configuration", "'/y'"),
        ({"broker__leaving": ["vm9: switch a"]}, "broker", "vm9: switch a"),
        ({"flowlog": {"problems": [{"text": "the relay does not run", "hint": None}]}}, "flow log", "does not run"),
    ],
)
def test_each_problem_is_named(changes: dict[str, Any], about: str, part: str) -> None:
    ((place, text),) = found(**changes)
    assert place == about
    assert part in text


def test_what_is_not_known_is_no_problem_of_its_own() -> None:
    assert found(active=None, unknown_fields=["active"]) == []
    assert found(uplink=None, unknown_fields=["uplink"]) == []
    assert found(vms=None, broker=None) == []


def test_an_upgrade_under_way_explains_the_uplink_the_owners_and_the_missing_standby() -> None:
    during = found(unfinished=UPGRADE, uplink=Side.B, vms__owners={"a": 1, "b": 1}, watch__standby=None)
    assert [about for about, _ in during] == ["journal"]


def test_an_uplink_that_something_else_steers_and_a_watchdog_that_is_off_are_no_problem() -> None:
    assert problems(healthy(uplink=None), steered=False) == []
    assert found(watch__mode="off", watch__running=False) == []


def texts(document: Document, label: str) -> list[str]:
    return [text for found, text in lines(document) if found == label]


def test_unknown_and_none_are_different_words() -> None:
    assert texts(healthy(uplink=None), "uplink") == ["not steered by ovs-hotswap"]
    assert texts(healthy(uplink=None, unknown_fields=["uplink"]), "uplink") == ["unknown"]
    assert texts(healthy(active=None), "active") == ["none"]
    assert texts(healthy(active=None, unknown_fields=["active"]), "active") == ["unknown"]
    assert texts(healthy(vms=None, unknown_fields=["vms"]), "VMs") == ["unknown"]


def test_one_status_shows_health_standby_and_problems() -> None:
    document = healthy(problems=[{"about": "VM vm2", "text": "in quarantine: by order", "hint": "`release`"}])
    assert texts(document, "health") == ["healthy"]
    assert texts(document, "standby") == ["b, ready"]
    assert texts(document, "problem") == ["VM vm2: in quarantine: by order; `release`"]
    assert texts(healthy(watch__running=False), "watchdog") == ["does not run, mode automatic"]


def test_a_look_at_a_host(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(config)
    bed.world.quarantine["vm2"] = "by order"
    document = look(bed.host)
    assert (document["active"], document["uplink"], document["unknown"]) == (Side.A, Side.A, [])
    assert document["vms"]["quarantined"] == {"vm2": "by order"}
    assert [each["about"] for each in document["problems"]] == ["VM vm2", "watchdog"]

    def unreadable() -> Side | None:
        raise UplinkError("there is no network device pf0")

    monkeypatch.setattr(bed.host.fake_uplink, "owner", unreadable)
    bed.world.broker_fault = BrokerError("the broker does not answer")
    document = look(bed.host)
    assert document["unknown"] == ["there is no network device pf0", "the broker does not answer"]
    assert document["unknown_fields"] == ["uplink", "vms", "broker"]
    assert texts(document | {"broker": None}, "uplink") == ["unknown"]


MEMORY: Line = ("memory", "4204 in use")


def test_what_has_changed_is_a_line_each() -> None:
    before: list[Line] = [("active", "a"), ("health", "healthy"), ("problem", "x: one"), MEMORY]
    after: list[Line] = [("active", "b"), ("health", "healthy"), ("problem", "y: two"), ("memory", "1 in use")]
    assert differences(before, after) == ["active   b", "problem  y: two", "problem  no longer: x: one"]
    assert differences(after, after) == []
    assert differences([("journal", "an upgrade")], []) == ["journal  no longer: an upgrade"]


def followed(output: Output, documents: list[Document]) -> None:
    left: Iterator[Document] = iter(documents)

    def wait() -> None:
        if len(shown) == len(documents):
            raise KeyboardInterrupt

    shown: list[Document] = []

    def again() -> Document:
        shown.append(next(left))
        return shown[-1]

    follow(App(output), again, wait)


def test_following_prints_each_change_with_its_time() -> None:
    out = io.StringIO()
    pool = PacketPool(0, 16384, 4204, 3000)
    followed(Output(out=out), [healthy(), healthy(packet_pools={Side.A: [pool], Side.B: []}), healthy(active=Side.B)])
    text = out.getvalue().splitlines()
    assert len(text) == len(lines(healthy())) + 1
    assert text[-1].endswith("  active   b")
    assert text[-1][:2].isdigit()


def test_following_as_json_is_a_document_on_a_line_for_each_change() -> None:
    out = io.StringIO()
    followed(Output(json=True, out=out), [healthy(), healthy(), healthy(active=Side.B)])
    assert [json.loads(line)["active"] for line in out.getvalue().splitlines()] == ["a", "b"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_following_on_a_terminal_shows_the_newest_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    followed(Output(out=out), [healthy(), healthy(watch__health="suspect")])
    assert "suspect" in out.getvalue()
    assert "\x1b[" in out.getvalue(), "it is drawn over what was there"
