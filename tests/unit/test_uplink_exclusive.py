"""The uplink that one instance has at a time: who gets it, when it is given back, and what depends on that."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError, SwitchError, UplinkError
from ovs_hotswap.host.uplink_ends import UplinkEnds, UplinkExchange
from ovs_hotswap.model import Life, Proof, Severity, Side, Way
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import PEER_PORT, UPLINK, UPLINK_PORT
from ovs_hotswap.overlay.tables import Form, Kind, cookie_kind, lines, render
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.plan.journal import Header
from ovs_hotswap.switch.ovsdb import PortSpec
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import SteerUplink
from ovs_hotswap.upgrade.upgrade import Report
from ovs_hotswap.uplink.base import make_uplink
from ovs_hotswap.uplink.exclusive import ExclusiveUplink
from ovs_hotswap.uplink.frames import Host, question
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.uplink_watch import OneUplink
from tests.unit.flow_simulator import LOCAL, Packet, Pipeline
from tests.unit.test_uplink import INTENT, MAC, VTEP, no_flows, no_path
from tests.unit.watch_bed import Bed, FakeHost, World
from tests.unit.watch_bed import config as config

NEIGHBOUR = Host("172.31.0.2", "52:54:00:1f:00:02")


@dataclass
class FakePorts:
    """Two instances and one NIC. ``cannot_open``: the sides that cannot open it. ``silent``: no neighbour answers."""

    has: set[Side] = field(default_factory=set)
    acts: list[str] = field(default_factory=list)
    cannot_open: set[Side] = field(default_factory=set)
    why: Exception = field(default_factory=lambda: SwitchError("port uplink: cannot be attached", hint="look"))
    mute: set[Side] = field(default_factory=set)  # the instances that do not answer
    silent: bool = False
    links_down: bool = False
    counted: int = 0
    now: float = 0.0

    def end(self, side: Side) -> End:
        return End(self, side)

    def answers(self, side: Side) -> int:
        self.see(side)
        return self.counted

    def has_uplink(self, side: Side) -> bool:
        self.see(side)
        return side in self.has

    def link_up(self, side: Side) -> bool:
        return not self.links_down

    def open_uplink(self, side: Side) -> None:
        self.now += 0.25
        self.acts.append(f"open {side}")
        if side in self.cannot_open:
            raise self.why
        self.has.add(side)
        assert len(self.has) == 1, "two processes have the device"

    def release_uplink(self, side: Side) -> None:
        self.see(side)
        self.now += 0.125
        self.acts.append(f"release {side}")
        self.has.discard(side)

    def see(self, side: Side) -> None:
        if side in self.mute:
            raise SwitchError(f"instance {side} is stopped")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def uplink(self, *, quick: bool = False, neighbours: tuple[Host, ...] = (NEIGHBOUR,)) -> ExclusiveUplink:
        return ExclusiveUplink(self, Host(VTEP, MAC), neighbours, quick, lambda: self.now, self.sleep)


@dataclass
class End:
    ports: FakePorts
    side: Side

    def send(self, frame: bytes) -> None:
        assert frame[:42] == question(Host(VTEP, MAC), NEIGHBOUR, b"")[:42]
        if self.side in self.ports.has and not self.ports.silent:
            self.ports.counted += 1

    def probes(self) -> int:
        return 0


def test_the_uplink_is_closed_before_it_is_opened_and_the_gap_is_told() -> None:
    ports = FakePorts()
    assert ports.uplink().steer(Side.A) is None, "no instance had it before"
    ports.acts.clear()
    assert ports.uplink().steer(Side.B) == pytest.approx(0.375)
    assert ports.acts == ["release a", "open b"]
    assert ports.uplink().steer(Side.B) is None
    assert ports.acts == ["release a", "open b"]


def test_what_the_new_side_cannot_open_the_old_side_has_again() -> None:
    ports = FakePorts(has={Side.A}, cannot_open={Side.B})
    with pytest.raises(UplinkError, match=r"instance b did not get .* cannot be attached; instance a has it again"):
        ports.uplink().steer(Side.B)
    assert ports.has == {Side.A}


@pytest.mark.parametrize("why", [HostError("/run/a.json: No space left on device"), OSError("another fault")])
def test_the_old_side_has_it_again_whatever_the_fault_is(why: Exception) -> None:
    ports = FakePorts(has={Side.A}, cannot_open={Side.B}, why=why)
    with pytest.raises(UplinkError, match=r"instance b did not get .*; instance a has it again"):
        ports.uplink().steer(Side.B)
    assert ports.has == {Side.A}
    ports.cannot_open = set(Side)
    with pytest.raises(UplinkError, match="did not get it back, so neither instance may have it"):
        ports.uplink().steer(Side.B)


def test_a_link_that_does_not_come_up_is_given_back() -> None:
    ports = FakePorts(has={Side.A}, silent=True, links_down=True)
    with pytest.raises(UplinkError, match="its link is down after 15 s; instance a has it again"):
        ports.uplink().steer(Side.B)
    assert ports.acts == ["release a", "open b", "release b", "open a"]


def test_an_answer_shows_a_link_that_is_not_reported_yet() -> None:
    ports = FakePorts(has={Side.A}, links_down=True)
    ports.uplink().steer(Side.B)
    assert ports.has == {Side.B}


def test_a_failover_does_not_wait_for_the_link() -> None:
    ports = FakePorts(silent=True, links_down=True)
    ports.uplink(quick=True).steer(Side.B)
    assert ports.now == pytest.approx(0.25)


def test_it_is_said_if_neither_has_it() -> None:
    ports = FakePorts(has={Side.A}, cannot_open={Side.A, Side.B})
    with pytest.raises(UplinkError, match="did not get it back, so neither instance may have it"):
        ports.uplink().steer(Side.B)


def test_two_owners_and_an_unknown_owner_are_named() -> None:
    ports = FakePorts(has=set(Side))
    with pytest.raises(UplinkError, match="both instances have the uplink"):
        ports.uplink().owner()
    ports = FakePorts(has={Side.A}, mute={Side.B})
    with pytest.raises(UplinkError, match="not known: instance b is stopped") as unknown:
        ports.uplink().owner()
    assert unknown.value.hint is not None
    assert [each.severity for each in ports.uplink().check()] == [Severity.ERROR]


def test_a_clear_that_an_instance_refuses_is_an_error_of_the_uplink() -> None:
    ports = FakePorts(has={Side.A})
    uplink = ports.uplink()

    class Refusing(FakePorts):
        def release_uplink(self, side: Side) -> None:
            raise SwitchError("no")

    uplink.ports = Refusing(has={Side.A})
    with pytest.raises(UplinkError, match="no"):
        uplink.clear()


@pytest.mark.parametrize(
    ("side", "silent", "way", "proof"),
    [
        (Side.A, False, None, Proof(True, True)),
        (Side.A, False, Way.OUT, Proof(out=True)),
        (Side.A, False, Way.INTO, Proof(into=True)),
        (Side.A, True, None, Proof(out=False)),
        (Side.A, True, Way.INTO, Proof()),
        (Side.B, False, None, Proof(out=False)),
    ],
)
def test_an_answer_proves_both_directions(side: Side, silent: bool, way: Way | None, proof: Proof) -> None:
    ports = FakePorts(has={Side.A}, silent=silent)
    assert ports.uplink().prove(side, ports.end(side), way) == proof


def test_nothing_is_proven_without_neighbours() -> None:
    ports = FakePorts(has={Side.A})
    assert ports.uplink(neighbours=()).prove(Side.A, ports.end(Side.A)) == Proof()
    assert ports.uplink().steered(Side.A) is None


def one_nic(changed: Config, **more: object) -> Config:
    return Config.model_validate({**changed.model_dump(mode="json"), "uplink": {"driver": "exclusive"}, **more})


def test_the_driver_is_chosen_by_the_configuration(config: Config) -> None:
    assert isinstance(make_uplink(one_nic(config), INTENT, UplinkEnds(no_flows, no_path)), ExclusiveUplink)


# ------------------------------------------------------------------------------------------------------------- flows

VM = {"name": "vm1", "ofport": 10, "mac": "52:54:00:00:00:01", "vni": 100}
PAIRED = Intent.model_validate({"vtep": {"address": f"{VTEP}/24", "mac": MAC}, "vm": [VM]})


@pytest.mark.parametrize("owner", Side)
def test_either_side_sends_by_the_uplink_of_the_one_that_has_it(owner: Side) -> None:
    """The bridge of the other one has no such port, so what it outputs there goes nowhere."""
    sides = {side: Pipeline(lines(render(PAIRED, Form.WINDOW, whole_nic=True))) for side in Side}
    packet = Packet(MAC, NEIGHBOUR.mac)
    for sender in Side:
        wire = []
        for port, sent in sides[sender].receive(LOCAL, packet):
            if port == PEER_PORT:
                found = sides[sender.other].receive(PEER_PORT, sent)
                wire += [(sender.other, *each) for each in found]
            else:
                wire.append((sender, port, sent))
        assert [each for each in wire if each[0] is owner] == [(owner, UPLINK_PORT, packet)]


def test_outside_the_window_nothing_goes_to_the_peer_link() -> None:
    text = "\n".join(lines(render(PAIRED, Form.FINAL, whole_nic=True)))
    assert f"output:{PEER_PORT}" not in text
    assert f"in_port={PEER_PORT}" not in text


@pytest.mark.parametrize("form", Form)
def test_the_kernel_behind_the_bridge_answers_arp_only_where_no_other_kernel_does(form: Form) -> None:
    kinds = {Kind.ASKS_VTEP, Kind.ANSWERS_VTEP}
    found = {cookie_kind(flow.cookie): flow for flow in render(PAIRED, form, whole_nic=True)[0].flows}
    assert {found[kind].actions for kind in kinds} == {"LOCAL"}
    assert f"arp_tpa={VTEP}" in found[Kind.ANSWERS_VTEP].match
    assert kinds.isdisjoint(cookie_kind(flow.cookie) for flow in render(PAIRED, form)[0].flows)


@pytest.mark.parametrize("form", Form)
def test_each_of_the_hosts_addresses_is_resolved_and_every_answer_is_counted_alike(form: Form) -> None:
    """A followed neighbour's answer is what the proof counts, and routers ask for the address on their link."""
    link = "192.0.2.1"
    intent = Intent.model_validate({
        "vtep": {"address": "10.0.0.1/32", "mac": MAC, "link_addresses": [f"{link}/31"]},
        "neighbour": [{"address": "192.0.2.0"}],
    })  # fmt: skip
    flows = render(intent, form, whole_nic=True)[0].flows
    kinds = [cookie_kind(flow.cookie) for flow in flows if f"arp_tpa={link}," in flow.match]
    assert kinds == [Kind.ASKS_VTEP, Kind.ANSWERS_VTEP]
    assert Kind.FROM_NEIGHBOUR not in [cookie_kind(flow.cookie) for flow in flows]


@dataclass
class Noting(FakePorts):
    """Notes what an instance is to send."""

    sent: list[bytes] = field(default_factory=list)

    def end(self, side: Side) -> Any:
        return self

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


def test_a_neighbour_is_asked_from_the_address_on_its_link() -> None:
    ports, link = Noting(has={Side.A}), "192.0.2.1"
    ports.uplink(neighbours=(Host("192.0.2.0", NEIGHBOUR.mac, link),)).prove(Side.A, ports.end(Side.A), Way.OUT)
    assert ports.sent[0][:42] == question(Host(link, MAC), Host("192.0.2.0", NEIGHBOUR.mac), b"")[:42]


@pytest.mark.parametrize(
    ("vtep", "parts", "actions"),
    [
        ({"address": "fd00::1/64"}, ("icmp_type=135,icmp_code=0,nd_target=fd00::1", "icmp_type=136"), "LOCAL"),
        (
            {"address": f"{VTEP}/24", "vlan": 7},
            (f"dl_vlan=7,arp,arp_tpa={VTEP},arp_op=1", "arp_op=2"),
            "pop_vlan,LOCAL",
        ),
    ],
)
def test_other_underlays_resolve_addresses_in_their_own_way(
    vtep: dict[str, Any], parts: tuple[str, str], actions: str
) -> None:
    intent = Intent.model_validate({"vtep": {**vtep, "mac": MAC}, "vm": [VM]})
    found = {cookie_kind(flow.cookie): flow for flow in render(intent, Form.WINDOW, whole_nic=True)[0].flows}
    for kind, part in zip((Kind.ASKS_VTEP, Kind.ANSWERS_VTEP), parts, strict=True):
        assert part in found[kind].match
        assert found[kind].actions == actions
    tag = "" if "vlan" not in vtep else "push_vlan:0x8100,set_field:4103->vlan_vid,"
    assert found[Kind.TO_UPLINK].actions.startswith(f"{tag}output:{UPLINK_PORT},push_vlan:0x88a8")


# ----------------------------------------------------------------------------------------------- the port of an uplink


@dataclass
class Switch:
    """An ovs-vswitchd and its database. ``busy``: how often the device is busy still."""

    side: Side
    alive: Life = Life.RUNS
    rows: dict[str, PortSpec] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    busy: int = 0

    # the instance
    def life(self) -> Life:
        return self.alive

    def pid(self) -> int | None:
        return None if self.alive is Life.DEAD else 1

    def lacks_database(self) -> bool:
        return False

    def database(self, *_: object, **__: object) -> Switch:
        return self

    # its devices
    @property
    def devices(self) -> Switch:
        return self

    def take(self) -> None:
        self.acts.append("take")

    def give_back(self) -> None:
        self.acts.append("give back")

    # its database
    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None: ...

    def interfaces(self) -> dict[str, Any]:
        return {name: type("Row", (), {"link_state": "up"}) for name in self.rows}

    def add_port(self, _bridge: str, spec: PortSpec) -> bool:
        self.acts.append("add")
        self.rows[spec.name] = spec
        return True

    def remove_port(self, _bridge: str, name: str) -> bool:
        self.acts.append("remove")
        return self.rows.pop(name, None) is not None

    def wait_ports(self, names: list[str], _timeout: float) -> None:
        if names and self.busy:
            self.busy -= 1
            raise SwitchError("port uplink: device is busy")


class Ports(UplinkExchange):
    """Reads the datapath from the fake."""

    def present(self, side: Side) -> bool:
        return UPLINK in self.instances[side].rows  # type: ignore[attr-defined]


@pytest.fixture
def switches() -> dict[Side, Switch]:
    return {side: Switch(side) for side in Side}


@pytest.fixture
def ports(config: Config, switches: dict[Side, Switch]) -> Ports:
    return Ports(one_nic(config), switches, lambda: INTENT)  # type: ignore[arg-type]


def test_a_device_that_is_busy_for_a_moment_is_tried_again(ports: Ports, switches: dict[Side, Switch]) -> None:
    switches[Side.B].busy = 1
    ports.open(Side.B)
    assert switches[Side.B].acts == ["take", "add", "remove", "add"]
    assert switches[Side.A].acts == ["give back"], "of one that died with it"
    assert ports.configured(Side.B)
    assert not ports.configured(Side.A)
    assert ports.link_up(Side.B)
    assert not ports.link_up(Side.A)


def test_a_device_that_stays_busy_leaves_nothing_behind(ports: Ports, switches: dict[Side, Switch]) -> None:
    switches[Side.B].busy = 1000
    with pytest.raises(SwitchError, match="device is busy"):
        ports.open(Side.B)
    assert switches[Side.B].rows == {}
    assert switches[Side.B].acts[-1] == "give back"


def test_what_a_dead_instance_had_is_only_taken_from_its_namespace(ports: Ports, switches: dict[Side, Switch]) -> None:
    switches[Side.A].alive = Life.DEAD
    ports.release(Side.A)
    assert switches[Side.A].acts == ["give back"]


@pytest.mark.parametrize(("life", "expected"), [(Life.DEAD, False), (Life.STOPPED, None)])
def test_a_dead_instance_has_no_uplink_and_a_stopped_one_does_not_say(
    config: Config, switches: dict[Side, Switch], life: Life, expected: bool | None
) -> None:
    switches[Side.A].alive = life
    real = UplinkExchange(one_nic(config), switches, lambda: INTENT)  # type: ignore[arg-type]
    ends = UplinkEnds(no_flows, no_path, real)
    if expected is None:
        with pytest.raises(SwitchError, match="is stopped"):
            ends.has_uplink(Side.A)
    else:
        assert ends.has_uplink(Side.A) is expected


# ------------------------------------------------------------------------------------------------------ in an upgrade


@pytest.fixture
def host(config: Config) -> FakeHost:
    return FakeHost(one_nic(config), World(["vm1"]))


class Steered:
    """A FakeUplink's ``steer`` with a gap, and with an instance that does not let the uplink go while it lives."""

    def __init__(self, host: FakeHost, holder: Side | None = None) -> None:
        self.host, self.holder = host, holder

    def steer(self, side: Side) -> float | None:
        world = self.host.world
        if self.holder is not None and world.lives(self.holder) and side is not self.holder:
            raise UplinkError(f"instance {self.holder} is stopped")
        had, world.uplink_owner = world.uplink_owner, side
        return None if had is side else 0.4

    def prove(self, side: Side, end: object, way: Way | None = None) -> Proof:
        return self.host.world.proofs.get(side, Proof(True, True))


@pytest.fixture
def run() -> StepContext:
    facts: dict[str, Any] = {}
    return StepContext(lambda: facts, facts.update, lambda _event: None)


def test_the_gaps_of_an_upgrade_are_in_its_report(host: FakeHost, run: StepContext) -> None:
    host.__dict__["uplink"] = Steered(host)
    context = Upgrade(host, Side.A, Side.B, "host")
    uplink_proof.steer(context, run, Side.B)
    uplink_proof.steer(context, run, Side.B)
    assert run.facts["uplink_gap_ms"] == 400.0
    uplink_proof.steer(context, run, Side.A)
    parameters: dict[str, Any] = {"old": "a", "new": "b", "release": "host", "previous": "host"}
    header = Header(kind="upgrade", parameters=parameters, before=(), after=(), started=1.0, boot_id="x")
    report = Report.of(header, False, run.facts)
    assert report.uplink_gap_ms == 800.0


@pytest.mark.parametrize(("old", "fails"), [(Proof(True, True), True), (Proof(), False)])
def test_what_the_old_instance_could_prove_the_new_one_must_prove_when_it_has_the_uplink(
    host: FakeHost, run: StepContext, old: Proof, fails: bool
) -> None:
    host.__dict__["uplink"] = Steered(host)
    host.world.proofs = {Side.A: old, Side.B: Proof(out=False)}
    context = Upgrade(host, Side.A, Side.B, "host")
    uplink_proof.prove_new(context, run)
    if not fails:
        uplink_proof.prove_taken(context, run)
        return
    with pytest.raises(SwitchError, match="it is mute"):
        uplink_proof.prove_taken(context, run)


def test_an_instance_that_hangs_with_the_uplink_is_ended_on_the_way_back(host: FakeHost, run: StepContext) -> None:
    host.__dict__["uplink"] = Steered(host, holder=Side.B)
    host.world.uplink_owner = Side.B
    SteerUplink().undo(Upgrade(host, Side.A, Side.B, "host"), run)
    assert host.world.done == ["kill b"]
    assert host.world.uplink_owner is Side.A


def test_a_fault_that_is_not_the_new_instances_is_raised(host: FakeHost, run: StepContext) -> None:
    host.world.die(Side.B)
    host.fake_uplink.failures = 1
    with pytest.raises(UplinkError, match="the card does not answer"):
        SteerUplink().undo(Upgrade(host, Side.A, Side.B, "host"), run)


# -------------------------------------------------------------------------------------------------------- the watchdog


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(one_nic(config))


def test_an_uplink_that_died_with_the_new_instance_is_opened_on_the_active_one(bed: Bed) -> None:
    bed.world.die(Side.B)
    bed.world.uplink_owner = None
    bed.look({Side.B})
    assert bed.world.uplink_owner is Side.A
    assert [event["event"] for event in bed.events()] == ["uplink-back"]


def test_an_uplink_that_no_instance_has_is_opened_on_the_active_instance(bed: Bed) -> None:
    bed.world.uplink_owner = None
    one = OneUplink(bed.board, threading.Lock())
    one.look(bed.host, Side.A)
    assert bed.world.uplink_owner is Side.A
    bed.world.uplink_owner = None
    one.look(bed.host, Side.A)
    assert bed.world.uplink_owner is None, "the instances are not asked all the time"
    bed.world.now += 5.0
    bed.world.uplink_owner = Side.B
    one.look(bed.host, Side.A)
    assert bed.world.uplink_owner is Side.B, "in an upgrade that waits to be resumed the other one has it"


def test_a_failover_ends_the_process_that_has_the_uplink_before_it_is_opened(bed: Bed) -> None:
    bed.world.stopped_pids = {1}
    bed.host.__dict__["uplink"] = Steered(bed.host, holder=Side.A)
    for _ in range(20):
        bed.look()
    assert bed.world.done[0] == "kill a"
    assert bed.world.uplink_owner is Side.B
    assert bed.host.recorded_active() is Side.B


def test_what_was_found_of_an_uplink_is_forgotten_when_the_other_instance_has_it(bed: Bed) -> None:
    """Otherwise a failover to the instance that lost it would be held back indefinitely."""
    wires = bed.keeper.wires
    for proof in (Proof(True, True), Proof(False, True)):
        bed.world.proofs[Side.A] = proof
        bed.world.now += 61
        for _ in range(4):
            wires.look(bed.host, Side.A)
    with pytest.raises(UplinkError):
        wires.require(Side.A)
    bed.world.now += 61
    for _ in range(4):
        wires.look(bed.host, Side.B)
    assert not wires.worse(Side.A)
    assert set((status_file.read_state(bed.config) or {})["uplinks"]) == {"b"}


def test_the_uplink_that_a_standby_does_not_have_is_not_proven(bed: Bed) -> None:
    for _ in range(4):
        bed.keeper.wires.look(bed.host, Side.A)
    assert set((status_file.read_state(bed.config) or {})["uplinks"]) == {"a"}
