"""Finds the processes and mounts that belong to a lab, without relying on any record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ovs_hotswap.system import System

# The programs that a lab starts. Others may name its directory, too: an editor, a test runner, a shell with `lab down`.
PROGRAMS = ("qemu-system-", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool")
OWN_PROGRAM = "ovs-hotswap"
OWN_PACKAGE = "ovs_hotswap"


def names_directory(words: Iterable[str], directory: str) -> bool:
    """Whether a word contains the directory or a path below it; ``/run/lab2/x`` does not contain ``/run/lab``."""
    for word in words:
        start = word.find(directory)
        while start >= 0:
            end = start + len(directory)
            begins = start == 0 or not (word[start - 1].isalnum() or word[start - 1] in "/._-")
            if begins and (end == len(word) or not (word[end].isalnum() or word[end] in "._-")):
                return True
            start = word.find(directory, end)
    return False


def is_lab_program(cmdline: Sequence[str]) -> bool:
    """Whether a command line runs a program that a lab starts, or this program itself."""
    if not cmdline:
        return False
    if Path(cmdline[0]).name.startswith(PROGRAMS):
        return True
    runs = [Path(word).name for word in cmdline[:3]]
    begin = [word for word in cmdline[:4] if word != "-P"]  # what this program starts of itself has the option
    return OWN_PROGRAM in runs or any(word.partition(".")[0] == OWN_PACKAGE for word in begin[1:3])


def lab_processes(directory: Path, system: System) -> list[int]:
    """The pids of the lab's processes, which have ``directory`` in their command line or environment.

    This process and its ancestors are left out, because `ovs-hotswap lab down` names the directory, too.
    """
    spared = ancestors(os.getpid())
    return [
        pid
        for pid in system.pids()
        if pid not in spared
        and system.alive(pid)
        and is_lab_program(cmdline := system.cmdline(pid))
        and names_directory([*cmdline, *_environment(pid)], str(directory))
    ]


def ancestors(pid: int) -> set[int]:
    """The pids of a process and all its ancestors."""
    found = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
    return found


def mounts_below(directory: Path, mountinfo: str) -> list[str]:
    """The mount points below ``directory``, the innermost first (proc_pid_mountinfo(5))."""
    points = [line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()]
    return sorted((point for point in points if point.startswith(f"{directory}/")), key=len, reverse=True)


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
