"""Reads TOML files that are validated as a whole: every fault is reported at once, with file and key."""

from __future__ import annotations

import codecs
import logging
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ovs_hotswap.errors import ConfigError

log = logging.getLogger(__name__)

_SHOWN = 200  # characters of a value in a report
_SHOWN_INT = 10**18

Table = TypeVar("Table", bound=BaseModel)
Warn = Callable[[str], None]


class Stamp(NamedTuple):
    """Attributes of a file that differ after it was written again or replaced by another file."""

    modified_ns: int
    size: int
    inode: int


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file, or ``None`` if it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def warn_in_log(text: str) -> None:
    log.warning("%s", text)


def load_toml(
    path: Path,
    kind: type[Table],
    example: str,
    renamed: Mapping[str, str] = MappingProxyType({}),
    warn: Warn = warn_in_log,
    *,
    otherwise: str = "",
) -> Table:
    """Read and validate a TOML file.

    ``example`` is the command that prints an example, and ``otherwise`` says how else a file is made. ``renamed`` has
    keys by their earlier names; each of these is read, and ``warn`` is called. Raises ConfigError, which lists every
    fault with file and key, what is wrong and what is allowed.
    """
    try:
        data = path.read_bytes()
        if data.startswith(codecs.BOM_UTF8):
            raise ConfigError(f"{path}: begins with a byte order mark, which TOML does not allow",
                              hint=f"LC_ALL=C sed -i '1s/^\\xEF\\xBB\\xBF//' {path}")  # fmt: skip
        raw = tomllib.loads(data.decode())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", hint=f"write one from `{example}`{otherwise}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML: nested too deeply") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number that Python refuses to read
        raise ConfigError(f"{path}: not TOML: {error}") from error
    refuse(path, [*_control_characters(raw), *_contradictions(raw, renamed)], example)
    for old in raw.keys() & renamed.keys():
        warn(f"{path}: {old}: the name of this key is {renamed[old]}; {old} will not be read in the next release")
        raw[renamed[old]] = raw.pop(old)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_faults(path, error, kind)), hint=f"`{example}`") from error


def _faults(path: Path, error: ValidationError, kind: type[BaseModel]) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False):
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            text = f"unknown key; allowed here: {', '.join(_allowed(kind, fault['loc']))}"
        elif fault["type"] == "missing":
            text = "missing"
        elif fault["type"] == "tuple_type":
            text = f"must be a row of tables, each with the heading [[{key}]]"
        elif not isinstance(fault["input"], dict | list):
            text = f"{text} (it is {_shown(fault['input'])})"
        lines.append(f"{path}: {key + ': ' if key else ''}{text}")
    return lines


def _contradictions(raw: Mapping[str, object], renamed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for old, new in renamed.items():
        if old in raw and new in raw and raw[old] != raw[new]:
            text = f"are two names of one key, with {_shown(raw[new])} and {_shown(raw[old])}: remove {old}"
            yield f"{new} and {old}", text


def _control_characters(raw: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Yield a fault for each text with control characters.

    Each text is used where such characters end it or are not allowed: as a path, an argument or a line of a protocol.
    """
    left: list[tuple[str, object]] = [("", raw)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{key}.{name}".lstrip("."), held) for name, held in value.items()]
            left += [(f"{key}, the key", name) for name in value]
        elif isinstance(value, list):
            left += [(f"{key}[{number}]", held) for number, held in enumerate(value)]
        elif isinstance(value, str):
            wrong = next((each for each in value if unicodedata.category(each) == "Cc"), None)
            if wrong is not None:
                yield key, f"may not have control characters in it, such as {wrong!r} (it is {_shown(value)})"


def _shown(value: object) -> str:
    """Return a value as it is repeated in a report. Python refuses to write an integer of thousands of digits."""
    if isinstance(value, int) and abs(value) > _SHOWN_INT:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _allowed(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed in the table that has the key at ``location``."""
    table: type[BaseModel] = kind
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = next(field.annotation for name, field in table.model_fields.items() if part in (field.alias, name))
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                table = candidate
    return sorted(field.alias or name for name, field in table.model_fields.items())


class Strict(BaseModel):
    """A table of the file: unknown keys are errors, values are never changed after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def refuse(path: Path, faults: Iterable[tuple[str, str]], example: str) -> None:
    """Raise ConfigError if there are any ``faults`` of the file, each of which is a key and a text."""
    lines = [f"{path}: {key}: {text}" for key, text in faults]
    if lines:
        raise ConfigError("\n".join(lines), hint=f"`{example}`")
