"""The files of the relay in the run directory: what it says of itself, and the templates that it knows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from ovs_hotswap.config import Config
from ovs_hotswap.flowlog.mediator import Known
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict

GAPS = 50  # that are remembered


class Gap(Strict, extra="ignore"):
    """A time in which records may be missing, in seconds since the epoch, and why."""

    begin: float
    end: float
    why: str


class Source(Strict, extra="ignore"):
    """What came from one instance since the relay was started, in records. ``overflowed``: messages for which the
    relay's socket had no room. ``unknown``: records whose template was not known. ``malformed``: messages."""

    records: int = 0
    overflowed: int = 0
    unknown: int = 0
    malformed: int = 0

    @property
    def lost(self) -> int:
        return self.overflowed + self.unknown + self.malformed


class Collector(Strict, extra="ignore"):
    """Messages to one collector since the relay was started: sent, and refused by the kernel. ``fault``: why it refused
    the last one."""

    sent: int = 0
    refused: int = 0
    fault: str | None = None


class RelayState(Strict, extra="ignore"):
    """``pid`` and ``born`` are of the relay's process (``process_exit.start_time``); ``time``: when this was written.
    ``listening``: the sides whose records it takes."""

    pid: int
    born: int | None
    time: float
    listening: list[str] = Field(default_factory=list)
    sources: dict[str, Source] = Field(default_factory=dict)
    collectors: dict[str, Collector] = Field(default_factory=dict)
    gaps: list[Gap] = Field(default_factory=list)


class _Templates(Strict, extra="ignore"):
    templates: dict[str, dict[int, str]] = Field(default_factory=dict, strict=False)


def state_path(config: Config) -> Path:
    return config.run_dir / "flowlog.json"


def templates_path(config: Config) -> Path:
    return config.run_dir / "flowlog-templates.json"


def lock_path(config: Config) -> Path:
    return config.run_dir / "flowlog.lock"


def read(config: Config) -> RelayState | None:
    """What the last relay said of itself; ``None`` if there is nothing that can be read."""
    try:
        return RelayState.model_validate_json(state_path(config).read_text())
    except (OSError, ValueError):
        return None


def running(config: Config, system: System, state: RelayState | None) -> bool:
    """Whether the relay that wrote ``state`` runs."""
    return state is not None and system.is_still(state.pid, state.born)


def write(config: Config, system: System, state: RelayState) -> None:
    """Raises HostError."""
    system.write_atomic(state_path(config), state.model_dump_json() + "\n")


def read_templates(config: Config) -> Known:
    """The templates that the last relay knew; none if they cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = _Templates.model_validate_json(templates_path(config).read_text())
        return {source: {number: bytes.fromhex(each) for number, each in held.items()}
                for source, held in found.templates.items()}  # fmt: skip
    return {}


def write_templates(config: Config, system: System, known: Known) -> None:
    """Raises HostError."""
    found = {source: {number: each.hex() for number, each in held.items()} for source, held in known.items()}
    system.write_atomic(templates_path(config), _Templates(templates=found).model_dump_json() + "\n")


def added(gaps: Sequence[Gap], gap: Gap) -> list[Gap]:
    """The gaps with one more. One with the same reason that follows at once becomes longer."""
    if gaps and gaps[-1].why == gap.why and gap.begin <= gaps[-1].end:
        return [*gaps[:-1], Gap(begin=gaps[-1].begin, end=gap.end, why=gap.why)]
    return [*gaps, gap][-GAPS:]


def losses(before: Mapping[str, Source], now: Mapping[str, Source], begin: float, end: float) -> list[Gap]:
    """The gaps between two looks at the sources: what was lost on the way to the relay or in it."""
    found = []
    for side, seen in now.items():
        earlier = before.get(side, Source())
        for name, text in (("overflowed", "came faster than the relay takes them"),
                           ("unknown", "came before their templates"), ("malformed", "cannot be read")):  # fmt: skip
            if getattr(seen, name) > getattr(earlier, name):
                found.append(Gap(begin=begin, end=end, why=f"records of instance {side} {text}"))
    return found
