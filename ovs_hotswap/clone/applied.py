"""What a part of the run-time state was given to the new side, and how that is undone.

Every undo is a list of ovs-appctl commands: text that a journal can keep, so that another process can undo it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.clone.runtime_settings import Command
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.datapath import USERSPACE
from ovs_hotswap.switch.rpc import NoAnswer, quick_call

_NAMED = ("dpctl/ct-", "dpctl/ipf-", "dpctl/dump-")
FLUSH = "dpctl/flush-conntrack"  # OVS 3.1 does not take the name of a datapath before a zone (lib/dpctl.c)


@dataclass(frozen=True, slots=True)
class Applied:
    """``done``: lines that say what was given to the new side. ``refused``: lines that say what it did not take, or
    what cannot be carried over. ``undo``: the commands that take back what was given, in their order."""

    done: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    undo: tuple[Command, ...] = ()

    def __add__(self, later: Applied) -> Applied:
        """Both, one after the other; what was done last is undone first."""
        return Applied(self.done + later.done, self.refused + later.refused, later.undo + self.undo)


def ask(ctl: Path, command: Command, *options: str, timeout: float = 10.0) -> str:
    """Have an ovs-vswitchd carry out a command; return its text. ``options`` come before the name of the datapath.

    Raises SwitchError if it refuses the command, and NoAnswer after ``timeout`` seconds.
    """
    name, *arguments = command
    datapath = (USERSPACE,) if name.startswith(_NAMED) else ()
    return str(quick_call(ctl, name, [*options, *datapath, *arguments], timeout=timeout) or "")


def commands_of(ctl: Path, *, timeout: float = 10.0) -> frozenset[str]:
    """Return the names of all commands that an ovs-vswitchd has. Raises SwitchError."""
    lines = ask(ctl, ("list-commands",), timeout=timeout).splitlines()
    return frozenset(line.split()[0] for line in lines[1:] if line.split())


def attempt(ctl: Path, commands: Iterable[Command], *, timeout: float = 10.0) -> Iterator[str]:
    """Carry out each command and yield a line for each that is refused. Raises NoAnswer.

    A few commands answer a wrong argument with a text and no error: ``tnl/egress_port_range``, for example.
    """
    for command in commands:
        try:
            answer = ask(ctl, command, timeout=timeout)
        except NoAnswer:
            raise
        except SwitchError as error:
            yield f"{' '.join(command)}: {error.message.rpartition(': ')[2]}"
        else:
            if answer.startswith("Invalid"):
                yield f"{' '.join(command)}: {answer.strip()}"


def undo(ctl: Path, commands: Iterable[Command], *, timeout: float = 10.0) -> tuple[str, ...]:
    """Take back what was given to the new side; return a line for each command that it refused.

    It may be repeated: what is gone already is refused, and nothing else happens. Raises NoAnswer.
    """
    return tuple(attempt(ctl, commands, timeout=timeout))
