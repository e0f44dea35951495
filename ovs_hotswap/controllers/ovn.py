"""ovn-controller: where it runs, and how it passes from one instance to the other without a restart.

The order: ``set_wait`` in both databases, ``pause``, the cut, ``Canary.plant`` on the new instance's bridge,
``repoint.repoint``, ``resume``, ``await_programmed``, and ``set_wait`` with what was there before. The way back is the
same with the instances exchanged. Connected again, ovn-controller replaces all flows and groups of the bridge in one
atomic bundle and never reads them (OVN, controller/ofctrl.c, ofctrl_put); row UUIDs that are the same in both databases
are no change to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.process_exit import PROC
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

PROGRAM = "ovn-controller"
WAIT = "ovn-ofctrl-wait-before-clear"
_LEAST_WAIT_MS, _MOST_WAIT_MS, _FLOWS_PER_MS = 2000, 60_000, 10
_REMOTE = re.compile(r"(unix|tcp|ssl):")
_DEFAULT = "unix:/var/run/openvswitch/db.sock"
_LISTENS = "00010000"  # __SO_ACCEPTCON (net/unix/af_unix.c, unix_seq_show)
_CANARY = 0x6F76736863616E01
_ASK_S = 5.0
_LINKS = 40  # as many as the kernel follows (path_resolution(7))
Control = Callable[..., str]


@dataclass(frozen=True, slots=True)
class OvnController:
    """A running ovn-controller. ``control``: its control socket; ``None`` if it has none that can be seen.
    ``database``: the remote of the switch's database, as its command line says, or OVN's default."""

    pid: int
    control: Path | None
    database: str


def database_of(arguments: Sequence[str]) -> str:
    """Return the database's remote in the arguments of an ovn-controller (ovn-controller(8), ``ovs-database``)."""
    return next((word for word in arguments[1:] if _REMOTE.match(word)), _DEFAULT)


def control_socket(unix: str, inodes: set[int]) -> str | None:
    """Return the path of the control socket among the sockets of a process: it listens, and its name ends in ``.ctl``
    in every version, with a pid or as ``--unixctl`` says.

    ``unix``: the text of /proc/net/unix. ``inodes``: those of the process's sockets.
    """
    for line in unix.splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[3] == _LISTENS and int(words[6]) in inodes and words[7].endswith(".ctl"):
            return words[7]
    return None


def find(system: System, proc: Path = PROC) -> tuple[OvnController, ...]:
    """Return every ovn-controller in the host's network. One in a container is reached by the path as the container
    has it."""
    found = []
    for pid in system.pids():
        arguments = system.cmdline(pid)
        if arguments and Path(arguments[0]).name == PROGRAM and _is_here(pid, proc):
            found.append(OvnController(pid, _control_of(pid, proc), database_of(arguments)))
    return tuple(found)


def findings(controllers: Sequence[OvnController], well_known: Path, external_ids: dict[str, str]) -> list[Finding]:
    """Return what ``check`` says of the controllers of a host.

    ``well_known``: the directory whose paths lead to the active instance. ``external_ids``: those of the database.
    """
    found = []

    def say(severity: Severity, text: str, hint: str | None = None) -> None:
        found.append(Finding("ovn", severity, text, hint=hint))

    for each in controllers:
        name = f"{PROGRAM} (pid {each.pid})"
        if each.control is None:
            say(Severity.ERROR, f"{name} has no control socket that can be seen, so it cannot be paused",
                "see `ovn-appctl -t ovn-controller version`")  # fmt: skip
        if each.database.startswith("unix:") and not _is_in(each.database[5:], well_known):
            say(Severity.ERROR, f"{name} reads {each.database}, which is not in {well_known}",
                f"start it with `unix:{well_known}/db.sock`")  # fmt: skip
        if not each.database.startswith("unix:"):
            say(Severity.OK, f"{name} reads {each.database}, which passes to the new instance with its managers")
    bridge = external_ids.get("ovn-bridge-remote", "")
    if bridge and not (bridge.startswith("unix:") and _is_in(bridge[5:], well_known)):
        say(Severity.ERROR, f"external_ids:ovn-bridge-remote is {bridge}, which does not lead to the new instance",
            "`ovs-vsctl remove Open_vSwitch . external_ids ovn-bridge-remote`")  # fmt: skip
    if controllers and needed_wait(external_ids.get(WAIT), 0) is not None:
        say(Severity.WARNING, f"external_ids:{WAIT} is {external_ids.get(WAIT, 'not set')}: "
            "it is set while ovn-controller passes to the new instance, and put back")  # fmt: skip
    return found


def needed_wait(present: str | None, flows: int) -> str | None:
    """Return the value of ``ovn-ofctrl-wait-before-clear`` to set for the time, in ms, or ``None`` if ``present`` is
    long enough. Without it OVN 22.06 to 25.03 clears the bridge before it has computed its ``flows``: a restart with
    280 flows lost 7 of 300 packets each second."""
    wanted = min(max(_LEAST_WAIT_MS, flows // _FLOWS_PER_MS), _MOST_WAIT_MS)
    if present is not None and present.isdecimal() and int(present) >= wanted:
        return None
    return str(wanted)


def wait_of(socket: Path) -> str | None:
    """Return ``ovn-ofctrl-wait-before-clear`` of a database; ``None`` if it is not set. Raises SwitchError."""
    select: dict[str, Any] = {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["external_ids"]}
    rows = transact(socket, [select], timeout=_ASK_S)[0]["rows"]
    return dict(rows[0]["external_ids"][1]).get(WAIT) if rows else None


def set_wait(socket: Path, value: str | None) -> None:
    """Set ``ovn-ofctrl-wait-before-clear`` of a database to exactly ``value``; ``None`` removes it. Raises
    SwitchError."""
    mutations: list[Any] = [["external_ids", "delete", ["set", [WAIT]]]]
    if value is not None:
        mutations.append(["external_ids", "insert", ["map", [[WAIT, value]]]])
    transact(socket, [{"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": mutations}], timeout=_ASK_S)


class Ovn:
    """The control of one ovn-controller. Every method raises SwitchError if it does not answer."""

    def __init__(self, controller: OvnController, *, control: Control = appctl) -> None:
        if controller.control is None:
            raise SwitchError(
                f"{PROGRAM} (pid {controller.pid}) has no control socket that can be seen",
                hint="see `ovn-appctl -t ovn-controller version`",
            )
        self._socket, self._control = controller.control, control

    def paused(self) -> bool:
        return self._control(self._socket, "debug/status").strip() == "paused"

    def pause(self) -> None:
        """Stop it from computing and programming, with its connections kept. Its undo is ``resume``."""
        self._control(self._socket, "debug/pause")

    def resume(self) -> None:
        self._control(self._socket, "debug/resume")

    def connected(self) -> bool:
        """Whether it is connected to the southbound database."""
        return self._control(self._socket, "connection-status").strip() == "connected"


class Canary:
    """A flow of ours in the last table of a bridge, which no packet meets. The first bundle of ovn-controller deletes
    it with all other flows, so that it is gone is the proof that this bundle is in."""

    def __init__(self, system: System, bridge_mgmt: Path) -> None:
        self._flows = OpenFlow(system, bridge_mgmt)

    def plant(self) -> None:
        """Raises SwitchError."""
        self._flows.bundle((f"flow add cookie={_CANARY:#x},table=253,priority=0,actions=drop",))

    def present(self) -> bool:
        """Raises SwitchError."""
        return self._flows.has(_CANARY)

    def remove(self) -> None:
        """Remove it if it is there. Raises SwitchError."""
        self._flows.bundle((f"flow delete cookie={_CANARY:#x}/-1",))


def await_programmed(ovn: Ovn, canary: Canary, timeout: float, system: System) -> None:
    """Wait until ovn-controller is connected to the southbound database and its first bundle is on the bridge with
    ``canary``. Raises SwitchError after ``timeout`` seconds; the flows that were there are there still."""
    if wait_until(lambda: not canary.present() and ovn.connected(), timeout, system):
        return
    cause = "has not programmed the bridge" if canary.present() else "is not connected to the southbound database"
    raise SwitchError(
        f"{PROGRAM} {cause} {timeout:g} s after it was led to this instance",
        hint="`ovn-appctl -t ovn-controller connection-status`, and its log",
    )


def _is_here(pid: int, proc: Path) -> bool:
    try:
        return os.path.samefile(proc / "self/ns/net", proc / str(pid) / "ns/net")
    except OSError:
        return False


def _control_of(pid: int, proc: Path) -> Path | None:
    inodes = set()
    try:
        for name in os.listdir(proc / str(pid) / "fd"):
            target = os.readlink(proc / str(pid) / "fd" / name)
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
        path = control_socket((proc / str(pid) / "net/unix").read_text(), inodes)
    except OSError:
        return None
    if path is None:
        return None
    seen = _within(proc / str(pid) / "root", path)
    return seen if seen.exists() else Path(path)


def _within(root: Path, path: str) -> Path:
    """Return where a path of a process with the root directory ``root`` leads. A symbolic link in it, such as
    ``/var/run``, leads from that root, and not from this process's."""
    found, left, links = root, list(Path(path).parts[1:]), _LINKS
    while left:
        step = found / left.pop(0)
        if step.is_symlink() and links:
            links -= 1
            target = step.readlink()
            found = root if target.is_absolute() else found
            left[:0] = target.parts[1:] if target.is_absolute() else target.parts
        else:
            found = step
    return found


def _is_in(path: str, directory: Path) -> bool:
    return os.path.realpath(Path(path).parent) == os.path.realpath(directory)
