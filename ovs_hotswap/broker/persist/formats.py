"""Formats of the state that one broker gives to the next: which ones this version reads, and when it writes each. Pure.

A new format is needed if a reader of the older one would misunderstand a document. A key that a reader may ignore needs
no new format. For format N this module states which parts of a document need it (``_NEW_IN``) and how a document of
format N-1 becomes one of format N (``_RAISE``); tests/unit/snapshots has a document of each format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ovs_hotswap import __version__
from ovs_hotswap.errors import BrokerError, StateUnknown

Document = dict[str, Any]

FORMATS = (3, 4)  # this version reads both, and writes the older one where nothing of the newer one is in use
OLDEST, NEWEST = FORMATS[0], FORMATS[-1]

# What a successor binds its socket to. An older broker does not look at the address of the successor that it accepts,
# and takes any byte that it is sent for a refusal: no other place is left for an announcement.
_ANNOUNCEMENT = re.compile(
    rb"\0ovs-hotswap-successor/([0-9A-Za-z.+-]{1,32})/([0-9]{1,4}(?:,[0-9]{1,4}){0,7})/[0-9a-f]+"
)


@dataclass(frozen=True, slots=True)
class Reader:
    """A broker that has announced itself: its version and the formats that it reads."""

    version: str
    formats: tuple[int, ...]


def announcement(unique: str) -> bytes:
    """Return the address of a successor of this version. ``unique``: hexadecimal digits that no other process uses."""
    formats = ",".join(map(str, FORMATS))
    return f"\0ovs-hotswap-successor/{__version__}/{formats}/{unique}".encode()


def announced(address: object) -> Reader | None:
    """Return what a successor with this address reads, or ``None`` if it is of a version that announces nothing."""
    found = _ANNOUNCEMENT.fullmatch(address) if isinstance(address, bytes) else None
    if found is None:
        return None
    return Reader(found[1].decode(), tuple(sorted(int(each) for each in found[2].split(b","))))


def newer_parts(vm: Document) -> list[str]:
    """Return the parts of a VM's document that the oldest format cannot express, in words for an operator."""
    return [part for new_in in _NEW_IN.values() for part in new_in(vm)]


def needed_format(vm: Document) -> int:
    """Return the oldest format that can express a VM's document."""
    return max((number for number, new_in in _NEW_IN.items() if new_in(vm)), default=OLDEST)


def agree(reader: Reader | None, needed: int, parts: Sequence[str] = ()) -> int:
    """Return the format in which to hand over: the newest that both brokers know.

    A successor that has announced nothing gets the oldest format that suffices, as it always did.

    Raises BrokerError if ``reader`` cannot take over a state that needs format ``needed`` because of ``parts``.
    """
    if reader is None:
        return needed
    common = [number for number in FORMATS if number in reader.formats]
    if common and common[-1] >= needed:
        return common[-1]
    who = f"broker {__version__} (state formats {_list(FORMATS)}) cannot hand over to broker {reader.version}"
    if common:
        raise BrokerError(
            f"{who} (formats {_list(reader.formats)}) now: {'; '.join(parts)}: this needs format {needed}",
            hint="try again in a moment, or when the guests named have booted",
        )
    raise BrokerError(f"{who} (formats {_list(reader.formats)}): no format in common", hint=_WAY_OUT)


def unknown_format(number: object, version: object) -> StateUnknown:
    """Return the error for a state that another broker wrote in a format that this version does not read."""
    writer = f"broker {version:.32}" if isinstance(version, str) else "an earlier broker"
    return StateUnknown(
        f"{writer} wrote the state in format {number!r:.40}; broker {__version__} reads formats {_list(FORMATS)}",
        hint=_WAY_OUT,
    )


def raised(vm: Document, number: int) -> Document:
    """Return a VM's document of format ``number``, which is one of ``FORMATS``, in the newest format.

    Raises LookupError, TypeError or AttributeError if it is no such document.
    """
    for step in range(number, NEWEST):
        vm = _RAISE[step](vm)
    return vm


_WAY_OUT = (
    "install a version between the two that reads this format and take over with it first; or restart the broker, "
    "which starts over with every VM: each is without network until its switch has connected again"
)


def _list(formats: Sequence[int]) -> str:
    return " and ".join(map(str, formats))


def _new_in_4(vm: Document) -> list[str]:
    """Return the parts of a document that need format 4. Older readers do not know a part of a message, throw no
    answers away, and expect numbers for a ring's base and the start of a process."""
    parts = ["a part of a message of its QEMU has come"] if "half" in vm else []
    for side, link in sorted(vm["links"].items()):
        parts += [f"switch {side} owes an answer"] if "due" in link else []
        parts += [f"the start of switch {side} is not known"] if link["born"] is None else []
    if any(ring["base"] is None for ring in vm["state"]["rings"]):
        parts.append("its guest has stopped a ring")
    return [f"VM {vm['name']}: {part}" for part in parts]


def _raise_3(vm: Document) -> Document:
    """Return a document of format 3 in format 4. Format 3 did not say how often a ring was stopped, nor whether it was
    described again."""
    rings = [{"life": 0, "anew": False} | ring for ring in vm["state"]["rings"]]
    links = {}
    for side, link in vm["links"].items():
        sent = link["told"]
        links[side] = link | {"told": sent | {"rings": [{"life": 0} | ring for ring in sent["rings"]]}}
    return vm | {"state": vm["state"] | {"rings": rings}, "links": links}


_NEW_IN: dict[int, Callable[[Document], list[str]]] = {4: _new_in_4}
_RAISE: dict[int, Callable[[Document], Document]] = {3: _raise_3}
