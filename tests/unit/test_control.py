"""The control socket's lines, and the client against a server that does everything wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap import errors
from ovs_hotswap.backends import Absence, AbsenceCause, MoveResult, OwnerCertainty, SwitchRole, VmStatus
from ovs_hotswap.broker.control.client import (
    BrokerClient,
    decode_request,
    encode,
    error_document,
    reported,
)
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown
from ovs_hotswap.model import Side
from tests.support.fake_backends import ring_status, vm_status

# Few characters, but all kinds that JSON treats in their own way; hypothesis's whole Unicode takes half a minute.
texts = st.text('ab"\\\n\u2028\x00é', max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@given(texts, st.dictionaries(texts, json_values, max_size=3))
def test_request_round_trip_is_one_line(method: str, params: dict[str, object]) -> None:
    line = encode({"method": method, "params": params})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    got = decode_request(line)
    assert (got.method, got.params) == (method, params)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_decode_raises_nothing_but_broker_error(line: bytes) -> None:
    with contextlib.suppress(BrokerError):
        decode_request(line)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"{}", b'{"method":null}'])
def test_what_is_no_request(line: bytes) -> None:
    with pytest.raises(BrokerError):
        decode_request(line)


def test_params_may_be_left_out() -> None:
    assert decode_request(b'{"method": "vms"}').params == {}


_ERRORS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HotswapError)
]  # fmt: skip


@pytest.mark.parametrize("kind", _ERRORS)
@pytest.mark.parametrize("hint", [None, "do this"])
def test_errors_arrive_as_what_they_were(kind: type[HotswapError], hint: str | None) -> None:
    document = json.loads(encode(error_document(kind("what", hint=hint))))
    with pytest.raises(HotswapError) as caught:
        raise reported(document["error"])
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("what", hint)


@pytest.mark.parametrize("name", ["Exception", "annotations", "NoSuchError", None, 7, "__doc__"])
def test_unknown_error_class_is_a_broker_error(name: object) -> None:
    with pytest.raises(BrokerError, match="what"):
        raise reported({"class": name, "message": "what"})


# -- client ------------------------------------------------------------------------------------------------------------

Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server whose connections, one after another, are handled by a function."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    threads: list[threading.Thread] = []

    def start(handle: Callable[[socket.socket], None]) -> Path:
        path = tmp_path / "s"
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    handle(connection)

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return path

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


STATUS = vm_status(rings=(ring_status(0),), capture_bytes=4096, unreported=frozenset({"netdev"}), netdev=None)
VM: dict[str, Any] = json.loads(json.dumps(STATUS.document()))
SWITCH, RING = VM["switches"]["a"], VM["rings"][0]
ADDED_LATER = {"absent", "owner_since", "last_proof", "quarantine", "capture_bytes"}
MOVED = {"vm": "v", "owner": "b", "give_us": 1, "take_us": 2.5, "total_us": 3.5}
BROKER = {"version": "1.0", "pid": 5, "uptime_s": 1, "vms": 3, "home": "a"}


def answering(answer: Callable[[dict[str, object]], bytes]) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(answer(json.loads(line)))

    return handle


def echo(request: dict[str, object]) -> bytes:
    return encode({"result": request})


def test_calls_are_what_the_broker_understands(serve: Serve) -> None:
    with BrokerClient(serve(answering(echo)), timeout=5) as client:
        assert client.call("vms") == {"method": "vms", "params": {}}
        assert client.call("vm", vm="v") == {"method": "vm", "params": {"vm": "v"}}
        assert client.call("move", vm="v", to=Side.B) == {"method": "move", "params": {"vm": "v", "to": "b"}}
        client.park("v", Side.A)
        client.unpark("v", Side.A)


@pytest.mark.parametrize(
    ("limit", "sizes", "rows"),
    [
        (10, [4, 4, 4, 10, 1], [["vm0", "vm1"], ["vm2"], ["vm3"], ["vm4"]]),
        (100, [4, 4, 4, 10, 1], [["vm0", "vm1", "vm2", "vm3", "vm4"]]),
        (None, [None] * 5, [["vm0", "vm1", "vm2", "vm3", "vm4"]]),  # a broker of an earlier version
        (3, [4, 4], [["vm0"], ["vm1"]]),
        (3, [], []),
    ],
)
def test_rows_of_vms_fit_into_the_memory_for_frames(
    serve: Serve, limit: int | None, sizes: list[int | None], rows: list[list[str]]
) -> None:
    def answer(request: dict[str, object]) -> bytes:
        if request["method"] == "status":
            sizes_of_all = {"taken": 0, "largest": 0, "all": 0}
            more = {} if limit is None else {"capture": {"limit": limit, **sizes_of_all}}
            return encode({"result": {**BROKER, **more}})
        each = [{**VM, "name": f"vm{number}", "capture_bytes": 0 if size is None else size}
                for number, size in enumerate(sizes)]  # fmt: skip
        return encode({"result": each})

    with BrokerClient(serve(answering(answer)), timeout=5) as client:
        assert client.rows([f"vm{number}" for number in range(len(sizes))]) == rows


class Asked:
    """A broker of which ``answers`` has the results by method. It does not have other methods."""

    def __init__(self, **answers: Callable[[dict[str, Any]], object]) -> None:
        self.answers = answers
        self.requests: list[tuple[str, object]] = []

    def __call__(self, request: dict[str, Any]) -> bytes:
        method, params = request["method"], request["params"]
        self.requests.append((method, params.get("vms", params.get("vm"))))
        if method not in self.answers:
            return encode(error_document(BrokerError(f"no method {method!r}; there are {', '.join(self.answers)}")))
        try:
            return encode({"result": self.answers[method](params)})
        except HotswapError as error:
            return encode(error_document(error))


FAULT = {"class": "BrokerError", "message": "vm1 cannot", "hint": None, "exit_code": 7}


def refuse_vm1(params: dict[str, Any]) -> object:
    if params["vm"] == "vm1":
        raise BrokerError("vm1 cannot")
    return {"frames": [b"frame".hex()]}


def test_many_vms_are_parked_by_one_request(serve: Serve) -> None:
    broker = Asked(park_many=lambda _: {"parked": ["vm0"], "errors": {"vm1": FAULT}, "late": {}})
    with BrokerClient(serve(answering(broker)), timeout=5) as client:
        errors = client.park_many(["vm0", "vm1"], Side.B)
    assert {name: (type(error), error.message) for name, error in errors.items()} == {
        "vm1": (BrokerError, "vm1 cannot")
    }
    assert broker.requests == [("park_many", ["vm0", "vm1"])]


def test_more_vms_than_one_request_is_for(serve: Serve) -> None:
    broker = Asked(park_many=lambda _: {"parked": [], "errors": {}, "late": {}})
    names = [f"vm{number}" for number in range(70)]
    with BrokerClient(serve(answering(broker)), timeout=5) as client:
        assert client.park_many(names, Side.B) == {}
    assert [vms for _, vms in broker.requests] == [names[:32], names[32:64], names[64:]]


def test_vms_that_are_late_are_waited_for_as_long_as_others_become_parked(serve: Serve) -> None:
    asked: list[list[str]] = []

    def park(params: dict[str, Any]) -> object:
        asked.append(params["vms"])
        late = params["vms"] if len(asked) > 2 else params["vms"][1:]
        return {"parked": [], "errors": {}, "late": {vm: {**FAULT, "message": f"{vm} is late"} for vm in late}}

    with BrokerClient(serve(answering(Asked(park_many=park))), timeout=5) as client:
        errors = client.park_many(["vm0", "vm1", "vm2", "vm3"], Side.B)
    assert [str(error) for error in errors.values()] == ["vm2 is late", "vm3 is late"]
    assert [len(vms) for vms in asked] == [4, 3, 2, 2]


def test_an_older_broker_is_asked_for_each_vm(serve: Serve) -> None:
    broker = Asked(park=refuse_vm1, undelivered=refuse_vm1)
    with BrokerClient(serve(answering(broker)), timeout=5) as client:
        errors = client.park_many(["vm0", "vm1", "vm2"], Side.B)
        found = list(client.undelivered_many(["vm0", "vm1", "vm2"]))
    assert [(name, error.message) for name, error in errors.items()] == [("vm1", "vm1 cannot")]
    assert [(each.vm, each.frames, each.error is None) for each in found] == [
        ("vm0", [b"frame"], True), ("vm1", [], False), ("vm2", [b"frame"], True),
    ]  # fmt: skip
    assert [vms for method, vms in broker.requests if method == "park"] == ["vm0", "vm1", "vm2"]


def test_frames_that_do_not_fit_into_one_answer_are_asked_for_again(serve: Serve) -> None:
    def undelivered(params: dict[str, Any]) -> object:
        first, *others = params["vms"]
        errors = {"vm1": FAULT} if "vm1" in others else {}
        return {"vms": [{"vm": first, "frames": [first.encode().hex()], "undeliverable": 2}], "errors": errors}

    broker = Asked(undelivered_many=undelivered)
    with BrokerClient(serve(answering(broker)), timeout=5) as client:
        found = {each.vm: each for each in client.undelivered_many(["vm0", "vm1", "vm2", "vm3"])}
    assert {name: each.frames for name, each in found.items()} == {
        "vm0": [b"vm0"], "vm1": [], "vm2": [b"vm2"], "vm3": [b"vm3"],
    }  # fmt: skip
    assert [name for name, each in found.items() if each.error] == ["vm1"]
    assert [name for name, each in found.items() if each.undeliverable == 2] == ["vm0", "vm2", "vm3"]
    assert [vms for _, vms in broker.requests] == [["vm0", "vm1", "vm2", "vm3"], ["vm2", "vm3"], ["vm3"]]


def test_a_vm_that_the_broker_does_not_answer_for_is_not_asked_for_again(serve: Serve) -> None:
    broker = Asked(undelivered_many=lambda _: {"vms": [], "errors": {}})
    with BrokerClient(serve(answering(broker)), timeout=5) as client, pytest.raises(BrokerError, match="for VM vm0"):
        list(client.undelivered_many(["vm0"]))


def test_a_fault_of_the_broker_is_no_fault_of_a_vm(serve: Serve) -> None:
    def fails(_: object) -> object:
        raise StateUnknown("it is ending")

    broker = Asked(park_many=fails, undelivered_many=fails)
    with BrokerClient(serve(answering(broker)), timeout=5) as client:
        with pytest.raises(StateUnknown, match="it is ending"):
            client.park_many(["vm0"], Side.B)
        with pytest.raises(StateUnknown, match="it is ending"):
            list(client.undelivered_many(["vm0"]))


def test_answers_larger_than_one_read(serve: Serve) -> None:
    with BrokerClient(serve(answering(lambda _: encode({"result": "x" * 500_000}))), timeout=5) as client:
        assert len(client.call("vms")) == 500_000
        assert len(client.call("vms")) == 500_000


def test_error_is_raised_as_its_class_and_the_client_stays_usable(serve: Serve) -> None:
    answers = iter([encode(error_document(StateUnknown("open", hint="look"))), encode({"result": 1})])
    with BrokerClient(serve(answering(lambda _: next(answers))), timeout=5) as client:
        with pytest.raises(StateUnknown, match="open"):
            client.call("move")
        assert client.call("vms") == 1


@pytest.mark.parametrize("data", [b"", b"half a line", b"not json\n", b"\xff\n"])
def test_broker_that_hangs_up_or_talks_nonsense(serve: Serve, data: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(data)

    with BrokerClient(serve(handle), timeout=5) as client, pytest.raises(BrokerError, match=r"broker at .*vms"):
        client.call("vms")


def _wait(event: threading.Event) -> None:
    event.wait(5)


def test_silent_broker_is_not_waited_for_longer_than_the_timeout(serve: Serve) -> None:
    done = threading.Event()
    with BrokerClient(serve(lambda _: _wait(done)), timeout=0.05) as client:
        with pytest.raises(BrokerError, match="timed out"):
            client.call("vms")
    done.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with BrokerClient(tmp_path / "none") as client, pytest.raises(BrokerError, match="No such file") as caught:
        client.call("vms")
    assert caught.value.hint == "start it: `ovs-hotswap broker start`"


def test_replaced_broker_is_found_again(serve: Serve) -> None:
    gone = threading.Event()

    def once(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(encode({"result": 1}))
        connection.shutdown(socket.SHUT_RDWR)
        gone.set()

    with BrokerClient(serve(once), timeout=5) as client:
        assert client.call("vms") == 1
        gone.wait(5)
        assert client.call("vms") == 1


@pytest.mark.parametrize("said", [b"", b"half a line"])
def test_what_a_broker_that_died_was_asked_the_next_one_is_asked(serve: Serve, said: bytes) -> None:
    asked: list[bytes] = []

    def dies_once(connection: socket.socket) -> None:
        asked.append(connection.recv(1000))
        connection.sendall(said if len(asked) == 1 else encode({"result": len(asked)}))

    with BrokerClient(serve(dies_once), timeout=5) as client:
        assert client.call("move", vm="v") == 2
    assert asked[0] == asked[1]


def test_broker_that_hangs_up_while_it_is_asked(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(1)  # of more than a socket holds: the client is still sending when this one closes

    with BrokerClient(serve(handle), timeout=5) as client, pytest.raises(BrokerError, match="vms: it hung up"):
        client.call("vms", more="x" * (1 << 22))


def test_what_costs_every_broker_its_life_is_not_asked_for_ever(serve: Serve) -> None:
    asked: list[bytes] = []

    def dies(connection: socket.socket) -> None:
        asked.append(connection.recv(1000))

    with BrokerClient(serve(dies), timeout=5) as client, pytest.raises(BrokerError, match="hung up"):
        client.call("vms")
    assert len(asked) == 3


ODD: list[Any] = [
    None, 5, "x", {}, {"vm1": VM}, [5], [[]], [{}],
    *([{**VM, key: 5}] for key in ("name", "switches", "rings", "owner")),
    [{**VM, "owner_since": "x"}], [{**VM, "switches": {"a": SWITCH}}], [{**VM, "switches": {"a": SWITCH, "b": 1}}],
    [{**VM, "switches": {"a": SWITCH, "b": {"connected": True}}}], [{**VM, "rings": [5]}], [{**VM, "rings": [{}]}],
    *([{name: value for name, value in VM.items() if name != key}] for key in VM if key not in ADDED_LATER),
]  # fmt: skip


@pytest.mark.parametrize("found", ODD, ids=str)
def test_an_answer_of_another_shape_is_the_broker_s_fault(serve: Serve, found: Any) -> None:
    """The answer may be another version's. A failover, or the start of an instance, continues without it."""
    with BrokerClient(serve(answering(lambda _: encode({"result": found}))), timeout=5) as client:
        for ask in (client.vms, lambda: client.vm("vm1"), lambda: client.undelivered("vm1"), client.status,
                    lambda: client.park_many(["vm1"], Side.B), lambda: list(client.undelivered_many(["vm1"])),
                    client.reload, lambda: client.move("vm1", Side.B), lambda: client.quarantine("vm1", "by order"),
                    lambda: client.move_many(["vm1"], Side.B), lambda: client.arm(["vm1"], Side.B)):  # fmt: skip
            with pytest.raises(BrokerError, match="it does not answer as this version expects: ") as raised:
                ask()
            assert raised.value.hint == "`ovs-hotswap broker take-over` replaces it by one of this version"


def test_what_is_not_understood_is_named(serve: Serve) -> None:
    found = [VM, {**VM, "rings": [RING, {**RING, "started": None}]}]
    with BrokerClient(serve(answering(lambda _: encode({"result": found}))), timeout=5) as client:
        with pytest.raises(BrokerError, match=r"vms: .*: 1\.rings\.1\.started: Input should be a valid boolean"):
            client.vms()


def ask_for_vms(serve: Serve, found: dict[str, Any]) -> VmStatus:
    with BrokerClient(serve(answering(lambda _: encode({"result": [found]}))), timeout=5) as client:
        return client.vms()[0]


def test_the_status_of_a_vm_arrives_as_it_was_sent(serve: Serve) -> None:
    found = ask_for_vms(serve, VM)
    assert found == STATUS
    assert found.document() == VM


def test_a_newer_broker_tells_more(serve: Serve) -> None:
    switches = {side: {**SWITCH, "role": "deputy", "more": 1} for side in Side}
    newer = {**VM, "more": 1, "switches": switches, "rings": [{**RING, "more": 1}], "certainty": "hopes",
             "absent": {"cause": "asleep", "text": "it sleeps", "more": 1}}  # fmt: skip
    found = ask_for_vms(serve, newer)
    assert (found.certainty, found.switches[Side.A].role) == (OwnerCertainty.UNKNOWN, SwitchRole.UNKNOWN)
    assert found.absent == Absence(AbsenceCause.UNREACHABLE, "it sleeps")
    assert "more" not in found.document()


def test_an_older_broker_tells_less(serve: Serve) -> None:
    older = {key: value for key, value in VM.items() if key not in ADDED_LATER}
    found = ask_for_vms(serve, older)
    assert found.document() == older, "what is not known is not printed as if it were"
    assert (found.owner_since, found.absent, found.can_be_quarantined) == (None, None, False)


def test_a_broker_cannot_say_what_it_does_not_report(serve: Serve) -> None:
    assert ask_for_vms(serve, {**VM, "unreported": ["quarantine"]}) == STATUS


def test_the_status_of_an_older_broker_and_of_a_newer_one(serve: Serve) -> None:
    with BrokerClient(serve(answering(lambda _: encode({"result": {**BROKER, "more": 1}}))), timeout=5) as client:
        found = client.status()
        assert client.reload() == []
    assert found.document() == BROKER
    assert (found.capture, found.kept_by_systemd) == (None, False)


RECORDED = json.loads((Path(__file__).parent / "answers" / "before-quarantine.json").read_text())


def test_the_recorded_answers_of_an_older_broker(serve: Serve) -> None:
    """They are those of a broker at ca01131, between a front end and two switches written for tests."""
    answer = answering(lambda request: encode({"result": RECORDED[str(request["method"])]}))
    with BrokerClient(serve(answer), timeout=5) as client:
        vms, status, moved = client.vms(), client.status(), client.move("vm0", Side.B)
        (back,), error = client.move_many(["vm0"], Side.A)
        assert client.reload() == []
    assert [vm.document() for vm in vms] == RECORDED["vms"]
    assert [vm.unreported for vm in vms] == 2 * [{"absent", "capture_bytes", "last_proof", "netdev", "quarantine"}]
    assert (status.document(), moved.document()) == (RECORDED["status"], RECORDED["move"])
    assert (back.owner, error) == (Side.A, None)


@pytest.mark.parametrize(
    ("told", "kept"),
    [({"supervised": True}, True), ({"supervised": True, "unit": False}, False), ({"unit": True}, True)],
)
def test_who_keeps_the_descriptors(serve: Serve, told: dict[str, bool], kept: bool) -> None:
    with BrokerClient(serve(answering(lambda _: encode({"result": {**BROKER, **told}}))), timeout=5) as client:
        assert client.status().kept_by_systemd is kept


def test_moves_and_the_error_of_the_first_that_failed(serve: Serve) -> None:
    fault = error_document(StateUnknown("open", hint="look"))
    with BrokerClient(serve(answering(lambda _: encode({"result": {"moved": [MOVED], **fault}}))), timeout=5) as client:
        moved, error = client.move_many(["v", "w"], Side.B)
    assert moved == [MoveResult("v", Side.B, 1.0, 2.5, 3.5)]
    assert isinstance(error, StateUnknown)


@pytest.mark.parametrize("line", [b"5", b"[]", b"{}", b"null", b'{"error": 5}', b"[" * 20000])
def test_a_line_that_is_no_answer(serve: Serve, line: bytes) -> None:
    with BrokerClient(serve(answering(lambda _: line + b"\n")), timeout=5) as client, pytest.raises(BrokerError):
        client.status()
