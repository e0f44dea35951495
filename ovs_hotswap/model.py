"""Values that several parts of the program share. They are frozen and do no I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TAKEN_NAMES = frozenset({"uplink", "uplink2", "vxlan", "peer", "ovs-netdev", "ovs-system", "lo"})
"""Names of the ports of every bridge (``overlay.ports``) and of other devices: no bridge or VM may have such a name."""

MAX_MIRRORS = 32
"""The mirrors of a bridge for which there is room (OVS ofproto/ofproto-dpif-mirror.h, MAX_MIRRORS)."""

RELEASE_NAME = r"^[a-z0-9][a-z0-9._-]{0,31}$"


class Side(enum.StrEnum):
    """The name of one of the two instances that a host can run. It does not say which of them is active."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Side:
        return Side.B if self is Side.A else Side.A


class Life(enum.Enum):
    """What the ovs-vswitchd of an instance does. A stopped process forwards nothing, but may be continued."""

    RUNS = "runs"
    STOPPED = "is stopped"
    DEAD = "died"


class Severity(enum.StrEnum):
    """How bad a finding is. ``UNKNOWN``: what was to be checked could not be seen."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class MessageThread:
    """The thread of a switch that handles vhost-user messages.

    ``tid`` is its thread id. ``pipe`` is a descriptor that writes to its notify pipe (``switch.notify_pipe``), or
    ``None`` if there is no such pipe.
    """

    tid: int
    pipe: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    ``hint`` names the command or change that helps. ``item`` is the part of ``text`` that names the VM, flow or other
    thing concerned, if the same may be found for many of them.
    """

    check: str
    severity: Severity
    text: str
    hint: str | None = None
    item: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """The software that an instance runs.

    ``root`` is the tree to chroot to, or ``None`` if the software uses the host's libraries. In that case ``prefix`` is
    the directory under which it was installed, or ``None`` for the host's package.
    """

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
    """A kernel network device, the namespace that it is in (``None``: this process's own) and whether it is up."""

    name: str
    namespace: str | None
    up: bool


class Way(enum.Enum):
    """The direction in which packets pass an instance's uplink."""

    OUT = enum.auto()
    INTO = enum.auto()


@dataclass(frozen=True, slots=True)
class Proof:
    """What was observed of an instance's uplink.

    ``out``: frames from the instance reach other hosts. ``into``: frames for the instance reach it. ``None``: nothing
    could be observed. ``nics``: the same for each NIC by its name, if there are two; then ``out`` and ``into`` say
    whether it is so on all of them. A NIC without a link is not among them.
    """

    out: bool | None = None
    into: bool | None = None
    nics: tuple[tuple[str, Proof], ...] = ()

    @staticmethod
    def restored(fact: Mapping[str, Any]) -> Proof:
        """The proof of which ``fact`` was recorded."""
        nics = tuple((name, Proof.restored(each)) for name, each in fact.get("nics", {}).items())
        return Proof(fact["out"], fact["into"], nics)

    def fact(self) -> dict[str, Any]:
        """Return what is recorded in the journal: {"out", "into"}, of two NICs also "nics": {name: {"out", "into"}}."""
        nics = {"nics": {name: each.fact() for name, each in self.nics}} if self.nics else {}
        return {"out": self.out, "into": self.into, **nics}

    def of(self, nic: str) -> Proof:
        """What was observed of one NIC."""
        return dict(self.nics).get(nic, Proof())

    def of_any(self) -> Proof:
        """What was observed on at least one NIC."""

        def any_of(proven: list[bool | None]) -> bool | None:
            return True if True in proven else False if False in proven else None

        if not self.nics:
            return self
        return Proof(any_of([each.out for _, each in self.nics]), any_of([each.into for _, each in self.nics]))

    def joined(self, other: Proof) -> Proof:
        """What either of two observations has proven, or else what this one, or the other, has seen."""

        def either(first: bool | None, second: bool | None) -> bool | None:
            return first or second or (second if first is None else first)

        names = dict.fromkeys([name for name, _ in (*self.nics, *other.nics)])
        return Proof(either(self.out, other.out), either(self.into, other.into),
                     tuple((name, self.of(name).joined(other.of(name))) for name in names))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Steered:
    """Packets that the steering has handled since its rules were made: ``given`` to an instance, ``taken`` from it."""

    given: int
    taken: int


@dataclass(frozen=True, slots=True)
class SwitchProcess:
    """A running ovs-vswitchd. ``dpdk``: it has initialised DPDK. ``file_prefix`` is that of DPDK (default: ``rte``)."""

    pid: int
    run_dir: str
    file_prefix: str | None
    dpdk: bool
