"""Every format that a broker ever wrote is read or refused by name, and two brokers agree on one before *go*."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap import __version__
from ovs_hotswap.broker.persist import takeover
from ovs_hotswap.broker.persist.formats import (
    FORMATS,
    NEWEST,
    OLDEST,
    Reader,
    agree,
    announced,
    announcement,
    needed_format,
    newer_parts,
    raised,
)
from ovs_hotswap.broker.persist.recovery import StartsOver
from ovs_hotswap.broker.persist.snapshot import Table, VmParts, encode
from ovs_hotswap.broker.persist.snapshot_reader import Received, decode
from ovs_hotswap.broker.persist.state_slot import StateSlot
from ovs_hotswap.errors import BrokerError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.support.waiting import eventually
from tests.unit.snapshot_sample import Handle, newest_sample, sample

SNAPSHOTS = Path(__file__).parent / "snapshots"
OLD = Reader("0.2.0", (2, 3))


def recorded(number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SNAPSHOTS / f"format-{number}.json").read_text())
    assert found["format"] == number
    return found


def received(document: dict[str, Any]) -> Received:
    return Received([Handle(serial) for serial in range(1, document["descriptors"] + 1)])


def written(vm: VmParts) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(encode(vm, Table())))
    return document


def read(document: dict[str, Any]) -> VmParts:
    return decode(document["vm"], received(document), document["format"])


@pytest.mark.parametrize("number", FORMATS)
def test_what_was_recorded_is_read(number: int) -> None:
    document = recorded(number)
    assert written(read(document)) == raised(document["vm"], number)


def test_a_version_writes_what_was_recorded_of_its_newest_format() -> None:
    """A change of what is written needs a new format, or a new key that readers may ignore, and a new record."""
    assert written(newest_sample()) == recorded(NEWEST)["vm"]
    assert written(sample()) == raised(recorded(3)["vm"], 3)


def test_every_format_is_recorded() -> None:
    assert sorted(path.name for path in SNAPSHOTS.glob("*.json")) == [f"format-{n}.json" for n in range(1, NEWEST + 1)]


@pytest.mark.parametrize("number", range(1, OLDEST))
def test_a_format_that_is_too_old_is_refused_by_name(number: int) -> None:
    with pytest.raises(StateUnknown) as caught:
        read(recorded(number))
    assert f"format {number}; broker {__version__} reads formats 3 and 4" in caught.value.message
    assert "version between the two" in str(caught.value.hint)


@pytest.mark.parametrize("number", [NEWEST + 1, 0, "4", 4.0, True, None, [4]])
def test_what_is_no_format_of_ours_is_refused(number: object) -> None:
    document = recorded(NEWEST)
    with pytest.raises(StateUnknown, match=r"broker 0\.9\.0 wrote the state in format"):
        decode(document["vm"], received(document), number, "0.9.0")


def test_a_newer_version_may_add_keys() -> None:
    document = recorded(NEWEST)
    extended = copy.deepcopy(document)
    for part in (extended["vm"], extended["vm"]["state"], *extended["vm"]["state"]["rings"]):
        part["later"] = [1, 2]
    assert written(read(extended)) == written(read(document))


Path_ = tuple[str | int, ...]


def changed(path: Path_, value: object) -> dict[str, Any]:
    document = recorded(NEWEST)
    place: Any = document["vm"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return document


WRONG: list[tuple[Path_, object]] = [
    (("name",), ""), (("name",), 7), (("home",), "c"), (("certainty",), "perhaps"), (("certainty",), "nobody"),
    (("holder",), None), (("moves",), -1), (("moves",), 1.5), (("moves",), "3"), (("cut_pid",), 1 << 31),
    (("scratch",), 10_000), (("scratch",), -1), (("scratch",), True), (("scratch",), None), (("scratch",), 1),
    (("qemu",), 0), (("offered",), [1, 2]), (("offered",), [1, 2, 129]), (("offered",), [1 << 64, 0, 1]),
    (("suspects",), {"c": 1}), (("suspects",), {"a": -1}), (("born",), {"x": 1}), (("half",), ["0", []]),
    (("half",), ["00" * 5000, []]), (("half",), ["00", [99]]), (("park_wanted",), "b"),
    (("state", "rings", 0, "size"), 32769), (("state", "rings", 0, "size"), 0),
    (("state", "rings", 0, "base"), 1 << 16),
    (("state", "rings", 0, "address"), [0, 0, 0, 0]), (("state", "rings", 0, "kick"), [1, None]),
    (("state", "rings", 0, "enabled"), 1), (("state", "rings"), [{}]), (("state", "rings"), None),
    (("state", "memory", 0), [0, 0, 0, 0, 1]), (("state", "memory", 0), [0, 2, (1 << 64) - 1, 0, 1]),
    (("state", "features"), -1), (("state", "status"), 256), (("state", "mtu"), 67), (("state", "log"), [1, 2]),
    (("links", "a", "told", "rings", 0, "kick"), [True, 10_000]), (("links", "a", "told", "memory"), [[1, 2, 3, 4]]),
    (("links", "a", "connection"), 0), (("links", "a", "pid"), "1"), (("links", "a", "due"), 1),
    (("links", "c"), {"born": None, "told": {"rings": []}}), (("links",), []), (("state",), 3),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_wrong_shape_is_refused_with_its_place(path: Path_, value: object) -> None:
    with pytest.raises(StateUnknown, match=f"cannot be read: ({path[0]}|document)|descriptor"):
        read(changed(path, value))


def test_an_owner_that_is_unknown_is_told_to_older_readers_as_suspects() -> None:
    """To them too no side is given the rings before its process is proven off."""
    unknown = replace(sample(), ownership=Ownership(None, Certainty.UNKNOWN, frozenset(Side)), links={})
    document = recorded(3) | {"vm": written(unknown)}
    assert (document["vm"]["certainty"], document["vm"]["suspected"]) == ("nobody", ["a", "b"])
    assert needed_format(document["vm"]) == 3
    assert read(document).ownership == unknown.ownership
    del document["vm"]["doubted"]
    assert read(document).ownership == Ownership(suspects=frozenset(Side))
    document["vm"]["certainty"] = "unknown"  # as a broker wrote that knew no "doubted"
    assert read(document).ownership == unknown.ownership


def test_a_list_that_is_too_long_is_refused() -> None:
    document = recorded(NEWEST)
    state = document["vm"]["state"]
    state["rings"] = [state["rings"][2] | {"call": [False, None]}] * 257
    with pytest.raises(StateUnknown, match="rings"):
        read(document)


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from leaves(each, (*path, key))


scalars = st.none() | st.booleans() | st.integers(-3, 50) | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2)
)


@given(st.sampled_from(FORMATS), st.data())
def test_whatever_comes_is_read_or_refused(number: int, data: st.DataObject) -> None:
    document = recorded(number)
    path = data.draw(st.sampled_from(list(leaves(document["vm"]))))
    place: Any = document["vm"]
    for step in path[:-1]:
        place = place[step]
    if data.draw(st.booleans()) and isinstance(place, dict):
        del place[path[-1]]
    else:
        place[path[-1]] = data.draw(values)
    try:
        found = read(document)
    except StateUnknown:
        return
    written(found)


def test_a_descriptor_has_one_place() -> None:
    handles = [Handle(serial) for serial in range(3)]
    of = Received(handles)
    assert of.take(1) is of.look(1) is handles[1]
    with pytest.raises(ValueError, match="named twice"):
        of.take(1)
    assert of.rest() == [handles[0], handles[2]]


def test_older_readers_are_written_to_where_nothing_newer_is_in_use() -> None:
    old, new = written(sample()), written(newest_sample())
    assert (needed_format(old), newer_parts(old)) == (3, [])
    assert needed_format(new) == 4
    assert newer_parts(new) == [
        "VM vm0: a part of a message of its QEMU has come", "VM vm0: the start of switch a is not known",
        "VM vm0: switch b owes an answer", "VM vm0: the start of switch b is not known",
        "VM vm0: its guest has stopped a ring",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "needed", "agreed"),
    [
        (None, 3, 3), (None, 4, 4), (Reader("x", FORMATS), 3, 4), (Reader("x", (4, 5)), 3, 4),
        (Reader("x", (4, 5)), 4, 4), (OLD, 3, 3), (Reader("x", (3,)), 3, 3), (Reader("x", (3, 5)), 3, 3),
    ],
)  # fmt: skip
def test_the_newest_format_that_both_know_is_agreed_on(reader: Reader | None, needed: int, agreed: int) -> None:
    assert agree(reader, needed) == agreed


def test_a_refusal_names_both_versions_and_the_way_out() -> None:
    with pytest.raises(BrokerError) as caught:
        agree(Reader("2.0.0", (5, 6)), 3)
    assert caught.value.message == (
        f"broker {__version__} (state formats 3 and 4) cannot hand over to broker 2.0.0 (formats 5 and 6): "
        "no format in common"
    )
    assert "version between the two" in str(caught.value.hint)
    with pytest.raises(BrokerError) as caught:
        agree(OLD, 4, ["VM vm0: switch b owes an answer"])
    assert caught.value.message == (
        f"broker {__version__} (state formats 3 and 4) cannot hand over to broker 0.2.0 (formats 2 and 3) now: "
        "VM vm0: switch b owes an answer: this needs format 4"
    )
    assert "try again" in str(caught.value.hint)


def test_a_successor_announces_what_it_reads_by_its_address(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as successor:
        listener.bind(str(tmp_path / "successor.sock"))
        listener.listen()
        successor.bind(announcement(f"{os.getpid():x}"))
        successor.connect(str(tmp_path / "successor.sock"))
        connection, address = listener.accept()
        with connection:
            assert announced(address) == Reader(__version__, FORMATS)


@pytest.mark.parametrize(
    "address", ["", None, b"", b"\0other", "/run/x", announcement("0")[:-1], b"\0ovs-hotswap-successor/1/3,/0"]
)
def test_an_older_successor_announces_nothing(address: object) -> None:
    assert announced(address) is None


Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Connected: the old broker's, the successor's."""
    with ExitStack() as stack:
        old, new = socket.socketpair()
        yield stack.enter_context(old), stack.enter_context(new)


def hand_over(old: socket.socket, vms: list[StartsOver], reader: Reader | None) -> None:
    """A successor reads only afterwards: *ready* is there already."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        takeover.hand_over(old, sockets[0], sockets[1], [(vm, {}) for vm in vms], reader)


@pytest.mark.parametrize(("reader", "number"), [(None, 3), (OLD, 3), (Reader("x", FORMATS), 4)])
def test_the_document_has_the_format_that_was_agreed_on(ends: Ends, reader: Reader | None, number: int) -> None:
    old, new = ends
    new.sendall(b"R")
    hand_over(old, [], reader)
    length, descriptors = takeover._LENGTH.unpack(new.recv(takeover._LENGTH.size))
    new.recv(descriptors)
    document = json.loads(new.recv(length))
    assert (document["format"], document["version"]) == (number, __version__)


def test_a_refusal_reaches_the_successor(ends: Ends) -> None:
    old, new = ends
    starting = StartsOver("vm0", {}, OwnedFd(os.memfd_create("qemu")))
    with pytest.raises(BrokerError, match="vm0: it has to start over") as refused:
        hand_over(old, [starting], OLD)
    with pytest.raises(BrokerError) as told:
        takeover._receive(new)
    assert (told.value.message, told.value.hint) == (refused.value.message, refused.value.hint)


def test_a_successor_takes_what_it_was_given(ends: Ends) -> None:
    old, new = ends
    new.sendall(b"R")
    qemu = OwnedFd(os.memfd_create("qemu"))
    inode = os.fstat(qemu.fileno()).st_ino
    hand_over(old, [StartsOver("vm0", {}, qemu)], Reader("x", FORMATS))
    found = takeover._receive(new)
    assert found.successors is not None
    with found.control, found.successors:
        vm, listeners = found.vms["vm0"]
        assert listeners == {}
        assert isinstance(vm, StartsOver)
        assert vm.qemu is not None
        assert os.fstat(vm.qemu.fileno()).st_ino == inode
        vm.qemu.close()


def send(end: socket.socket, document: object, descriptors: int) -> list[int]:
    """What an old broker could send, with so many sockets. Return their inodes."""
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(descriptors)]
    inodes = [os.fstat(each.fileno()).st_ino for each in sockets]
    takeover._send(end, document, [each.fileno() for each in sockets])  # type: ignore[arg-type]
    for each in sockets:
        each.close()
    return inodes


OVER = {"name": "vm0", "processes": {"a": [17, None]}, "qemu": 2}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({}, "format None"),
        ({"format": 4, "control": 0, "vms": [{"over": OVER, "listeners": {}}] * 2}, "named twice"),
        ({"format": 4, "control": 0, "vms": [{"over": OVER | {"qemu": None}, "listeners": {}}] * 2}, "one name"),
        ({"format": 4, "control": 0, "successors": 0, "vms": []}, "successors"),
        ({"format": 4, "control": 7, "vms": []}, "control"),
        ({"format": 4, "control": 0, "vms": [{"listeners": {}}]}, "neither"),
        ({"format": 4, "control": 0, "vms": [{"over": OVER, "vm": {}, "listeners": {}}]}, "both"),
        ({"format": 4, "control": 0, "vms": [{"over": OVER, "listeners": {"c": 1}}]}, "listeners"),
        ({"format": 4, "control": 0, "vms": [{"over": OVER | {"processes": {"a": [-1, 0]}}, "listeners": {}}]}, "proc"),
        ({"format": 4, "control": 0, "vms": [{"vm": {"name": "vm0"}, "listeners": {"a": 1}}]}, "scratch|state"),
        ({"format": 4, "refused": "no"}, "refusal cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_document_leaves_nothing_open(ends: Ends, document: object, fault: str) -> None:
    old, new = ends
    inodes = send(old, document, 3)
    with pytest.raises(StateUnknown, match=fault):
        takeover._receive(new)
    eventually(lambda: not open_inodes() & set(inodes), "descriptors are closed")


def open_inodes() -> set[int]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory's own, or of another thread
            found.add(os.stat(f"/proc/self/fd/{number}").st_ino)
    return found


def test_a_length_that_no_document_has_is_refused(ends: Ends) -> None:
    old, new = ends
    old.sendall(takeover._LENGTH.pack(1 << 40, 0))
    with pytest.raises(StateUnknown, match="bytes, at most"):
        takeover._receive(new)


def test_sides_are_read() -> None:
    vm = read(recorded(NEWEST))
    assert (vm.home, vm.park_wanted) == (Side.A, frozenset({Side.B}))
    assert (dict(vm.suspects), dict(vm.born)) == ({Side.B: 4699}, {4699: 123400})
    assert vm.half[0] == bytes.fromhex("050000000100000048000000")


@pytest.mark.parametrize("number", FORMATS)
def test_a_recorded_state_is_found_where_a_broker_kept_it(number: int) -> None:
    document = recorded(number)
    with ExitStack() as stack:
        inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = [os.memfd_create("state"), *(os.eventfd(0) for _ in range(document["descriptors"]))]
        for each in given:
            stack.callback(os.close, each)
        os.write(given[0], json.dumps(document | {"qemu": document["vm"]["qemu"]}).encode())
        socket.send_fds(inlet, [b"S" + len(given).to_bytes(4, "big")], given)
        slot = StateSlot(inlet, outlet)
        stack.callback(slot.close)
        found = slot.load().state
        assert found is not None
        assert (found.name, found.moves, len(found.state.rings)) == ("vm0", 3, 4)
        places = [*found.state.descriptors(), *found.half[1], found.scratch, found.qemu,
                  *(link.connection for link in found.links.values())]  # fmt: skip
        assert len(places) == document["descriptors"]
        for place in places:
            assert place is not None
            place.close()
