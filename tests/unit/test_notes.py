"""The log of a VM is bounded, whatever it does again and again."""

from __future__ import annotations

import pytest

from ovs_hotswap.broker.vm_log import AGAIN_S, MOST, Notes


def test_what_happens_every_second_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    notes = Notes("vm1", lambda: now)
    for second in range(121):
        now = float(second)
        notes.say("switch a: process 7 refused")
        notes.say("QEMU hung up")
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert told == [
        "vm vm1: switch a: process 7 refused",
        *["vm vm1: switch a: process 7 refused (and 59 times since this was last logged)"] * 2,
    ]
    assert len(caplog.records) == 6


def test_what_is_new_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes("vm1", lambda: 0.0)
    for number in range(100):
        notes.say(str(number))
    assert len(caplog.records) == 100
    now = [0.0]
    notes = Notes("vm1", lambda: now[0])
    caplog.clear()
    notes.say("seldom")
    now[0] = AGAIN_S
    notes.say("seldom")
    assert [record.getMessage() for record in caplog.records] == ["vm vm1: seldom"] * 2


def test_who_always_finds_something_else_to_say_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    notes = Notes("vm1", lambda: now[0])
    for number in range(10 * MOST):
        notes.say(str(number))
    assert len(caplog.records) == MOST + 1
    caplog.clear()
    now[0] = AGAIN_S
    notes.say("later")
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"vm vm1: {9 * MOST} more lines were left out", "vm vm1: later"]
