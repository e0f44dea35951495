"""Copying between two databases that answer as ovsdb-server does (RFC 7047)."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.clone import database
from ovs_hotswap.clone import rows as plain
from ovs_hotswap.clone.changes import Changes, Hold
from ovs_hotswap.clone.rows import Rows
from ovs_hotswap.errors import ReleaseError, SwitchError
from ovs_hotswap.model import Release
from ovs_hotswap.switch.paths import InstancePaths
from tests.unit.clone_bed import SCHEMA, host
from tests.unit.test_clone_pipeline import paths
from tests.unit.test_clone_rows import done, older

RELEASE = Release("host", None, "3.5.0", "24.11")


class Server:
    """An ovsdb-server with these rows."""

    def __init__(self, path: Path, rows: Rows, schema: Any = SCHEMA) -> None:
        self.rows, self.schema = rows, schema
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                with caller:
                    received = b""
                    while True:
                        received += caller.recv(1 << 20)
                        with contextlib.suppress(ValueError):
                            answer = self._answer(json.loads(received))
                            break
                    caller.sendall(json.dumps({"id": 0, "error": None, "result": answer}).encode())

    def _answer(self, request: dict[str, Any]) -> Any:
        if request["method"] == "get_schema":
            return self.schema
        operations = request["params"][1:]
        if operations[0]["op"] != "select":
            self.rows = done(self.rows, operations)
            return [{} for _ in operations]
        return [{"rows": self._selected(each["table"], each["columns"])} for each in operations]

    def _selected(self, table: str, columns: list[str]) -> list[dict[str, Any]]:
        return [self._row(uuid, row, columns) for uuid, row in self.rows.get(table, {}).items()]

    @staticmethod
    def _row(uuid: str, row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
        return {"_uuid": ["uuid", uuid], **{name: plain.to_json(row[name]) for name in columns if name in row}}


class Bed:
    def __init__(self, directory: Path) -> None:
        self.a, self.b = self._paths(directory / "a"), self._paths(directory / "b")
        self.active = Server(self.a.db_socket, host())
        self.new = Server(self.b.db_socket, {})

    @staticmethod
    def _paths(directory: Path) -> InstancePaths:
        found = paths(directory)
        return type(found)(
            **{**{name: getattr(found, name) for name in found.__slots__}, "db_socket": directory / "db"}
        )


@pytest.fixture
def bed() -> Iterator[Bed]:
    directory = Path(tempfile.mkdtemp())
    made = Bed(directory)
    yield made
    made.active.close()
    made.new.close()
    shutil.rmtree(directory)


def test_a_copy_is_equal_to_what_it_was_made_from(bed: Bed) -> None:
    changes = Changes(held=frozenset())
    copied = database.copy(bed.a, bed.b, RELEASE, changes)
    assert copied.rows == sum(map(len, host().values()))
    assert copied.lost == copied.notes == copied.waiting == ()
    (root,) = bed.new.rows["Open_vSwitch"].values()
    assert root["ovs_version"] == {"3.5.0"}
    assert root["db_version"] == {"8.3.1"}
    bed.new.rows["Interface"]["i-vm1"]["ofport"] = frozenset({7})  # as ovs-vswitchd would
    bed.new.rows["Interface"]["i-local"]["ofport"] = frozenset({65534})
    bed.new.rows["Bridge"]["br"]["datapath_id"] = frozenset({"0000000000000042"})
    assert database.differences(bed.a, bed.b, changes) == []
    bed.active.rows["Port"]["p-vm1"]["tag"] = frozenset({6})
    bed.new.rows["Interface"]["i-vm1"]["ofport"] = frozenset({8})
    assert database.differences(bed.a, bed.b, changes) == [
        "Port vm1: tag is 5, not 6",
        "Interface vm1: ofport is 8, not 7",
    ]
    assert bed.active.rows["Bridge"] == host()["Bridge"]


def test_a_copy_is_made_into_an_empty_database_only(bed: Bed) -> None:
    bed.new.rows = {"QoS": copy.deepcopy(host()["QoS"])}
    with pytest.raises(SwitchError, match="is not empty"):
        database.copy(bed.a, bed.b, RELEASE, Changes())
    assert bed.new.rows.keys() == {"QoS"}


def test_a_database_that_is_no_copy_is_left_alone(bed: Bed) -> None:
    bed.new.rows = {"Open_vSwitch": {"another": host()["Open_vSwitch"]["root"]}}
    with pytest.raises(SwitchError, match="not made as a copy"):
        database.bring(bed.a, bed.b, Changes())
    with pytest.raises(SwitchError, match="not made as a copy"):
        database.give_back(bed.a, bed.b, Changes(), frozenset(Hold))
    assert bed.new.rows["Open_vSwitch"].keys() == {"another"}


def test_a_bridge_of_the_kernel_is_refused_and_named(bed: Bed) -> None:
    bed.active.rows["Bridge"]["br"]["datapath_type"] = frozenset({"system"})
    with pytest.raises(SwitchError, match="kernel datapath cannot be copied: br-int"):
        database.copy(bed.a, bed.b, RELEASE, Changes())
    assert bed.new.rows == {}
    assert "bridge br-int: of the kernel datapath, not copied" in database.differences(bed.a, bed.b, Changes())


def test_what_an_older_release_loses_is_named_and_left_out(bed: Bed) -> None:
    bed.new.schema = older()
    bed.active.rows["Interface"]["i-vm1"]["ofport"] = frozenset()
    copied = database.copy(bed.a, bed.b, RELEASE, Changes(cores=frozenset({1})))
    assert "Port vm1: tag=5" in copied.lost
    assert copied.waiting == ("vm1",)
    assert len(copied.notes) == 1
    assert bed.new.rows.get("Mirror", {}) == {}
    assert "port vm1: not looked at by the active switch yet" in database.differences(bed.a, bed.b, Changes())


def test_a_release_is_asked_by_the_file_of_its_schema(bed: Bed, tmp_path: Path) -> None:
    release = Release("new", str(tmp_path), "3.1", "22.11", "/opt/ovs")
    with pytest.raises(ReleaseError, match=r"its schema .*vswitch\.ovsschema cannot be read"):
        database.losses(bed.a, release)
    file = tmp_path / "opt/ovs/share/openvswitch/vswitch.ovsschema"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(older()))
    assert "Port vm1: tag=5" in database.losses(bed.a, release)
    file.write_text("{}")
    with pytest.raises(ReleaseError, match="cannot be read"):
        database.losses(bed.a, release)


def test_a_server_with_another_answer_is_an_error(bed: Bed) -> None:
    bed.active.schema = {"version": "1"}
    with pytest.raises(SwitchError, match="its schema cannot be read"):
        database.read(bed.a)


def test_an_internal_port_that_could_not_be_made_is_no_difference() -> None:
    active, new = host(), host()
    active["Interface"]["i-local"].update(ofport=frozenset({3}))
    new["Interface"]["i-local"].update(ofport=frozenset({-1}))
    assert database.chosen_differences(active, new) == []
    new["Interface"]["i-local"].update(ofport=frozenset({4}))
    new["Bridge"]["br"]["datapath_id"] = frozenset({"1"})
    assert database.chosen_differences(active, new) == [
        "Interface br-int: ofport is 4, not 3",
        "Bridge br-int: datapath_id is 1, not 0000000000000042",
    ]
    assert database.bridges(database.Contents(plain.parse_schema(SCHEMA), new)) == ["br-int"]
