"""Whether two versions of ovs-hotswap may work together over SSH. This module is pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from ovs_hotswap.remote.frames import PROTOCOL

_PLAIN = re.compile(r"[\w.+~-]{1,40}", re.ASCII)
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.|$)")


class Fit(enum.Enum):
    """SAME: nothing to say. DIFFERENT: a command that only reads may run. UNFIT: none may."""

    SAME = enum.auto()
    DIFFERENT = enum.auto()
    UNFIT = enum.auto()


@dataclass(frozen=True, slots=True)
class Hello:
    """What the host's end says first."""

    version: str
    protocol: int

    @classmethod
    def parse(cls, document: object) -> Hello:
        """What a HELLO says; a missing part is one that fits nothing."""
        match document:
            case {"version": str(version), "protocol": int(protocol)} if _PLAIN.fullmatch(version):
                return cls(version, protocol)
        return cls("unknown", 0)


def judge(here: str, there: Hello) -> Fit:
    """Compare the version here with that of the host.

    The command line is understood, and carried out, by the program on the host. So what matters is that its options
    mean there what the operator reads here: they may change with the first two numbers of a version, and not with the
    third. The protocol has a number of its own.
    """
    if there.protocol != PROTOCOL:
        return Fit.UNFIT
    if here == there.version:
        return Fit.SAME
    first, second = _VERSION.match(here), _VERSION.match(there.version)
    return Fit.SAME if first and second and first.groups() == second.groups() else Fit.DIFFERENT
