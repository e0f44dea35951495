"""Values that several parts share. Frozen, without I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass

TAKEN_NAMES = frozenset({"uplink", "vxlan", "peer", "ovs-netdev", "ovs-system", "lo"})
"""Ports of every bridge (``overlay.ports``), and devices that there are beside it: no bridge and no VM has such a
name."""

RELEASE_NAME = r"^[a-z0-9][a-z0-9._-]{0,31}$"


class Side(enum.StrEnum):
    """One of the two instances a host can run. Which of them is active is a matter of state, not of name."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Side:
        return Side.B if self is Side.A else Side.A


class Severity(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class MessageThread:
    """The thread of a switch that handles vhost-user messages: its id, and a descriptor that writes into its notify
    pipe (``switch.fdset``); ``None`` where it has none."""

    tid: int
    pipe: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. ``hint`` names the command or change that helps. ``item``: the part of ``text`` that says
    what it was found of, such as a VM or a flow, where the same may be found of many."""

    check: str
    severity: Severity
    text: str
    hint: str | None = None
    item: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """The software an instance runs. ``root``: the tree to chroot to; ``None`` where it runs on the host's libraries.
    Then ``prefix`` is what it was installed under; ``None`` for the host's installed package."""

    name: str
    root: str | None
    ovs_version: str
    dpdk_version: str
    prefix: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} (OVS {self.ovs_version}, DPDK {self.dpdk_version})"


@dataclass(frozen=True, slots=True)
class Device:
    """A kernel network device, the namespace it is in (``None``: this process's own) and whether it is up."""

    name: str
    namespace: str | None
    up: bool


class Way(enum.Enum):
    """In which packets pass an instance's uplink."""

    OUT = enum.auto()
    INTO = enum.auto()


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of an instance's uplink. ``out``: what the instance sends reaches other hosts; ``into``: what is
    given to it comes in. ``None``: there was nothing to tell it by."""

    out: bool | None = None
    into: bool | None = None


@dataclass(frozen=True, slots=True)
class Steered:
    """Packets that the steering has handled since its rules were made. ``given`` to the instance, ``taken`` from it."""

    given: int
    taken: int


@dataclass(frozen=True, slots=True)
class SwitchProcess:
    """A running ovs-vswitchd. ``dpdk``: it has initialised DPDK. ``file_prefix`` is DPDK's (``rte`` by default)."""

    pid: int
    run_dir: str
    file_prefix: str | None
    dpdk: bool
