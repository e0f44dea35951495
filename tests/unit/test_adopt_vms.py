"""The order in which an upgrade takes VMs over, when some end, boot or change in the meantime."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import pytest

from ovs_hotswap.adopt.log_settings import LogSettings
from ovs_hotswap.errors import NotServed, StateUnknown, SwitchError, TryAgain
from ovs_hotswap.model import Life, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade import adopt_vms as module
from ovs_hotswap.upgrade.situation import Upgrade

READY_S = 5.0


class Bed:
    """A host on which ``direct`` VMs have no broker. ``fails``: what the next attempts at a VM raise. ``unprepared``:
    what its preparation raises. ``unpolled``: VMs of which the instance does not poll what was prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *direct: str) -> None:
        self.direct = list(direct)
        self.fails: dict[str, list[Exception]] = {}
        self.unprepared: dict[str, Exception] = {}
        self.unpolled: list[str] = []
        self.acts: list[str] = []
        self.taken: list[str] = []
        self.said: list[str] = []
        self.facts: dict[str, object] = {}
        self.life = Life.RUNS  # of the new instance
        self.lives_until: dict[str, Life] = {}  # what becomes of it when a VM is taken over
        self.log: list[str] = []
        self.now = 0.0
        monkeypatch.setattr(module, "unadopted", lambda host: [SimpleNamespace(name=name) for name in self.direct])
        monkeypatch.setattr(module, "log_everything", self._log_everything)
        monkeypatch.setattr(module, "log_as_before", lambda *_: self.log.append("as before"))
        monkeypatch.setattr(module, "prepare", self._prepare)
        monkeypatch.setattr(module, "cancel", lambda _client, name: self.acts.append(f"cancel {name}"))
        monkeypatch.setattr(module, "_await_received", self._await_received)
        monkeypatch.setattr(module, "adopt", self._adopt)
        monkeypatch.setattr(module, "deliver", lambda *_: None)

    def _prepare(self, client: object, name: str, *_: object) -> object:
        if name in self.unprepared:
            raise self.unprepared[name]
        self.acts.append(f"prepare {name}")
        return f"snapshot of {name}"

    def _await_received(self, host: object, side: Side, names: Iterable[str]) -> list[str]:
        self.acts.append("wait")
        return [name for name in names if name in self.unpolled]

    def _adopt(self, client: object, name: str, *_: object, prepared: object, **__: object) -> object:
        self.life = self.lives_until.pop(name, self.life)
        if self.fails.get(name):
            raise self.fails[name].pop(0)
        self.acts.append(f"adopt {name}" if prepared == f"snapshot of {name}" else f"adopt {name} again")
        self.taken.append(name)
        self.direct.remove(name)
        return SimpleNamespace(stopped_s=0.01)

    def _facts_of(self, name: str) -> dict[str, object]:
        return cast("dict[str, object]", self.facts.get(name, {}))

    def _log_everything(self, *_: object) -> LogSettings:
        self.log.append("all")
        return LogSettings("info")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, *left_out: str) -> None:
        system = SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep)
        new = SimpleNamespace(side=Side.B, life=lambda: self.life)
        host = SimpleNamespace(
            instances={Side.A: SimpleNamespace(paths=None), Side.B: new}, system=system, broker=None,
            port_of=lambda name: None, config=SimpleNamespace(upgrade=SimpleNamespace(ready_s=READY_S)),
        )  # fmt: skip
        context = SimpleNamespace(
            host=host, old=Side.A, new=Side.B, leave_out=left_out, without=lambda names: "leave out"
        )
        run = SimpleNamespace(
            remember=self.facts.update,
            progress=lambda text, item, **_: self.said.append(item),
            remember_entries=lambda name, entries: self.facts.update({name: self._facts_of(name) | entries}),
        )
        module.adopt_vms(cast(Upgrade, context), cast(StepContext, run))


def test_each_is_taken_over_but_those_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2", "vm3")
    bed.run("vm2")
    assert bed.taken == bed.said == ["vm1", "vm3"]
    assert bed.log == ["all", "as before"]
    assert bed.facts == {"log_level": "info", "stopped_ms": {"vm1": 10.0, "vm3": 10.0}}


def test_all_are_prepared_before_the_first_one_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2")
    bed.run()
    order = ["prepare vm1", "prepare vm2", "wait", "adopt vm1", "adopt vm2"]
    assert bed.acts == [*order, "cancel vm2", "cancel vm1"]


def test_one_that_was_active_or_is_not_polled_is_prepared_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2", "vm3")
    bed.unprepared, bed.unpolled = {"vm1": TryAgain("QEMU was active")}, ["vm2"]
    bed.run()
    assert [act for act in bed.acts if act.startswith("adopt")] == ["adopt vm1 again", "adopt vm2 again", "adopt vm3"]


def test_one_that_cannot_be_prepared_is_a_reason_before_any_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2")
    bed.unprepared["vm2"] = StateUnknown("its ring is packed")
    with pytest.raises(SwitchError, match="VM vm2 cannot be taken over: its ring is packed"):
        bed.run()
    assert bed.acts == ["prepare vm1", "cancel vm1"]
    assert bed.log == ["all", "as before"]


def test_a_new_instance_that_has_died_is_noticed_before_the_broker_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the cut all VMs depend on it."""
    bed = Bed(monkeypatch, "vm1", "vm2", "vm3")
    bed.lives_until["vm1"] = Life.DEAD
    with pytest.raises(SwitchError, match="instance b"):
        bed.run()
    assert bed.taken == ["vm1"]
    with pytest.raises(SwitchError, match="instance b"):
        bed.run()
    assert [act for act in bed.acts if act.startswith("prepare")] == ["prepare vm1", "prepare vm2", "prepare vm3"]


def test_without_any_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch)
    bed.run()
    assert bed.log == []


def test_one_that_boots_is_taken_over_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2")
    bed.fails["vm1"] = [NotServed("it boots"), NotServed("it boots")]
    bed.run()
    assert bed.taken == ["vm2", "vm1"]


def test_one_that_comes_to_the_broker_by_itself_is_no_longer_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2", "vm3")
    bed.fails["vm2"] = [NotServed("it has ended")]
    bed._sleep = lambda seconds: bed.direct.remove("vm2")  # type: ignore[method-assign]
    monkeypatch.setattr(module, "deliver", lambda *_: bed.direct.remove("vm3") if "vm3" in bed.direct else None)
    bed.run()
    assert bed.taken == ["vm1"]


def test_one_that_is_not_served_for_long_is_a_reason_to_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2")
    bed.fails["vm1"] = [NotServed("its driver does not run")] * 100
    with pytest.raises(SwitchError, match="VM vm1 cannot be taken over: its driver does not run") as raised:
        bed.run()
    assert raised.value.hint == "leave out"
    assert bed.now >= READY_S
    assert bed.taken == ["vm2"]
    assert bed.log == ["all", "as before"]


def test_one_whose_state_cannot_be_proven_is_a_reason_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, "vm1", "vm2")
    bed.fails["vm1"] = [StateUnknown("its log is gone", hint="another way")]
    with pytest.raises(SwitchError, match="its log is gone") as raised:
        bed.run()
    assert raised.value.hint == "another way"
    assert bed.taken == []
    assert bed.now == 0.0
