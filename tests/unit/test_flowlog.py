"""The flow log: its settings, its actions in the tables, the rows in the database, one exporter of two instances."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import changes as config_changes
from ovs_hotswap.config_changes import values
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.config_follower import ConfigFollower
from ovs_hotswap.errors import BusyError, ConfigError, SwitchError, UplinkError
from ovs_hotswap.flowlog import relay as relay_module
from ovs_hotswap.flowlog import state, view
from ovs_hotswap.flowlog.ipfix import Malformed, Message, build, fields, parse, template_messages, templates
from ovs_hotswap.flowlog.mediator import Mediator
from ovs_hotswap.flowlog.relay import Relay, listener
from ovs_hotswap.flowlog.state import Gap, RelayState, Source
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET, sampled
from ovs_hotswap.overlay.intent import FLOOD_BYTES, FLOOD_BYTES_PER_SAMPLE, FLOOD_BYTES_PER_VM, load_intent
from ovs_hotswap.overlay.ports import VXLAN_PORT
from ovs_hotswap.overlay.tables import Form, lines, render
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.flow_log import TARGET, changes, wanted
from ovs_hotswap.switch.openflow import window_incapable
from ovs_hotswap.system import System
from tests.support.ipfix_collector import Reader, collecting
from tests.support.waiting import eventually
from tests.unit.flow_simulator import Packet, Pipeline
from tests.unit.test_config import MINIMAL, faults, load
from tests.unit.test_tables import BROADCAST, MULTICAST, PAIR, UNKNOWN, Host, hosts

ON = FlowLogConfig(collectors=["192.0.2.20:4739"])
SECTION = "\n[flowlog]\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


# ----------------------------------------------------------------------------------------------------------- settings


def test_without_a_collector_it_is_off(path: Path) -> None:
    assert not load(path, MINIMAL).flowlog.on
    assert not load(path, f"{MINIMAL}{SECTION}sampling = 10").flowlog.on


def test_collectors_are_addresses_with_ports(path: Path) -> None:
    given = "collectors = ['192.0.2.20:4739', '[2001:db8::20]:2055']"
    assert load(path, MINIMAL + SECTION + given).flowlog.on


WRONG = ["192.0.2.20", "192.0.2.20:", "192.0.2.20:0", "192.0.2.20:65536", "collector.example.net:4739",
         "2001:db8::20:4739", "[192.0.2.20]:4739", "0.0.0.0:4739", "239.1.1.1:4739"]  # fmt: skip


@pytest.mark.parametrize("collector", WRONG)
def test_what_is_no_collector_is_refused_with_an_example(path: Path, collector: str) -> None:
    (fault,) = faults(path, f"{MINIMAL}{SECTION}collectors = ['{collector}']")
    assert fault.startswith("flowlog.collectors[0]: must be the IP address of a host with a UDP port, such as 192.0.2")


@pytest.mark.parametrize(
    ("line", "text"),
    [("collectors = ['192.0.2.20:1', '192.0.2.20:1']", "192.0.2.20:1 is given more than once"),
     ("sampling = 0", "greater than or equal to 1"), ("sampling = 10001", "less than or equal to 10000"),
     ("observation_domain = 0", "greater than or equal to 1"), ("export_s = 0", "greater than or equal to 1"),
     ("cache_flows = 1", "greater than or equal to 16"), ("port = 1", "unknown key")],
)  # fmt: skip
def test_values_that_cannot_be(path: Path, line: str, text: str) -> None:
    (fault,) = faults(path, MINIMAL + SECTION + line)
    assert fault.startswith("flowlog.")
    assert text in fault


def test_a_host_that_others_program_exports_what_these_say(path: Path) -> None:
    text = MINIMAL.replace("uplink_devargs", "# uplink_devargs") + "[flowlog]\ncollectors = ['192.0.2.20:4739']"
    (fault,) = faults(path, f'program = "clone"\n{text}')
    assert "flowlog.collectors" in fault


@given(st.integers(1, 10_000))
def test_each_packet_counts_for_as_many_as_were_passed_over(sampling: int) -> None:
    probability = FlowLogConfig(sampling=sampling).probability
    assert 1 <= probability <= 0xFFFF
    seen_as = 0xFFFF // probability  # ofproto/ofproto-dpif-ipfix.c, dpif_ipfix_flow_sample
    assert abs(seen_as * probability / 0xFFFF - 1) < probability / 0xFFFF + 1e-9


def test_the_domain_is_that_of_the_host() -> None:
    assert ON.domain("172.31.0.1") == 0xAC1F0001
    assert ON.domain("fd00:1f::7:1") == 0x00070001
    assert ON.model_copy(update={"observation_domain": 7}).domain("172.31.0.1") == 7


def test_a_change_of_the_flow_log_is_followed_and_is_no_difference(path: Path) -> None:
    before = load(path, MINIMAL)
    follower = ConfigFollower(before, path)
    assert follower.config == before
    after = load(path, f"{MINIMAL}{SECTION}collectors = ['192.0.2.20:4739']".replace("[1]", "[3]"))
    assert follower.config.flowlog == after.flowlog
    assert follower.config.instance(Side.B) == before.instance(Side.B), "the rest needs a new start"
    path.write_text("nonsense")
    assert follower.config.flowlog == after.flowlog
    path.unlink()
    assert follower.config.flowlog == after.flowlog
    assert [each.key for each in config_changes(values(before), values(after))] == ["instances.b.pmd_cores"]
    assert ConfigFollower(before, None).config is before


# ------------------------------------------------------------------------------------------------------ the flow tables


def test_without_a_flow_log_the_tables_are_as_they_were() -> None:
    tables = render(PAIR, Form.WINDOW)
    assert sampled(tables, PAIR, FlowLogConfig()) == tables


@pytest.mark.parametrize("form", Form)
def test_only_the_flows_of_logged_vms_have_actions(form: Form) -> None:
    tables = render(PAIR, form)
    log = ON.model_copy(update={"vms": ["vm11"], "sampling": 100, "observation_domain": 7})
    found = sampled(tables, PAIR, log)
    changed = [(old, new) for one, other in zip(tables, found, strict=True)
               for old, new in zip(one.flows, other.flows, strict=True) if old != new]  # fmt: skip
    assert [(new.match, new.actions) for _, new in changed] == [
        (old.match, f"sample(probability=655,collector_set_id={COLLECTOR_SET},obs_domain_id=7,obs_point_id=11,"
         f"sampling_port=11,{direction}),{old.actions}")
        for (old, _), direction in zip(changed, ("ingress", "egress"), strict=True)
    ]  # fmt: skip
    assert [old.match for old, _ in changed] == ["in_port=11,dl_src=52:54:00:00:00:02", "reg0=11"]


@pytest.mark.parametrize("form", Form)
def test_they_may_run_on_both_instances_and_those_of_others_may_not(form: Form) -> None:
    found = lines(sampled(render(PAIR, form), PAIR, ON))
    assert window_incapable(found) == []
    assert window_incapable([line.replace(f"collector_set_id={COLLECTOR_SET},", "collector_set_id=1,")
                             for line in found if "sample(" in line][:1]) != []  # fmt: skip


class LoggedHost(Host):
    def __init__(self, host: Host, intent: Any, form: Form) -> None:
        super().__init__(intent, form, host.owner)
        self.sides = {side: Pipeline(lines(sampled(render(intent, form), intent, ON))) for side in self.uplinks}

    def logged(self) -> Counter[tuple[int, int]]:
        """How often packets of each observation point and direction were looked at, on either instance."""
        seen = [each for pipeline in self.sides.values() for each in pipeline.samples]
        return Counter((int(sample["obs_point_id"]), "egress" in sample) for sample, _ in seen)


@settings(max_examples=150, deadline=None)
@given(hosts(), st.data())
def test_each_packet_is_logged_once_where_it_enters_and_once_for_each_vm_that_is_given_it(
    host: tuple[Any, Host], data: st.DataObject
) -> None:
    """Whichever instance owns a VM's rings, and by whichever uplink a packet comes."""
    intent, pair = host
    logged = LoggedHost(pair, intent, Form.WINDOW if len(pair.uplinks) > 1 else Form.FINAL)
    vm = data.draw(st.sampled_from(intent.vms))
    to = data.draw(st.sampled_from([*(each.mac for each in intent.vms), BROADCAST, MULTICAST, UNKNOWN]))
    if data.draw(st.booleans(), "from the VM"):
        got = logged.receive(logged.owner[vm.name], vm.ofport, Packet(vm.mac, to))
        wanted = Counter({(vm.ofport, False): 1})
    else:
        side = data.draw(st.sampled_from(logged.uplinks))
        got = logged.receive(side, VXLAN_PORT, Packet(UNKNOWN, to, tun_id=vm.vni))
        wanted = Counter()
    ports = {each.name: each.ofport for each in intent.vms}
    wanted += Counter({(ports[each.to], True): count for each, count in got.items() if each.to in ports})
    assert logged.logged() == wanted


def test_what_is_logged_has_no_tag_of_ours() -> None:
    host = LoggedHost(Host(PAIR, Form.WINDOW, dict.fromkeys(("vm10", "vm11"), Side.B)), PAIR, Form.WINDOW)
    frame = Packet("52:54:00:00:00:01", BROADCAST, ((0x8100, 5),), payload=1)
    host.receive(Side.A, 10, frame)
    seen = [packet for pipeline in host.sides.values() for _, packet in pipeline.samples]
    assert [each.tags for each in seen] == [frame.tags] * 2


def test_a_broadcast_that_cannot_be_logged_for_all_is_refused(path: Path, tmp_path: Path) -> None:
    most = FLOOD_BYTES // (FLOOD_BYTES_PER_SAMPLE + FLOOD_BYTES_PER_VM)
    overlay = tmp_path / "overlay.toml"

    def intent(vms: int, section: str) -> None:
        rows = "".join(f'[[vm]]\nname = "v{n}"\nofport = {n}\nmac = "52:54:00:00:{n >> 8:02x}:{n & 255:02x}"\nvni = 1\n'
                       for n in range(10, 10 + vms))  # fmt: skip
        overlay.write_text(f'[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n{rows}')
        load_intent(overlay, load(path, MINIMAL.replace("/etc/overlay.toml", str(overlay)) + section))

    on = f"{SECTION}collectors = ['192.0.2.20:4739']\n"
    intent(most, on)
    intent(most + 1, SECTION)
    with pytest.raises(ConfigError, match=f"{most + 1} VMs in the flow log, .* {most - 1} at most"):
        intent(most + 1, on)
    intent(most + 1, on + "vms = ['v10']")


# ---------------------------------------------------------------------------------------------------- the database rows

BRIDGE = {"_uuid": ["uuid", "b"], "name": "br0"}
ROW = {"_uuid": ["uuid", "i"], **wanted(ON)}
SET = {"ipfix": ["uuid", "i"]}
OTHERS = {"_uuid": ["uuid", "x"], "targets": "192.0.2.9:1", "cache_active_timeout": ["set", []],
          "cache_max_flows": ["set", []], "other_config": ["map", []]}  # fmt: skip


def answers(
    sets: list[dict[str, Any]], rows: list[dict[str, Any]], bridges: list[dict[str, Any]]
) -> list[Mapping[str, Any]]:  # fmt: skip
    return [{"rows": sets}, {"rows": rows}, {"rows": bridges}]


def test_the_rows_are_made_once() -> None:
    made, row = changes(answers([], [OTHERS], [BRIDGE]), "br0", ON)
    assert (made["table"], made["row"]["targets"], made["row"]["cache_active_timeout"]) == ("IPFIX", TARGET, 10)
    assert (row["row"]["id"], row["row"]["bridge"]) == (COLLECTOR_SET, ["uuid", "b"])
    assert row["row"]["ipfix"] == ["named-uuid", made["uuid-name"]]
    assert owned.is_marked(dict(row["row"]["external_ids"][1]))
    assert changes(answers([SET], [OTHERS, ROW], [BRIDGE]), "br0", ON) == []


def test_a_change_is_made_in_the_row_that_is_there() -> None:
    later = ON.model_copy(update={"export_s": 60})
    (update,) = changes(answers([SET], [OTHERS, ROW], [BRIDGE]), "br0", later)
    assert (update["op"], update["where"]) == ("update", [["_uuid", "==", ["uuid", "i"]]])
    assert update["row"]["cache_active_timeout"] == 60


def test_collectors_vms_and_sampling_are_no_part_of_it() -> None:
    """A change of them must not disturb what is gathered."""
    other = FlowLogConfig(collectors=["192.0.2.21:1"], vms=["vm1"], sampling=7, observation_domain=9)
    assert wanted(other) == wanted(ON)


def test_without_a_flow_log_the_row_goes_and_that_of_others_stays() -> None:
    (removal,) = changes(answers([SET], [ROW], [BRIDGE]), "br0", FlowLogConfig())
    assert (removal["op"], removal["where"]) == ("delete", [["id", "==", COLLECTOR_SET]])
    assert changes(answers([], [OTHERS], []), "br0", FlowLogConfig()) == []


def test_a_row_that_lost_its_settings_is_made_again() -> None:
    found = changes(answers([{"ipfix": ["set", []]}], [OTHERS], [BRIDGE]), "br0", ON)
    assert [each["op"] for each in found] == ["delete", "insert", "insert"]


def test_without_the_bridge_there_is_no_row() -> None:
    with pytest.raises(SwitchError, match="there is no bridge br0"):
        changes(answers([], [], [BRIDGE | {"name": "br1"}]), "br0", ON)


# ----------------------------------------------------------------------------------------------------- one exporter

PACKETS, OCTETS, TOTAL, POINT, DIRECTION, NAME, DROPPED, PAD = 2, 1, 86, 138, 61, 82, 133, 210
ANY = 0xFFFF
OLD = ((POINT, 4, 0), (DIRECTION, 1, 0), (NAME, ANY, 0), (PACKETS, 8, 0), (TOTAL, 8, 0))
NEW = ((POINT, 4, 0), (DIRECTION, 1, 0), (NAME, ANY, 0), (893, 4, 6876), (OCTETS, 8, 0), (PACKETS, 8, 0))


def specifiers(shape: tuple[tuple[int, int, int], ...]) -> bytes:
    return b"".join(struct.pack(">HHI", element | 0x8000, length, enterprise) if enterprise else
                    struct.pack(">HH", element, length) for element, length, enterprise in shape)  # fmt: skip


class Exporter:
    """An instance, which numbers what it sends for itself."""

    def __init__(self, shape: tuple[tuple[int, int, int], ...], domain: int = 7) -> None:
        self.shape, self.domain, self.sequence = shape, domain, 1

    def templates(self) -> bytes:
        content = struct.pack(">HH", 256, len(self.shape)) + specifiers(self.shape)
        return build(Message(1000, self.sequence, self.domain, ((2, content),)))

    def record(self, point: int = 11, packets: int = 1) -> bytes:
        values = {POINT: point, DIRECTION: 1, PACKETS: packets, TOTAL: 9999}
        content = b""
        for element, length, _ in self.shape:
            content += b"\x03vm1" if length == ANY else values.get(element, 0).to_bytes(length)
        message = build(Message(1000, self.sequence, self.domain, ((256, content),)))
        self.sequence += 1
        return message

    def says_of_itself(self) -> list[bytes]:
        options = struct.pack(">HHHHHHH", 500, 2, 1, 144, 4, 167, 8)
        return [build(Message(1000, self.sequence, 0, ((3, options),))),
                build(Message(1000, self.sequence, 0, ((500, bytes(12)),)))]  # fmt: skip


def given_to(reader: Reader, messages: list[bytes]) -> None:
    for message in messages:
        reader.take("relay", message)


def test_two_instances_with_different_templates_of_one_id_are_one_exporter() -> None:
    mediator, reader = Mediator(), Reader()
    a, b = Exporter(OLD), Exporter(NEW)
    for side, message in [("a", a.templates()), ("b", b.templates())]:
        assert mediator.take(side, message) == [], "templates are sent when a record needs them"
    for number in range(20):
        side, exporter = [("a", a), ("b", b)][number % 2]
        given_to(reader, mediator.take(side, exporter.record(packets=number + 1)))
    assert (reader.out_of_order, reader.unknown, reader.redefined) == (0, 0, 0)
    assert reader.sums() == {(7, 11, 1): 210}
    assert [len(record) for _, record in reader.records[:2]] == [len(OLD), len(NEW)]
    assert {side: each.records for side, each in mediator.counts.items()} == {"a": 10, "b": 10}


ANSWERS = Path(__file__).parent / "answers" / "flowlog"


@pytest.mark.parametrize("version", ["3.1", "3.5"])
def test_what_open_vswitch_really_sends(version: str) -> None:
    """Captured in a lab: templates, what the process says of itself, and records of both directions. Half of the
    packets were forwarded and counted as dropped."""
    messages = [bytes.fromhex(line) for line in (ANSWERS / f"ipfix-{version}.txt").read_text().split()]
    raw, told, mediator = Reader(), Reader(), Mediator()
    for message in messages:
        raw.take("switch", message)
        given_to(told, mediator.take("a", message))
    own = [record for domain, record in raw.records if domain]
    assert len(own) == len(told.records) == 12
    for before, (_, after) in zip(own, told.records, strict=True):
        left_out = before.keys() - after.keys()
        assert left_out == {*range(132, 136), 174, 175, 199, 85, 86, *range(353, 359)}
        assert {element: after[element] for element in before.keys() - left_out} == {
            element: value for element, value in before.items() if element not in left_out}  # fmt: skip
    assert any(int.from_bytes(record[DROPPED]) for record in own)
    assert (told.out_of_order, told.unknown, told.redefined, mediator.counts["a"].unknown) == (0, 0, 0, 0)


def test_totals_of_a_process_become_padding() -> None:
    shape = (*OLD, (DROPPED, 8, 0), (85, 8, 0), (353, 8, 0), (TOTAL, 8, 6876))
    mediator, reader, exporter = Mediator(), Reader(), Exporter(shape)
    mediator.take("a", exporter.templates())
    given_to(reader, mediator.take("a", exporter.record()))
    ((_, record),) = reader.records
    assert record.keys() == {POINT, DIRECTION, NAME, PACKETS, PAD, 6876 << 16 | TOTAL | 0x8000}


def test_templates_are_repeated_with_the_sequence_as_it_is() -> None:
    mediator, late, exporter = Mediator(), Reader(), Exporter(OLD)
    mediator.take("a", exporter.templates())
    for _ in range(3):
        mediator.take("a", exporter.record())
    given_to(late, list(mediator.refresh(1001)))
    given_to(late, mediator.take("a", exporter.record()))
    assert (late.unknown, late.out_of_order, len(late.records)) == (0, 0, 1)


def test_many_templates_are_several_messages_that_fit_into_packets() -> None:
    defined = [(256 + n, specifiers(OLD * 12)) for n in range(20)]
    messages = list(template_messages(defined, time=1, sequence=2, domain=3))
    assert len(messages) > 1
    assert max(map(len, messages)) <= 1400
    found = [each for message in messages for _, content in parse(message).sets for each in templates(content)]
    assert found == defined


def test_what_an_instance_says_of_itself_is_not_sent() -> None:
    mediator, exporter = Mediator(), Exporter(OLD)
    assert [mediator.take("a", each) for each in exporter.says_of_itself()] == [[], []]
    assert mediator.counts["a"].unknown == 0


def test_a_record_without_its_template_is_counted() -> None:
    mediator, exporter = Mediator(), Exporter(OLD)
    assert mediator.take("a", exporter.record()) == []
    assert mediator.counts["a"].unknown == 1
    mediator.take("b", exporter.templates())
    assert mediator.take("a", exporter.record()) == [], "another instance's template is none of its own"


def test_templates_that_an_earlier_relay_knew_are_enough() -> None:
    first, exporter, reader = Mediator(), Exporter(OLD), Reader()
    first.take("a", exporter.templates())
    assert first.learned
    second = Mediator(first.templates)
    given_to(reader, second.take("a", exporter.record(packets=5)))
    assert reader.sums() == {(7, 11, 1): 5}
    second.take("a", exporter.templates())
    assert not second.learned, "the same again is nothing new"


def test_an_instance_that_was_started_again_with_other_software_is_read_by_its_own_templates() -> None:
    mediator, reader = Mediator(), Reader()
    for shape in (OLD, NEW, OLD):
        exporter = Exporter(shape)
        mediator.take("a", exporter.templates())
        given_to(reader, mediator.take("a", exporter.record(packets=4)))
    assert reader.sums() == {(7, 11, 1): 12}
    assert (reader.redefined, reader.out_of_order) == (0, 0)


def test_sequence_numbers_are_of_32_bits() -> None:
    mediator, exporter = Mediator(), Exporter(OLD)
    mediator.take("a", exporter.templates())
    mediator._domains[7] = replace_sequence(mediator, 0xFFFF_FFFF)
    sequences = [parse(mediator.take("a", exporter.record())[-1]).sequence for _ in range(2)]
    assert sequences == [0xFFFF_FFFF, 0]


def replace_sequence(mediator: Mediator, sequence: int) -> Any:
    mediator.take("a", Exporter(OLD).record())
    return replace(mediator._domains[7], sequence=sequence)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_no_message_is_counted_and_nothing_else(data: st.DataObject) -> None:
    whole = Exporter(NEW).templates()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + data.draw(st.binary(min_size=1, max_size=1)) + whole[place + 1 :]
    cut = data.draw(st.binary(max_size=60) | st.sampled_from([whole[:place], changed]))
    mediator = Mediator()
    sent = mediator.take("a", cut)
    try:
        found = parse(cut)
        known = [each for number, content in found.sets if number == 2 for each in templates(content)]
    except Malformed:
        assert (sent, mediator.counts["a"].malformed) == ([], 1)
    else:
        assert mediator.counts["a"].malformed == 0
        assert dict(known).keys() == mediator.templates.get("a", {}).keys()


def test_fields_are_read_as_they_are_written() -> None:
    assert tuple(fields(specifiers(NEW))) == NEW


# ------------------------------------------------------------------------------------------------------------ the relay


class Bed:
    """A relay whose instances are sockets of this process. ``namespaces``: those that are there, each with an
    identity."""

    def __init__(self, config: Config, path: Path) -> None:
        self.config, self.path = config, path
        self.namespaces: dict[str, tuple[int, int]] = {}
        self.ports: dict[str, int] = {}
        self.refuse = False
        self.renewed: list[Side] = []
        self.busy = False
        self.relay = self.make()

    def make(self) -> Relay:
        return Relay(self.config, System(), self.path, listen=self._listen, find=self.namespaces.get)

    def _listen(self, namespace: str) -> socket.socket:
        if self.refuse:
            raise UplinkError("Address already in use")
        made = listener("127.0.0.1", 0)
        self.ports[namespace] = made.getsockname()[1]
        return made

    def up(self, side: Side, number: int = 1) -> None:
        self.namespaces[self.config.namespace(side)] = (0, number)
        self.relay.look()

    def send(self, side: Side, *messages: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for message in messages:
                out.sendto(message, ("127.0.0.1", self.ports[self.config.namespace(side)]))

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.relay.turn(0.01)

    def seen(self) -> RelayState:
        self.relay._say()
        found = state.read(self.config)
        assert found is not None
        return found


@pytest.fixture
def make_bed(tmp_path: Path) -> Iterator[Callable[[list[str]], Bed]]:
    beds: list[Bed] = []

    def make(collectors: list[str]) -> Bed:
        path = tmp_path / "config.toml"
        config = load(path, MINIMAL + f"{SECTION}collectors = {collectors}")
        config = config.model_copy(update={"run_dir": tmp_path / "run"})
        config.run_dir.mkdir(exist_ok=True)
        beds.append(Bed(config, path))
        return beds[-1]

    yield make
    for bed in beds:
        bed.relay._close()


def test_records_of_both_instances_reach_every_collector(make_bed: Callable[[list[str]], Bed]) -> None:
    with collecting() as one, collecting() as other:
        bed = make_bed([one.address, other.address])
        old, new = Exporter(OLD), Exporter(NEW)
        for side, exporter in ((Side.A, old), (Side.B, new)):
            bed.up(side)
            bed.send(side, exporter.templates(), *(exporter.record(packets=2) for _ in range(5)))
        bed.turns()
        for each in (one, other):
            eventually(lambda each=each: sum(each.reader.sums().values()) == 20, "all records")  # type: ignore[misc]
            assert (each.reader.out_of_order, each.reader.unknown) == (0, 0)
        found = bed.seen()
        assert found.listening == ["a", "b"]
        assert {side: (each.records, each.lost) for side, each in found.sources.items()} == {"a": (5, 0), "b": (5, 0)}
        assert {name: each.sent > 10 for name, each in found.collectors.items()} == {
            one.address: True, other.address: True}  # fmt: skip
        assert found.gaps == []


def test_an_instance_that_is_started_again_is_heard_again(make_bed: Callable[[list[str]], Bed]) -> None:
    with collecting() as collector:
        bed = make_bed([collector.address])
        for number in range(3):
            bed.up(Side.A, number)
            exporter = Exporter(OLD)
            bed.send(Side.A, exporter.templates(), exporter.record())
            bed.turns()
            bed.namespaces.clear()
            bed.relay.look()
            assert bed.seen().listening == []
        eventually(lambda: len(collector.reader.records) == 3, "all records")
        assert bed.seen().sources["a"].records == 3


def test_what_comes_last_before_a_namespace_goes_is_sent_on(make_bed: Callable[[list[str]], Bed]) -> None:
    with collecting() as collector:
        bed = make_bed([collector.address])
        bed.up(Side.A)
        exporter = Exporter(OLD)
        bed.send(Side.A, exporter.templates(), *(exporter.record() for _ in range(100)))
        bed.namespaces.clear()
        bed.relay.look()
        eventually(lambda: len(collector.reader.records) == 100, "all records")


def test_a_socket_that_cannot_be_had_is_tried_again(make_bed: Callable[[list[str]], Bed], caplog: Any) -> None:
    bed = make_bed(["127.0.0.1:9"])
    bed.refuse = True
    bed.up(Side.A)
    bed.relay.look()
    assert bed.seen().listening == []
    assert caplog.text.count("instance a cannot be heard: Address already in use") == 1
    bed.refuse = False
    bed.relay.look()
    assert bed.seen().listening == ["a"]


def test_collectors_are_followed_and_a_new_one_is_given_the_templates(make_bed: Callable[[list[str]], Bed]) -> None:
    with collecting() as one, collecting() as other:
        bed = make_bed([one.address])
        bed.up(Side.A)
        exporter = Exporter(OLD)
        bed.send(Side.A, exporter.templates(), exporter.record())
        bed.turns()
        bed.path.write_text(MINIMAL + f"{SECTION}collectors = ['{other.address}']")
        bed.relay.look()
        bed.send(Side.A, exporter.record())
        bed.turns()
        eventually(lambda: len(other.reader.records) == 1, "the second record")
        assert (len(one.reader.records), other.reader.unknown) == (1, 0)
        bed.path.write_text(MINIMAL)
        bed.relay.look()
        assert (bed.seen().listening, bed.seen().collectors) == ([], {})


def test_a_collector_that_does_not_listen_is_said_once(make_bed: Callable[[list[str]], Bed], caplog: Any) -> None:
    with collecting() as gone:
        pass
    bed = make_bed([gone.address])
    bed.up(Side.A)
    exporter = Exporter(OLD)
    bed.send(Side.A, exporter.templates(), *(exporter.record() for _ in range(10)))
    bed.turns()
    found = bed.seen().collectors[gone.address]
    assert (found.refused > 0, found.fault) == (True, "Connection refused")
    assert caplog.text.count(f"collector {gone.address}: Connection refused") == 1
    assert bed.seen().sources["a"].records == 10, "the instance's records are taken all the same"


def test_what_overflows_a_socket_is_a_gap(make_bed: Callable[[list[str]], Bed]) -> None:
    bed = make_bed(["127.0.0.1:9"])
    bed.up(Side.A)
    ear = bed.relay._ears[0]
    assert ear.receives is not None
    ear.receives.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel's least
    bed.seen()
    exporter = Exporter(OLD)
    bed.send(Side.A, exporter.templates(), *(exporter.record() for _ in range(200)))
    bed.turns()
    found = bed.seen()
    assert found.sources["a"].overflowed > 0
    assert found.sources["a"].overflowed + found.sources["a"].records == 200
    assert [each.why for each in found.gaps] == ["records of instance a came faster than the relay takes them"]


def test_a_relay_that_follows_another_knows_templates_and_what_was_missed(
    make_bed: Callable[[list[str]], Bed]
) -> None:  # fmt: skip
    with collecting() as collector:
        bed = make_bed([collector.address])
        bed.up(Side.A)
        exporter = Exporter(OLD)
        bed.send(Side.A, exporter.templates(), exporter.record())
        bed.turns()
        before = bed.seen()
        bed.relay._close()
        bed.relay = bed.make()
        bed.relay._remember(before)
        bed.up(Side.A)
        bed.send(Side.A, exporter.record())
        bed.turns()
        eventually(lambda: len(collector.reader.records) == 2, "both records")
        (gap,) = bed.seen().gaps
        assert (gap.begin, gap.why) == (before.time, "the relay did not run")


class Asked:
    """A host whose flow log is renewed and looked after: ``done`` says how."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.done = fault, Counter[str]()

    def act(self, name: str) -> Callable[[Any, Side], None]:
        def acted(_host: Any, side: Side) -> None:
            self.done[f"{name} {side}"] += 1
            if self.fault is not None:
                raise self.fault

        return acted


@pytest.mark.parametrize("fault", [None, BusyError("an upgrade is under way"), SwitchError("no answer")])
def test_an_instance_whose_templates_are_not_known_is_made_to_send_them(
    make_bed: Callable[[list[str]], Bed], monkeypatch: pytest.MonkeyPatch, fault: Exception | None, caplog: Any
) -> None:
    from ovs_hotswap.host import flow_log

    asked = Asked(fault)
    for name in ("renew", "ensure"):
        monkeypatch.setattr(flow_log, name, asked.act(name))
    bed = make_bed(["127.0.0.1:9"])
    bed.up(Side.A)
    bed.turns()
    assert not asked.done
    bed.send(Side.A, Exporter(OLD).record())
    bed.turns(50)
    assert asked.done == {"renew a": 1}, "not again at once"
    assert ("no answer" in caplog.text) is isinstance(fault, SwitchError)
    assert [each.why for each in bed.seen().gaps] == ["records of instance a came before their templates"]


def test_an_instance_that_has_lost_its_settings_is_given_them_and_the_time_is_a_gap(
    make_bed: Callable[[list[str]], Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ovs_hotswap.host import flow_log

    lacks = [True, False, True]  # at first the log has only just been turned on
    monkeypatch.setattr(flow_log, "ensure", lambda _host, _side: lacks.pop(0))
    monkeypatch.setattr(relay_module, "_CHECK_S", 0.0)
    bed = make_bed(["127.0.0.1:9"])
    runs = SimpleNamespace(pid=lambda: 7)
    bed.relay._make_host = lambda _config, _system: cast("Any", SimpleNamespace(instances=dict.fromkeys(Side, runs)))
    bed.up(Side.A)
    assert (bed.seen().gaps, len(lacks)) == ([], 2)
    bed.relay.look()
    assert bed.seen().gaps == []
    bed.relay.look()
    assert [each.why for each in bed.seen().gaps] == ["instance a had lost its settings of the flow log"]


def test_only_one_process_is_the_relay(make_bed: Callable[[list[str]], Bed]) -> None:
    bed = make_bed([])
    with System().lock(state.lock_path(bed.config), "a relay"), pytest.raises(BusyError):
        bed.relay.run()


def test_it_runs_until_it_is_stopped(make_bed: Callable[[list[str]], Bed]) -> None:
    bed = make_bed(["127.0.0.1:9"])
    bed.relay.run(bed.relay.stop)
    found = state.read(bed.config)
    assert found is not None
    assert state.running(bed.config, System(), found), "its process, which is this one, runs"


# --------------------------------------------------------------------------------------------------- what is said of it


def test_state_and_templates_survive_damage(make_bed: Callable[[list[str]], Bed]) -> None:
    config = make_bed([]).config
    assert (state.read(config), state.read_templates(config)) == (None, {})
    state.write_templates(config, System(), {"a": {256: b"\x01\x02"}})
    assert state.read_templates(config) == {"a": {256: b"\x01\x02"}}
    for damaged in ('{"templates": {"a": {"256": "zz"}}}', "{", "[]"):
        state.templates_path(config).write_text(damaged)
        state.state_path(config).write_text(damaged)
        assert (state.read(config), state.read_templates(config)) == (None, {})


def test_gaps_that_follow_each_other_are_one_and_the_oldest_are_forgotten() -> None:
    found: list[Gap] = []
    for begin in (1.0, 2.0, 5.0):
        found = state.added(found, Gap(begin=begin, end=begin + 1, why="full"))
    assert [(each.begin, each.end) for each in found] == [(1.0, 3.0), (5.0, 6.0)]
    for number in range(2 * state.GAPS):
        found = state.added(found, Gap(begin=10.0 * number, end=10.0 * number + 1, why=str(number)))
    assert len(found) == state.GAPS
    assert found[-1].why == str(2 * state.GAPS - 1)


def relay_state(**changes: Any) -> RelayState:
    return RelayState(**{"pid": 9, "born": 1, "time": 1000.0, "listening": ["a", "b"],
                         "sources": {"a": Source(records=5)}, "gaps": [Gap(begin=1.0, end=2.0, why="full")],
                         "collectors": {ON.collectors[0]: {"sent": 5, "refused": 0, "fault": None}},
                         **changes})  # fmt: skip


EVENTS = [{"event": "standby", "side": "b"}, {"event": "failover", "from": "a", "to": "b", "detected": 500.0},
          {"event": "restart", "side": "b", "time": 700.0}, {"event": "failover"}]  # fmt: skip


def document(flow_log: FlowLogConfig = ON, found: RelayState | None = None, **changes: Any) -> dict[str, Any]:
    given = {"running": True, "events": EVENTS, "sides": ["a", "b"], **changes}
    return view.document(flow_log, PAIR, relay_state() if found is None else found, **given)


def test_what_is_shown_of_a_flow_log_that_works() -> None:
    found = document(ON.model_copy(update={"vms": ["vm11"]}))
    assert found["observation_domain"] == 0xAC1F0001
    assert found["vms"] == [{"vm": "vm10", "observation_point": 10, "logged": False},
                            {"vm": "vm11", "observation_point": 11, "logged": True}]  # fmt: skip
    assert found["collectors"][0]["sent"] == 5
    assert found["problems"] == []


def test_a_death_is_a_gap_as_long_as_counts_are_held() -> None:
    found = [(each["begin"], each["end"], each["why"]) for each in document()["gaps"]]
    assert found == [(1.0, 2.0, "full"), (490.0, 500.0, "instance a died with what it had not exported"),
                     (690.0, 700.0, "instance b died with what it had not exported")]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"running": False}, "the relay does not run"),
     ({"found": relay_state(listening=["b"])}, "does not hear instance a"),
     ({"found": relay_state(collectors={ON.collectors[0]: {"sent": 5, "refused": 9, "fault": "No route to host"}})},
      "No route to host"),
     ({"flow_log": ON.model_copy(update={"vms": ["vm10", "vm99"]})}, "not in the intent: vm99")],
)  # fmt: skip
def test_each_problem_is_said(changes: dict[str, Any], text: str) -> None:
    (problem,) = document(**changes)["problems"]
    assert text in problem["text"]
    assert problem["hint"]


def test_a_flow_log_that_is_off_has_no_problem() -> None:
    found = document(FlowLogConfig(), running=False)
    assert (found["on"], found["problems"], found["gaps"]) == (False, [], [])


def test_nothing_is_known_of_a_relay_that_does_not_run() -> None:
    found = view.document(ON, None, None, running=False, events=[], sides=[])
    assert found["relay"] == {"running": False, "pid": None, "listening": [], "sources": {}}
    assert (found["vms"], found["collectors"][0]["sent"]) == ([], None)


def test_losses_between_two_looks() -> None:
    before, now = {"a": Source(records=1)}, {"a": Source(records=9, unknown=1), "b": Source(malformed=2)}
    assert [each.why for each in state.losses(before, now, 1.0, 2.0)] == [
        "records of instance a came before their templates", "records of instance b cannot be read"]  # fmt: skip
    assert state.losses(now, now, 2.0, 3.0) == []
