"""Hosts for the playbooks of the collection where there is no hypervisor: files, a program that speaks as
`ovs-hotswap --json` does about them, and a program in place of ssh whose connection can be cut.

Run as a program, this module is the former. Its configuration file is the state of the host, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NEW: Json = {"active": "a", "release": "host", "last": None, "unfinished": None, "acts": [], "fault": None,
             "ready": True, "takes_s": 0.0, "group": None}  # fmt: skip
# The place of the host's name is among the options of ssh, and the command is the last word.
SSH = """#!/bin/sh
for word; do case $word in -V) exit 0;; cut=*) cut=${word#cut=};; esac; done
test -e "$cut" && { echo "ssh: no route to host" >&2; exit 255; }
exec /bin/sh -c "$word"
"""
CODES = {"precheck": ("PrecheckFailed", 4), "rolled back": ("RolledBack", 5)}


def read(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def write(path: Path, state: Json) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(state))
    beside.replace(path)


def report(state: Json, release: str) -> Json:
    other = {"a": "b", "b": "a"}[state["active"]]
    return {"old": state["active"], "new": other, "release": release, "previous": state["release"], "committed": True,
            "moves": {"vm1": 100.0}, "warnings": [], "changed": True}  # fmt: skip


def status(state: Json) -> Json:
    instances = [
        {"side": side, "state": "running", "release": {"name": state["release"]} if side == state["active"] else None}
        for side in "ab"
    ]
    return {"active": state["active"], "instances": instances, "last": state["last"], "unfinished": state["unfinished"],
            "unknown": [], "unknown_fields": [], "problems": []}  # fmt: skip


def watched(state: Json) -> Json:
    return {"mode": "automatic", "running": True, "ready": state["ready"], "health": "healthy", "reason": None,
            "keeping": "the standby cannot start", "problem": None, "unprotected": [], "gave_up": not state["ready"],
            "events": []}  # fmt: skip


def act(path: Path, state: Json, release: str) -> tuple[int, Json]:
    """Go to a release, as the state says that it ends."""
    made = report(state, release)
    begun = {"phase": "forward", "failure": None, "rebooted": False, "parameters": {"release": release}}
    write(path, {**state, "group": os.getpgrp(), "unfinished": begun})
    time.sleep(state["takes_s"])
    state = {**read(path), "unfinished": None}
    name = state["fault"]
    if name in CODES:
        kind, code = CODES[name]
        last = {**made, "committed": False, "moves": {}} if code == 5 else state["last"]
        write(path, {**state, "last": last})
        return code, {"error": {"class": kind, "message": f"{name} for a test", "hint": None, "exit_code": code}}
    write(path, {**state, "last": made, "active": made["new"], "release": release})
    return 0, {**made, "active": made["new"], "steps": []}


def answer(path: Path, words: list[str]) -> tuple[int, Json]:
    state = read(path)
    command = next(word for word in words if not word.startswith("-"))
    if command == "status":
        return 0, status(state)
    if command == "watch":
        return 0, watched(state)
    if command == "check":
        return 0, {"findings": [], "ready": True}
    release = words[words.index("--release") + 1] if command == "upgrade" else state["last"]["previous"]
    if "--dry-run" in words:
        return 0, {"findings": [], "ready": True, "changed": state["release"] != release, "steps": []}
    write(path, {**state, "acts": [*state["acts"], [command, release]]})
    if command == "upgrade" and state["release"] == release:
        made = {**report(state, release), "changed": False, "committed": False, "moves": {}}
        return 0, {**made, "active": state["active"], "steps": []}
    return act(path, read(path), release)


if __name__ == "__main__":
    place = sys.argv.index("--config")
    code, document = answer(Path(sys.argv[place + 1]), [w for w in sys.argv[place + 2 :] if w != "--json"])
    print(json.dumps(document))
    sys.exit(code)
