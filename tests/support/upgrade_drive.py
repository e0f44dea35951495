"""Run in a booted machine: brings a lab up whose broker, instances and watchdog are systemd's, upgrades it and goes
back, and prints as JSON what the guests saw.

Usage: python -m tests.support.upgrade_drive TREE
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ovs_hotswap.lab import Lab
from ovs_hotswap.system import System
from tests.support.waiting import eventually

DIRECTORY = Path("/var/lib/lab")
CONFIG = Path("/etc/ovs-hotswap/config.toml")
GUESTS = 2
_OWN = ("run_dir", "state_dir")  # units serve the default ones only
_READY_S = 60.0


def ask(*words: str) -> Any:
    """The JSON document of a command that must succeed."""
    done = subprocess.run(["ovs-hotswap", "--json", *words], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def protected(active: str) -> bool:
    status = ask("watch", "status")
    return bool(status["ready"] and status["active"] == active)


def main(tree: str) -> dict[str, Any]:
    lab = Lab(DIRECTORY, GUESTS, System())
    lab.up()
    lines = lab.config_path.read_text().splitlines(keepends=True)
    CONFIG.write_text("".join(line for line in lines if not line.startswith(_OWN)))
    ask("release", "add", "tree", "--from-directory", tree)
    subprocess.run(["systemctl", "start", "ovs-hotswap-broker.service"], check=True)
    ask("instance", "start", "a")
    lab.pings.wait_flowing(60.0)
    subprocess.run(["systemctl", "start", "ovs-hotswap-watch.service"], check=True)
    eventually(lambda: protected("a"), "a standby", _READY_S, poll_s=0.1)
    begun = lab.pings.mark()
    there = ask("upgrade", "--release", "tree")
    eventually(lambda: protected("b"), "a standby after the upgrade", _READY_S, poll_s=0.1)
    back = ask("rollback")
    eventually(lambda: protected("a"), "a standby after the way back", _READY_S, poll_s=0.1)
    seen = lab.pings.between(begun, lab.pings.mark())
    return {
        "committed": [there["committed"], back["committed"]],
        "moves": [there["moves"], back["moves"]],
        "sent": sum(each.sent for each in seen),
        "lost": sum(each.lost for each in seen),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
