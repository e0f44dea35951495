"""Runs the parts of an examination one after the other, each for a bounded time, whatever hangs on the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ovs_hotswap.doctor.report import Found, Kind, Section
from ovs_hotswap.errors import CommandError, CommandTimeout, HotswapError
from ovs_hotswap.model import Severity
from ovs_hotswap.system import Completed, System, host_error
from ovs_hotswap.waiting import Deadline

PART_S = 12.0  # longer than a command may take, so that no command outlives doctor
COMMAND_S = 5.0
WHOLE_S = 16.0
NOT_SEEN = {section: Kind(section, "look", Severity.UNKNOWN) for section in Section}
_AGAIN = "`ovs-hotswap doctor --section {}`"

Observe = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the examination: its ``name`` for people, the sections that its findings are in, and what makes them.
    ``act`` may raise HotswapError and OSError."""

    name: str
    sections: tuple[Section, ...]
    act: Callable[[], Iterable[Found]]


class Brief(System):
    """The machine, on which no command takes longer than ``COMMAND_S``. A systemd that once did not answer in this time
    is not asked again: several parts ask it, and there would be no time left for the others."""

    def __init__(self) -> None:
        self._hung: set[str] = set()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = COMMAND_S,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        program = argv[0]
        if program in self._hung:
            raise CommandError(f"{program} did not answer before", hint=f"`{program}`")
        try:
            return super().run(argv, timeout=min(timeout, COMMAND_S), check=check, stdin=stdin, env=env)
        except CommandTimeout:
            if program == "systemctl":
                self._hung.add(program)
            raise


@dataclass
class _Outcome:
    found: list[Found] = field(default_factory=list)
    fault: HotswapError | None = None


@dataclass
class Runner:
    """``part_s`` and ``whole_s``: the most seconds for a part and for all of them. ``observe`` is called with the name
    of each part before it begins."""

    system: System
    observe: Observe = lambda name: None
    part_s: float = PART_S
    whole_s: float = WHOLE_S

    def __post_init__(self) -> None:
        self._deadline = Deadline.after(self.whole_s, self.system)

    def run(self, part: Part) -> list[Found]:
        """Make the findings of a part. What it could not see is a finding of each of its sections."""
        if self._deadline.passed:
            return [_unseen(section, f"{part.name}: no time was left for it") for section in part.sections]
        self.observe(part.name)
        outcome = _Outcome()
        # A thread that hangs in the kernel cannot be ended: it is left behind, and ends with the process.
        thread = threading.Thread(target=_act, args=(part, outcome), name=part.name, daemon=True)
        thread.start()
        thread.join(self.part_s)
        if thread.is_alive():
            text = f"{part.name}: no answer after {self.part_s:g} s"
            return [*outcome.found, *(_unseen(section, text) for section in part.sections)]
        fault = outcome.fault
        if fault is None:
            return outcome.found
        text = f"{part.name}: {fault.message}"
        return [*outcome.found, *(_unseen(section, text, fault.hint) for section in part.sections)]


def _act(part: Part, outcome: _Outcome) -> None:
    try:
        for each in part.act():
            outcome.found.append(each)
    except HotswapError as error:
        outcome.fault = error
    except OSError as error:
        outcome.fault = host_error(error)
    except Exception as error:  # noqa: BLE001 - one part that fails must not keep the others from being seen
        outcome.fault = HotswapError(f"internal error: {type(error).__name__}: {error}", hint="report it")


def _unseen(section: Section, text: str, hint: str | None = None) -> Found:
    return NOT_SEEN[section](text, hint or _AGAIN.format(section))
