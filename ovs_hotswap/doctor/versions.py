"""Versions of what runs and of what is installed, and whether newer files wait to be used."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping

from ovs_hotswap import __version__
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity
from ovs_hotswap.watchdog.status_file import lock_path

_HERE = Section.VERSIONS
PROGRAM = Kind(_HERE, "newer program", Severity.WARNING)
_SHOWN = ("openvswitch-switch-dpdk", "openvswitch-switch", "qemu-system-x86", "libvirt-daemon", "python3")


def packages(root: Root) -> dict[str, str]:
    """Return the versions of the installed packages that matter here (dpkg's status file)."""
    found: dict[str, str] = {}
    for block in (root.text("var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", block, re.MULTILINE))
        if fields.get("Package") in _SHOWN and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def read(host: Host) -> dict[str, int]:
    """Return the pids of our daemons that run files which were replaced since their start, by name. `status` says the
    same of the instances."""
    run_dir = host.config.run_dir
    pids = {"broker": host.system.read_pid(run_dir / "broker.pid"),
            "watchdog": host.system.read_pid(lock_path(host.config))}  # fmt: skip
    return {name: pid for name, pid in pids.items() if pid is not None and host.system.runs_deleted_files(pid)}


def installed(found: Mapping[str, str]) -> Iterator[Found]:
    for name, number in {"ovs-hotswap": __version__, "python": platform.python_version(), **found}.items():
        yield ok(_HERE, "installed", f"{name} {number}")


_AGAIN = {"broker": "`ovs-hotswap broker take-over`", "watchdog": "systemctl restart ovs-hotswap-watch"}


def judge(outdated: Mapping[str, int]) -> Iterator[Found]:
    for name, pid in outdated.items():
        yield PROGRAM(f"the {name} (process {pid}) runs files that were replaced since it was started", _AGAIN[name])
