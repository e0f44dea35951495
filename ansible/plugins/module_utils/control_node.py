# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Which ``ansible-playbook`` runs a module on the control node, and whether another one is alive."""

from __future__ import annotations

import os
from typing import Any

PROGRAM = "ansible-playbook"
_BOOT = "/proc/sys/kernel/random/boot_id"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of proc(5) from the state on; the name before them may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _identity(pid: int) -> dict[str, Any]:
    """What no other process has, on any machine: two boots differ, and so do two processes of one id."""
    fields = _stat(pid)
    return {"boot": _read(_BOOT).strip(), "pid": pid, "start": int(fields[19])}


def process() -> dict[str, Any] | None:
    """The outermost ``ansible-playbook`` above this process; ``None`` if there is none, or no proc(5)."""
    found, pid = None, os.getpid()
    while pid > 1:
        fields = _stat(pid)
        if len(fields) < 20:
            break
        words = _read(f"/proc/{pid}/cmdline").split("\0")[:3]
        if PROGRAM in [os.path.basename(word) for word in words]:
            found = _identity(pid)
        pid = int(fields[1])
    return found


def lives(known: dict[str, Any] | None) -> bool:
    """Whether that process runs on this machine."""
    if not known or known["boot"] != _read(_BOOT).strip():
        return False
    fields = _stat(known["pid"])
    return len(fields) >= 20 and fields[0] not in "ZX" and _identity(known["pid"]) == known
