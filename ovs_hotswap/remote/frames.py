"""The conversation between ``ovs-hotswap --host`` and ``ovs-hotswap host-end`` on the host. This module is pure.

The host's end begins with ``MAGIC`` and a HELLO. Everything else is frames: a letter, the length of the payload in four
bytes, and the payload. The command line travels in a frame: no shell takes it apart, and it is not in the list of
processes.
"""

from __future__ import annotations

import enum
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.errors import HotswapError, RemoteError, from_document

PROTOCOL = 1
MAGIC = b"ovs-hotswap\0"
PING_S = 5.0
"""Either end sends a frame at least this often."""
SILENCE_S = 30.0
"""An end that hears nothing for so long takes the connection for lost."""
_HEADER = struct.Struct(">cI")
_PAYLOAD_MAX = 1 << 20
_SHOWN = 200  # characters of what another program says


class Kind(enum.Enum):
    """HELLO: the host's versions. REQUEST: what to run. INPUT: bytes from the terminal. SIZE: of the terminal. SIGNAL:
    its name. OUT, ERR: bytes that the command prints. JOB: the id of the job that does the work. FAULT: why the request
    was refused. EXIT: the exit code. PING: nothing."""

    HELLO = b"h"
    REQUEST = b"r"
    INPUT = b"i"
    SIZE = b"w"
    SIGNAL = b"s"
    OUT = b"o"
    ERR = b"e"
    JOB = b"j"
    FAULT = b"f"
    EXIT = b"x"
    PING = b"p"


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    payload: bytes = b""

    def encode(self) -> bytes:
        return _HEADER.pack(self.kind.value, len(self.payload)) + self.payload

    @property
    def document(self) -> Any:
        """The payload as JSON. Raises RemoteError."""
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"a {self.kind.name} frame is not JSON") from error


def documented(kind: Kind, document: object) -> Frame:
    return Frame(kind, json.dumps(document).encode())


class Decoder:
    """Takes frames out of a stream of bytes. ``magic``: whether the stream begins with ``MAGIC``."""

    def __init__(self, *, magic: bool) -> None:
        self._left = b""
        self._magic = magic

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete. Raises RemoteError if the stream has anything else in it."""
        self._left += data
        if self._magic:
            if not MAGIC.startswith(self._left[: len(MAGIC)]):
                raise not_ours(self._left)
            if len(self._left) < len(MAGIC):
                return
            self._left, self._magic = self._left[len(MAGIC) :], False
        while len(self._left) >= _HEADER.size:
            letter, length = _HEADER.unpack_from(self._left)
            if length > _PAYLOAD_MAX or letter not in _LETTERS:
                raise not_ours(self._left)
            end = _HEADER.size + length
            if len(self._left) < end:
                return
            payload, self._left = self._left[_HEADER.size : end], self._left[end:]
            yield Frame(Kind(letter), payload)


_LETTERS = {kind.value for kind in Kind}


def not_ours(data: bytes) -> RemoteError:
    said = data[:_SHOWN].decode(errors="replace").strip()
    return RemoteError(
        f"the host does not answer as ovs-hotswap does, but says: {said!r}",
        hint="a login shell that prints something, or a forced command of authorized_keys, does this: see what "
        "`ssh HOST true` prints",
    )


def fault_in(frame: Frame) -> HotswapError:
    """The error in a FAULT frame."""
    found = frame.document
    if not isinstance(found, dict):
        return RemoteError("the host refuses the command, and does not say why")
    shown = {key: harmless(value) if isinstance(value, str) else value for key, value in found.items()}
    return from_document(shown, RemoteError)


_CONTROL = re.compile(r"(\x1b\[[\d;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """A text from a host, without what could do more to a terminal than change colours: what one host prints must not
    pass for what another one has printed."""
    return _CONTROL.sub(lambda found: found[1] or "\N{REPLACEMENT CHARACTER}", text)


def in_pieces(kind: Kind, data: bytes) -> Iterator[Frame]:
    """Bytes of any number as frames."""
    for start in range(0, len(data), _PAYLOAD_MAX):
        yield Frame(kind, data[start : start + _PAYLOAD_MAX])


@dataclass(frozen=True, slots=True)
class Size:
    columns: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True)
class Request:
    """What is to run on the host. ``terminals``: whether standard input, output and error are a terminal here, so that
    they are one there. ``environment``: what decides about colours and characters."""

    arguments: tuple[str, ...]
    version: str
    terminals: tuple[bool, bool, bool] = (False, False, False)
    size: Size = Size()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether a person can be asked: the condition of ``cli.output.Output.asks``."""
        return self.terminals[0] and self.terminals[2]

    def frame(self) -> Frame:
        size = [self.size.columns, self.size.rows]
        return documented(Kind.REQUEST, {
            "arguments": list(self.arguments), "version": self.version, "terminals": list(self.terminals),
            "size": size, "environment": dict(self.environment),
        })  # fmt: skip

    @classmethod
    def parse(cls, frame: Frame) -> Request:
        """Read what ``frame`` wrote. Raises RemoteError."""
        match frame.document:
            case {
                "arguments": list(arguments), "version": str(version),
                "terminals": [bool(first), bool(second), bool(third)],
                "size": [int(columns), int(rows)], "environment": dict(environment),
            }:  # fmt: skip
                known = {str(key): str(value) for key, value in environment.items() if key in PASSED_ON}
                words = tuple(map(str, arguments))
                return cls(words, version, (first, second, third), Size(columns, rows), known)
        raise RemoteError("the request is not one that this version understands")


PASSED_ON = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "LANG", "LC_ALL", "LC_CTYPE")
"""Variables of the environment that a command on the host is given."""
