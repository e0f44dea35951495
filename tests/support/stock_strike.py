"""Upgrades of a stock host that strike a process of it at a step, and what has to hold afterwards.

Run as a program on the host, this file is such an upgrade: ``stock_strike.py CONFIG STEP VICTIM SIGNAL COMMAND``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovs_hotswap.config_file import load_config
from ovs_hotswap.controllers import ovn
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

if TYPE_CHECKING:
    from ovs_hotswap.lab.pings import Mark
    from tests.support.stock_drive import Operator
    from tests.support.stock_host import StockHost

RELEASE = "tree"
MOST = 30  # pings that a busy machine may lose; 100 a second are sent by each guest to each other
PINGS_S = 0.5
_SPARE_S = 180.0
# ``self``: the orchestrator. ``keepers``: the broker and the process that keeps its connections and starts it again.
Victim = Literal["self", "old", "new", "broker", "keepers", "old database", "new database", "controller"]


def struck(
    host: StockHost,
    operator: Operator,
    step: str,
    victim: Victim,
    blow: signal.Signals = signal.SIGKILL,
    then: Sequence[str] = (),
) -> int:
    """The status of an upgrade that strikes ``victim`` when it starts ``step``: -9 if that is the orchestrator.
    ``STEP+``: at the first progress of the step, such as the first VM that is taken over. ``then``: a command that
    follows at once, and starts the victim again."""
    argv = [sys.executable, "-P", __file__, str(operator.config), step, victim, str(int(blow)), json.dumps(list(then))]
    done = host.completed(argv, timeout=_SPARE_S)
    print(done.stdout, done.stderr)
    return done.status


def served(host: StockHost, patience_s: float = 10.0) -> None:
    """Every ping of each guest is answered, after ``patience_s`` at the latest."""
    host.pings.wait_flowing(patience_s)
    before = host.pings.mark()
    time.sleep(PINGS_S)
    for each in host.pings.between(before, host.pings.mark()):
        assert each.sent > 0, each
        assert each.lost == 0, each


def lost(host: StockHost, since: Mark) -> int:
    """How many pings of all guests were lost."""
    found = host.pings.between(since, host.pings.mark())
    print(found)
    return sum(each.lost for each in found)


def _pids(upgrader: Upgrader, old: Side, victim: str) -> list[int | None]:
    """The processes to be struck, in order."""
    host, system = upgrader.host, System()
    run_dir, sides = host.config.run_dir, {"old": old, "new": old.other}

    def broker() -> int | None:
        return system.read_writer(run_dir / "broker.pid", "broker")

    found: dict[str, Callable[[], list[int | None]]] = {
        "self": lambda: [os.getpid()],
        "broker": lambda: [broker()],
        "keepers": lambda: [system.read_writer(run_dir / "supervisor.pid", "supervise"), broker()],
        "controller": lambda: [each.pid for each in ovn.find(system)],
    }
    for name, side in sides.items():
        found[name] = lambda side=side: [host.instances[side].pid()]  # type: ignore[misc]
        found[f"{name} database"] = lambda side=side: [host.instances[side].database_pid()]  # type: ignore[misc]
    return found[victim]()


def _main(config: str, step: str, victim: str, blow: str, then: str) -> int:
    upgrader = Upgrader(Host(load_config(Path(config)), System()))
    wanted = (step.rstrip("+"), EventKind.PROGRESS if step.endswith("+") else EventKind.STARTED)
    old: list[Side] = []
    struck: list[bool] = []

    def watch(event: Event) -> None:
        print(f"{time.time():.2f}", event, flush=True)
        if (side := upgrader.host.recorded_active()) is not None:
            old.append(side)
        if (event.step, event.kind) != wanted or struck:
            return
        struck.append(True)
        pids = _pids(upgrader, old[0], victim)
        print(f"strike {pids}", flush=True)
        for pid in pids:
            if pid is not None:
                os.kill(pid, int(blow))
        if command := json.loads(then):
            subprocess.run(command, check=True)

    try:
        upgrader.upgrade(RELEASE, watch, force=True)
    except HotswapError as error:
        print(type(error).__name__, error.message, "HINT:", error.hint)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
