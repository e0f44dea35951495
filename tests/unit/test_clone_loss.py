"""A new instance that hangs, and an upgrade of a host that others program which goes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ovs_hotswap.model import Life, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade import clone_loss
from ovs_hotswap.upgrade.situation import Upgrade


@pytest.mark.parametrize(
    ("old", "new", "silent", "ended"),
    [
        (Life.RUNS, Life.RUNS, False, False),
        (Life.RUNS, Life.RUNS, True, True),
        (Life.RUNS, Life.STOPPED, True, True),
        (Life.RUNS, Life.STOPPED, False, True),
        (Life.RUNS, Life.DEAD, True, False),
        (Life.STOPPED, Life.STOPPED, True, True),
        (Life.DEAD, Life.RUNS, True, False),
        (Life.DEAD, Life.STOPPED, True, False),
    ],
)
def test_one_that_hangs_is_ended_unless_it_is_the_last(
    old: Life, new: Life, silent: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = {Side.A: old, Side.B: new}
    killed: list[str] = []
    instance = SimpleNamespace(paths=SimpleNamespace(vswitchd_ctl=Path("ctl")), kill=lambda: killed.append("b"))
    host = SimpleNamespace(instances={Side.B: instance})
    dead: Callable[[Side], bool] = lambda side: lives[side] is Life.DEAD  # noqa: E731
    context = SimpleNamespace(host=host, old=Side.A, new=Side.B, life=lives.__getitem__, dead=dead)
    said: list[str] = []
    monkeypatch.setattr(clone_loss, "hangs", lambda _socket, _timeout: silent)
    clone_loss.give_up_hanging(cast(Upgrade, context), cast(StepContext, SimpleNamespace(progress=said.append)))
    assert killed == (["b"] if ended else [])
    assert said == (["instance b does not answer; it is ended"] if ended else [])
