"""What would make Neutron's agent notice another switch. The flows are those that the agent puts on br-int."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ovs_hotswap.controllers.neutron import Bridge, canary, findings, serves

COOKIE = "0x8a1d5b5a9f6b2c41"
FLOWS = [
    f" cookie={COOKIE}, duration=1.2s, table=0, n_packets=7, n_bytes=500, priority=0 actions=resubmit(,60)",
    f" cookie={COOKIE}, duration=1.2s, table=23, n_packets=0, n_bytes=0, priority=0 actions=drop",
    f" cookie={COOKIE}, duration=1.2s, table=60, n_packets=7, n_bytes=500, priority=3 actions=NORMAL",
]
INT = Bridge("0000cafe00000001", frozenset({"tcp:127.0.0.1:6633"}), "secure", FLOWS)
EX = Bridge("0000cafe00000002", frozenset(), "standalone", [" cookie=0x0, table=0, priority=0 actions=NORMAL"])
BRIDGES = {"br-int": INT, "br-ex": EX}


def test_an_exact_copy_is_not_noticed() -> None:
    assert findings(BRIDGES, BRIDGES) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"datapath_id": "0000cafe00000003"}, "datapath id is 0000cafe00000003"),
        ({"controllers": frozenset()}, "its controllers are none, not tcp:127.0.0.1:6633"),
        ({"fail_mode": ""}, "fail_mode is not set, not secure"),
        ({"flows": [FLOWS[0], FLOWS[2]]}, "table 23 is empty"),
        ({"flows": [flow.replace(COOKIE, "0x0") for flow in FLOWS]}, f"no flow has cookie {COOKIE}"),
    ],
)
def test_each_difference_that_the_agent_would_see_is_an_error(changes: dict[str, Any], text: str) -> None:
    (finding,) = findings(BRIDGES, {**BRIDGES, "br-int": dataclasses.replace(INT, **changes)})
    assert text in finding.text
    assert finding.item == "br-int"


def test_a_bridge_that_is_missing_is_one_finding() -> None:
    (finding,) = findings(BRIDGES, {"br-ex": EX})
    assert "no such bridge" in finding.text


def test_a_bridge_without_a_controller_is_not_the_agents() -> None:
    assert findings(BRIDGES, {"br-int": INT}) == []


def test_the_agent_is_recognised_by_its_controller_and_its_canary() -> None:
    assert serves(BRIDGES)
    assert not serves({"br-ex": EX})
    assert not serves({"br-int": dataclasses.replace(INT, controllers=frozenset())})
    assert not serves({"br-int": dataclasses.replace(INT, flows=FLOWS[:1])})


def test_table_23_is_not_taken_for_another() -> None:
    assert not canary([" cookie=0x0, table=230, actions=drop", " cookie=0x0, actions=resubmit(,23)"])
