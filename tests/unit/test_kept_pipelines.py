"""The pipelines that are kept for the next start of a switch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ovs_hotswap.clone.compare import Commands
from ovs_hotswap.clone.dumps import Pipeline, Tlv, parse_flows
from ovs_hotswap.clone.kept_pipelines import from_json, give_back, kept_bridges, to_json
from ovs_hotswap.clone.rows import Rows, parse_rows

DUMP = """\
 cookie=0x7, duration=100.5s, table=0, n_packets=1, n_bytes=2, send_flow_rem priority=10,in_port=1 actions=group:3
 cookie=0x0, duration=40.0s, table=1, n_packets=0, n_bytes=0, hard_timeout=60, priority=5,ip actions=meter:1,NORMAL
"""
PIPELINE = Pipeline(
    version=15,
    tlvs={"tun_metadata0": Tlv("0x102", "0x80", 4)},
    meters={"1": "kbps,burst,bands=type=drop rate=10"},
    groups={3: "type=all,bucket=actions=output:1"},
    flows=parse_flows(DUMP),
    ports={"1": frozenset({"NO_FLOOD"})},
    tables={1: ("evict",)},
    fragments="reassemble",
)


def test_what_is_read_is_what_was_kept_with_the_time_that_flows_have_left() -> None:
    started, found = from_json(to_json(12.5, {"br0": PIPELINE}))
    assert started == 12.5
    flows = {key: replace(flow, hard=20 if flow.hard else 0) for key, flow in PIPELINE.flows.items()}
    assert found == {"br0": replace(PIPELINE, flows=flows)}
    assert {flow.cookie for flow in found["br0"].flows.values()} == {7, 0}


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"started": 1}', b'{"started": 1, "bridges": {"br0": {"flows": 3}}}', b"\xff"]
)
def test_another_file_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def rows(**controllers: str) -> Rows:
    """The bridges br0 and br1 of the userspace datapath, each with a port of a VM; those named have a controller."""
    bridge = [
        {"_uuid": ["uuid", name], "name": name, "datapath_type": "netdev", "ports": ["uuid", f"p-{name}"],
         "controller": ["uuid", controllers[name]] if name in controllers else ["set", []]}
        for name in ("br0", "br1")
    ]  # fmt: skip
    port = [
        {"_uuid": ["uuid", f"p-{each}"], "name": f"p-{each}", "interfaces": ["uuid", f"i-{each}"]}
        for each in ("br0", "br1")
    ]
    interface = [{"_uuid": ["uuid", f"i-{each}"], "name": f"p-{each}", "type": "dpdkvhostuserclient", "ofport": 1}
                 for each in ("br0", "br1")]  # fmt: skip
    return parse_rows({"Bridge": bridge, "Port": port, "Interface": interface})


def test_a_bridge_with_a_controller_is_left_to_it() -> None:
    assert kept_bridges(rows()) == ["br0", "br1"]
    assert kept_bridges(rows(br1="c")) == ["br0"]


class FakeBridge:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.sent: list[Commands] = []

    def read(self, version: int | None = None, ours: object = None) -> Pipeline:
        assert version == PIPELINE.version
        return self.pipeline

    def send(self, commands: Commands) -> None:
        self.sent.append(commands)


def test_a_fresh_switch_gets_what_was_kept_and_loses_the_flow_that_it_made_itself() -> None:
    fresh = FakeBridge(Pipeline(version=15, flows=parse_flows(" cookie=0x0, table=0, priority=0 actions=NORMAL\n")))
    give_back(fresh, rows(), "br0", PIPELINE)
    (sent,) = fresh.sent
    assert [line.partition(",")[0] for line in sent.bundle] == [
        "group add group_id=3", "flow add cookie=0x7", "flow add cookie=0x0", "flow delete_strict table=0",
    ]  # fmt: skip
    assert ("mod-port", "1", "no-flood") in sent.after


def test_flags_of_a_port_that_is_gone_are_not_given() -> None:
    fresh = FakeBridge(Pipeline(version=15))
    give_back(fresh, rows(), "br0", replace(PIPELINE, ports={"9": frozenset({"NO_FLOOD"})}))
    assert not any(command[0] == "mod-port" for command in fresh.sent[0].after)
