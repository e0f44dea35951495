"""Finds the line of a log that says why ovs-vswitchd did not start. This module is pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """The line that says why, without time and number, and what repairs the cause."""

    text: str
    hint: str


_HUGE_PAGES = "give the machine more huge pages (`sysctl vm.nr_hugepages`) or the instance less memory_mb"

# Messages of DPDK's EAL (lib/eal/linux/eal_memory.c, eal_hugepage_info.c, eal_common_options.c) and of Open vSwitch
# (lib/dpdk-stub.c, lib/netdev-dpdk.c, lib/daemon-unix.c), the most telling first.
_KNOWN = (
    (r"Not enough memory available on socket \d+!.*", _HUGE_PAGES),
    (r"No free (?!1048576 )\d+ kB hugepages reported.*", _HUGE_PAGES),
    (r"Cannot get hugepage information.*", _HUGE_PAGES),
    (r"DPDK not supported in this copy of Open vSwitch.*", "the release needs the package openvswitch-switch-dpdk"),
    (r"Failed to create memory pool.*", "the release needs the package librte-mempool-ring"),
    (r"Invalid 'command line' arguments.*", "correct dpdk_extra of the instance"),
    (r"unrecognized option.*", "correct dpdk_extra of the instance"),
    (r".*Is another primary process running\?.*", "another DPDK process uses this file prefix"),
    (r"error while loading shared libraries.*", "the release is incomplete: remove it and add it again"),
    (r".*(?:No such file or directory|Exec format error|Permission denied|not found).*", "check the release"),
)
_PREFIX = re.compile(r"^\S+\|\d+\|(?P<module>[^|]+)\|(?P<level>[A-Z]+)\|(?P<text>.*)$")
_NOISE = {"daemon_unix"}  # "fork child died" only repeats that it failed
_LOOK_AT_LOG = "the log of ovs-vswitchd says more"


def telling_cause(log: str, output: str, otherwise: str) -> Cause:
    """Return the cause of a failed start, from the log's text and the output of the program.

    Known messages come first. Without a known message it is ``otherwise``, with the last line that was logged as EMER
    or ERR, or printed.
    """
    entries = [found for line in log.splitlines() if (found := _PREFIX.match(line)) and found["module"] not in _NOISE]
    serious = [found["text"] for found in entries if found["level"] in {"EMER", "ERR", "WARN"}]
    printed = [line.strip() for line in output.splitlines() if line.strip() and not _PREFIX.match(line)]
    for pattern, hint in _KNOWN:
        for text in (*serious, *printed):
            if found := re.search(pattern, text):
                return Cause(found[0], hint)
    errors = [found["text"] for found in entries if found["level"] in {"EMER", "ERR"}]
    last = (errors or printed)[-1:]
    return Cause(": ".join([otherwise, *last]), _LOOK_AT_LOG)


def fatal(log: str) -> bool:
    """Whether the log says that DPDK will never be ready, though the process still runs."""
    return "|EMER|" in log or "DPDK not supported in this copy" in log
