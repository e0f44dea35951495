"""Reading and writing a bridge: which versions of OpenFlow are used, and a bridge that changes while it is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ovs_hotswap.clone.compare import Commands
from ovs_hotswap.clone.dumps import Key
from ovs_hotswap.clone.pipeline import BridgePipeline
from ovs_hotswap.errors import CommandError, SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import Completed, System
from tests.unit.test_clone_dumps import FLOWS, GROUPS, METERS, PORTS, TABLES, TLVS

ALL = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15"
NEGOTIATION = "vconn|WARN|unix:x: version negotiation failed (we support version 0x01, peer supports version 0x06)"


def paths(directory: Path) -> InstancePaths:
    fields = {field.name: directory for field in dataclasses.fields(InstancePaths)}
    return InstancePaths(**{**fields, "vswitchd_ctl": directory / "ctl", "netns": ""})  # type: ignore[arg-type]


class Ofctl(System):
    """Answers in the place of ovs-ofctl. An answer is a text, or the next of several; ``refused`` are versions."""

    def __init__(self, **answers: str | list[str]) -> None:
        self.answers: dict[str, str | list[str]] = {
            "dump-flows": FLOWS, "dump-groups": GROUPS, "dump-meters": METERS, "dump-tlv-map": TLVS,
            "dump-ports-desc": PORTS, "dump-table-desc": TABLES, "get-frags": "nx-match\n",
            **{name.replace("_", "-"): answer for name, answer in answers.items()}}  # fmt: skip
        self.refused: set[str] = set()
        self.calls: list[tuple[str, str, tuple[str, ...], str | None]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        words = [word for word in argv if word != "--no-names"]
        assert words[:2] == ["ovs-ofctl", "-O"]
        versions, command, _, *arguments = words[2:]
        self.calls.append((versions, command, tuple(arguments), stdin))
        if versions in self.refused:
            return Completed(tuple(argv), 1, "", NEGOTIATION)
        answer = self.answers.get(command, "")
        return Completed(tuple(argv), 0, answer.pop(0) if isinstance(answer, list) else answer, "")

    def versions(self, command: str) -> list[str]:
        return [versions for versions, each, _, _ in self.calls if each == command]


def bridge(system: System, directory: Path = Path("/run/b")) -> BridgePipeline:
    return BridgePipeline(system, paths(directory), "br-int")


def test_everything_is_read_in_the_highest_version_and_ports_in_the_lowest() -> None:
    system = Ofctl()
    pipeline = bridge(system).read()
    assert (pipeline.version, len(pipeline.flows), len(pipeline.groups), len(pipeline.meters)) == (15, 4, 2, 2)
    assert pipeline.tlvs.keys() == {"tun_metadata0"}
    assert pipeline.ports.keys() == {"1", "LOCAL"}
    assert pipeline.tables.keys() == {3, 4}
    assert pipeline.fragments == "nx-match"
    assert system.versions("dump-flows") == [ALL]
    assert system.versions("dump-ports-desc") == ["OpenFlow10"]


def test_the_other_side_is_read_in_a_given_version() -> None:
    system = Ofctl()
    bridge(system).read(13)
    assert system.versions("dump-flows") == ["OpenFlow13"]
    assert set(system.versions("dump-groups")) == {"OpenFlow13"}


def test_a_bridge_without_openflow_10_shows_its_ports_in_what_it_has() -> None:
    system = Ofctl()
    system.refused = {"OpenFlow10"}
    assert bridge(system).read().ports.keys() == {"1", "LOCAL"}
    assert system.versions("dump-ports-desc") == ["OpenFlow10", ALL]


def test_meters_and_tables_are_not_asked_for_where_there_are_none() -> None:
    flows = FLOWS.replace("OFPST_FLOW reply (OF1.5)", "NXST_FLOW reply")
    system = Ofctl(dump_flows=flows, dump_groups="NXST_GROUP_DESC reply (xid=0x2):\n")
    pipeline = bridge(system).read()
    assert pipeline.version == 10
    assert not system.versions("dump-meters")
    assert not system.versions("dump-table-desc")
    assert pipeline.meters == {}
    assert pipeline.tables == {}


def test_groups_that_change_while_flows_are_read_are_read_again() -> None:
    system = Ofctl(dump_groups=[GROUPS, GROUPS + " group_id=9,type=all\n", GROUPS, GROUPS.replace("0x2", "0x9", 1)])
    assert bridge(system).read().groups.keys() == {1, 2}
    assert len(system.versions("dump-flows")) == 3
    restless = Ofctl(dump_groups=[GROUPS + f" group_id={number},type=all\n" for number in range(3, 20)])
    with pytest.raises(SwitchError, match="changed each time"):
        bridge(restless).read()


def test_what_cannot_be_read_is_an_error_that_names_the_bridge() -> None:
    with pytest.raises(SwitchError, match=r"br-int\.mgmt: ovs-ofctl cannot read it"):
        bridge(Ofctl(dump_groups=GROUPS + "***decode error***\n")).read()


def test_commands_are_sent_in_order_the_bundle_as_a_whole_and_old_actions_in_openflow_10() -> None:
    system = Ofctl()
    system.refused = {"OpenFlow10"}
    commands = Commands(
        before=(("add-meter", "meter=1,kbps"),),
        bundle=("group add group_id=1", "flow add priority=1"),
        after=(("mod-port", "1", "no-flood"), ("set-frags", "drop")),
    )
    bridge(system).send(commands)
    assert system.calls == [
        (ALL, "add-meter", ("meter=1,kbps",), None),
        (ALL, "bundle", ("-",), "group add group_id=1\nflow add priority=1\n"),
        ("OpenFlow10", "mod-port", ("1", "no-flood"), None),
        (ALL, "mod-port", ("1", "no-flood"), None),
        (ALL, "set-frags", ("drop",), None),
    ]
    system.calls.clear()
    with pytest.raises(SwitchError, match="version negotiation failed"):
        bridge(system).send(Commands(legacy=("priority=1,actions=mod_vlan_vid:1",)))
    assert system.calls == [("OpenFlow10", "add-flows", ("-",), "priority=1,actions=mod_vlan_vid:1\n")]


def test_a_failure_names_the_command_and_a_missing_program_is_one() -> None:
    class Missing(Ofctl):
        def run(self, *arguments: object, **named: object) -> Completed:
            raise CommandError("ovs-ofctl is not installed")

    with pytest.raises(SwitchError, match="not installed"):
        bridge(Missing()).read()
    system = Ofctl()
    system.refused = {ALL}
    with pytest.raises(SwitchError, match=r"ovs-ofctl dump-groups unix:/run/b/br-int\.mgmt: .*negotiation"):
        bridge(system).read()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def test_the_switch_is_asked_for_actions_that_openflow_15_has_no_form_for(directory: Path) -> None:
    line = " cookie=0x5, duration=1s, table=8, n_packets=0, n_bytes=0, idle_age=0, priority=5,in_port=1 actions="
    held = "table_id=8, duration=1s, n_packets=0, n_bytes=0, priority=5,in_port=1,actions=mod_vlan_vid:9\n"
    asked: list[dict[str, object]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "ctl"))
        listener.listen()

        def serve() -> None:
            caller, _ = listener.accept()
            with caller:
                asked.append(json.loads(caller.recv(1 << 16)))
                caller.sendall(json.dumps({"id": 0, "error": None, "result": held}).encode())

        thread = threading.Thread(target=serve)
        thread.start()
        system = Ofctl(dump_flows=f"{FLOWS}{line}push_vlan:0x8100,set_field:4105->vlan_vid\n")
        flow = bridge(system, directory).read().flows[Key(8, 5, "in_port=1")]
        thread.join()
    assert (flow.actions, flow.legacy, flow.cookie) == ("mod_vlan_vid:9", True, 5)
    assert asked == [{"method": "bridge/dump-flows", "params": ["br-int"], "id": 0}]
