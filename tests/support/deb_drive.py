"""Run in a booted machine by the interpreter of the package: the lab, and what its guests saw between two calls. The
guests ping all the time, and no process of the lab's is needed for that, so the package may be replaced in between.

Usage: python3.11 -m tests.support.deb_drive up | flowing | mark | seen MARK | down
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.system import System

DIRECTORY = Path("/var/lib/lab")
CONFIG = Path("/etc/ovs-hotswap/config.toml")
GUESTS = 2
_OWN = ("run_dir", "state_dir")  # units serve the default ones only
_FLOWING_S = 60.0


def up() -> None:
    """Bring the guests up, and configure the host for them."""
    lab = Lab(DIRECTORY, GUESTS, System())
    lab.up()
    lines = lab.config_path.read_text().splitlines(keepends=True)
    CONFIG.write_text("".join(line for line in lines if not line.startswith(_OWN)))


def main(verb: str, *arguments: str) -> object:
    if verb == "up":
        up()
    lab = Lab.existing(DIRECTORY, System())
    match verb:
        case "flowing":
            lab.pings.wait_flowing(_FLOWING_S)
        case "mark":
            return asdict(lab.pings.mark())
        case "seen":
            given = json.loads(arguments[0])
            seen = lab.pings.between(Mark(tuple(given["lengths"]), tuple(given["offsets"])), lab.pings.mark())
            return {"sent": sum(each.sent for each in seen), "lost": sum(each.lost for each in seen),
                    "gap_ms": max(each.longest_gap_ms or 0.0 for each in seen)}  # fmt: skip
        case "down":
            lab.down()
    return None


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))
