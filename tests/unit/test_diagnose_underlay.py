"""What `diagnose` asks the uplink and the next hops behind it, and what it makes of no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.diagnose import underlay_look
from ovs_hotswap.diagnose.facts import Underlay
from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Way
from ovs_hotswap.overlay.intent import Neighbour
from ovs_hotswap.uplink.proof import End
from tests.unit.watch_bed import FakeHost, FakeUplink, World

FAR, MAC = "172.31.0.2", "52:54:00:1f:00:02"
OVERLAY = f"""
[vtep]
address = "172.31.0.1/24"
mac = "52:54:00:1f:00:01"
[[neighbour]]
address = "{FAR}"
mac = "{MAC}"
"""


class OneWay(FakeUplink):
    """An uplink that says of one way nothing about the other, as real ones do."""

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        found = super().prove(side, end, way)
        return Proof(out=found.out) if way is Way.OUT else Proof(into=found.into)


class Asking(FakeHost):
    """A host that can ask next hops. ``answers``: of those that answer, or why none can be asked."""

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.answers: Mapping[str, str] | Exception = {FAR: MAC}
        self.__dict__["uplink"] = self.fake_uplink = OneWay(world)

    @property
    def underlay(self) -> Any:
        return self

    def asker(self) -> Any:
        return self

    def ask(self, neighbours: Sequence[Neighbour], known: Mapping[str, str]) -> dict[str, str]:
        self.world.done.append(f"ask {' '.join(each.address for each in neighbours)}")
        if isinstance(self.answers, Exception):
            raise self.answers
        return {each.address: self.answers[each.address] for each in neighbours if each.address in self.answers}


@pytest.fixture
def host(tmp_path: Path) -> Asking:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    config = Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
        "uplink": {"driver": "tc", "device": "pf0", "representor_a": "rep-a", "representor_b": "rep-b"},
    })  # fmt: skip
    config.overlay.write_text(OVERLAY)
    world = World(["vm1"])
    world.uplink_owner = Side.A
    return Asking(config, world)


def look(host: Asking, *, probe: bool = True) -> Underlay:
    return underlay_look.look(lambda: host, Side.A, [FAR], probe)


def test_a_healthy_uplink_is_proven_both_ways_and_its_next_hop_answers(host: Asking) -> None:
    found = look(host)
    assert (found.steers, found.owner, found.proof) == (True, Side.A, Proof(True, True))
    assert (found.asked, found.answers, found.unproven) == ((FAR,), {FAR: MAC}, "")


def test_no_frame_is_sent_without_leave_and_none_to_an_instance_that_has_ended(host: Asking) -> None:
    assert look(host, probe=False).asked == ()
    host.world.pid[Side.A] = None
    assert look(host).asked == ()
    assert host.world.done == []


def test_an_uplink_that_sends_nothing_is_seen_though_the_kernel_is_answered(host: Asking) -> None:
    host.world.proofs[Side.A] = Proof(False, True)
    assert look(host).proof == Proof(False, True)


def test_where_the_kernel_is_not_answered_the_way_out_is_not_tried(host: Asking) -> None:
    """It would take seconds, and tell nothing."""
    host.answers, host.world.proofs[Side.A] = {}, Proof(False, True)
    found = look(host)
    assert found.proof == Proof(None, True)
    assert (found.asked, found.answers) == ((FAR,), {})


def test_rules_that_are_wrong_are_not_tried(host: Asking) -> None:
    wrong = [Finding("uplink", Severity.ERROR, "a stray filter", "`tc`")]
    host.fake_uplink.check = lambda: wrong  # type: ignore[method-assign]
    found = look(host)
    assert found.faults == (("a stray filter", "`tc`"),)
    assert found.proof is None
    assert found.answers == {FAR: MAC}, "next hops are asked from another place"


def test_what_could_not_be_sent_is_told_and_the_rest_is_known(host: Asking) -> None:
    host.answers = UplinkError("pf0 is down")
    found = look(host)
    assert (found.owner, found.asked, found.unproven) == (Side.A, (), "pf0 is down")
    assert found.proof == Proof(True, True), "the instance's own way was tried"
    host.answers = {FAR: MAC}
    host.world.no_database.add(Side.A)
    found = look(host)
    assert "ovsdb-server" in found.unproven
    assert (found.answers, found.proof) == ({FAR: MAC}, Proof())
