"""Run in a booted machine: a stock host whose switch is the distribution's unit. It is taken over under QEMU guests,
with the broker, the instances and the watchdog in units of their own; the new instance crashes; and the host goes back.
What was seen is printed as JSON.

Usage: python -m tests.support.stock_systemd_drive TREE
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.system import System
from tests.support.stock_host import ALTERNATIVES, PROGRAM, UPLINK, StockHost, devargs
from tests.support.stock_space import Space
from tests.support.waiting import eventually

DIRECTORY = Path("/var/lib/vhost_sockets")
CONFIG = Path("/etc/ovs-hotswap/config.toml")
INSTANCE, BROKER, WATCH = "ovs-hotswap-instance@{}.service", "ovs-hotswap-broker.service", "ovs-hotswap-watch.service"
_OWN = ("run_dir", "state_dir")  # units serve the default ones only
_SERVED_S, _QUIET_S = 30.0, 1.0


class Here(Space):
    """The machine itself, in whose own namespaces a host is."""

    def __init__(self, system: System) -> None:
        self._system = system

    @property
    def pid(self) -> int:
        return os.getpid()

    def outside(self, path: str | Path) -> Path:
        return Path(path)

    def entering(self, argv: Sequence[str], netns: str | None = None) -> list[str]:
        return [*(["ip", "netns", "exec", netns] if netns else []), *argv]

    def close(self) -> None:
        """All of it ends with the machine."""


class UnitHost(StockHost):
    """A stock host whose daemons the distribution's units start."""

    def _make_space(self) -> Space:
        return Here(self._system)

    def _install(self) -> None:
        place = Path(ALTERNATIVES, "ovs-vswitchd")  # `update-alternatives --set ovs-vswitchd PROGRAM`
        place.unlink()
        place.symlink_to(PROGRAM)

    def start_database(self) -> None:
        self.run(["systemctl", "start", "ovsdb-server"])

    def start_switch(self) -> None:
        self.run(["systemctl", "start", "openvswitch-switch"])
        assert self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized") == "true"


def ask(*words: str) -> Any:
    """The JSON document of a command that must succeed."""
    done = subprocess.run(["ovs-hotswap", "--json", *words], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: exit {done.returncode}: {done.stderr}{done.stdout}")
    return json.loads(done.stdout)


def active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


def counted(host: StockHost, since: Mark) -> dict[str, int]:
    found = host.pings.between(since, host.pings.mark())
    return {"sent": sum(each.sent for each in found), "lost": sum(each.lost for each in found)}


def served(host: StockHost) -> None:
    host.pings.wait_flowing(_SERVED_S)
    mark = host.pings.mark()
    time.sleep(_QUIET_S)
    seen = counted(host, mark)
    assert seen["lost"] == 0, seen


def main(tree: str) -> dict[str, Any]:
    DIRECTORY.mkdir()
    tempfile.tempdir = str(DIRECTORY)  # the units have a /tmp of their own
    with UnitHost(System()) as host:
        lines = host.config_text(more="[upgrade]\nsoak_s = 1\n").splitlines(keepends=True)
        CONFIG.write_text("".join(line for line in lines if not line.startswith(_OWN)))
        for side in "ab":
            assert devargs(side) in CONFIG.read_text(), UPLINK
        ask("release", "add", "tree", "--from-directory", tree)
        subprocess.run(["systemctl", "start", BROKER, WATCH], check=True)
        found: dict[str, Any] = {"check": [each for each in ask("check")["findings"] if each["severity"] == "error"]}
        mark, stock = host.pings.mark(), host.switch_pid
        found["there"] = {"committed": ask("upgrade", "--release", "tree")["committed"], **counted(host, mark)}
        served(host)
        assert stock is not None
        found["stock ended"] = not System().alive(stock)
        found["active"] = [name for name in (BROKER, WATCH, *map(INSTANCE.format, "ab")) if active(name)]
        host.ofctl("add-flow", "br-int", "cookie=0x51,priority=7,ip,nw_dst=192.0.2.9,actions=drop")
        flows = Path("/run/ovs-hotswap/flows-b.json")
        eventually(lambda: flows.exists() and "192.0.2.9" in flows.read_text(), "the flows are kept")
        before, crashed, mark = host.flows(), host.switch_pid, host.pings.mark()
        assert crashed is not None
        os.kill(crashed, signal.SIGKILL)
        eventually(lambda: host.switch_pid not in (None, crashed), "the watchdog starts it again", _SERVED_S)
        served(host)
        found["crash"] = {"flows": host.flows() == before, **counted(host, mark)}
        found["events"] = [each["event"] for each in ask("watch", "status")["events"]]
        mark = host.pings.mark()
        found["back"] = {"committed": ask("upgrade", "--release", "host")["committed"], **counted(host, mark)}
        served(host)
        found["active at the end"] = [name for name in (BROKER, WATCH, *map(INSTANCE.format, "ab")) if active(name)]
        found["stock units"] = [name for name in ("ovs-vswitchd", "ovsdb-server") if active(name)]
        return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
