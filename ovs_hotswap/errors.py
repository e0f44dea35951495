"""The one exception tree. Each class has its own exit code, printed by ``ovs-hotswap --help`` and kept stable."""

from __future__ import annotations

from collections.abc import Mapping


class HotswapError(Exception):
    """Root of all errors that this program raises on purpose.

    ``message`` names the thing and the cause; ``hint`` names the command or change that repairs it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(HotswapError):
    """The configuration or the overlay intent is not valid. Nothing was changed."""

    exit_code = 3


class PrecheckFailed(HotswapError):
    """A precheck found a reason not to start. Nothing was changed."""

    exit_code = 4


class RolledBack(HotswapError):
    """The upgrade failed and was undone: the old instance serves the VMs, or, if it died during that, the new one."""

    exit_code = 5


class StateUnknown(HotswapError):
    """A state could not be proven; the message says what to look at. Nothing was assumed."""

    exit_code = 6


class NotServed(StateUnknown):
    """A switch serves no guest over a VM's port at this moment: the VM has ended, boots, or is being changed."""


class TryAgain(StateUnknown):
    """What was looked at changed in the meantime. Nothing was changed, and another attempt may succeed."""


class BrokerError(HotswapError):
    """The broker cannot be reached or refused a request."""

    exit_code = 7


class SwitchError(HotswapError):
    """ovs-vswitchd, ovsdb-server or one of their tools failed."""

    exit_code = 8


class LabError(HotswapError):
    """The test bed could not be made or removed."""

    exit_code = 9


class BusyError(HotswapError):
    """An upgrade, or other work on an instance, is under way or unfinished."""

    exit_code = 10


class ReleaseError(HotswapError):
    """A release tree is missing, incomplete or cannot be made."""

    exit_code = 11


class UplinkError(HotswapError):
    """The uplink could not be read or steered."""

    exit_code = 12


class ProtocolError(HotswapError):
    """A peer broke the vhost-user protocol; its session ends, nothing else does."""

    exit_code = 13


class CommandError(HotswapError):
    """An external command failed, timed out or is not installed."""

    exit_code = 14


class CommandTimeout(CommandError):
    """An external command took longer than it may, and was ended."""


class PostcheckFailed(HotswapError):
    """The upgrade was committed, but a later step failed or was interrupted, or the postcheck found something."""

    exit_code = 15


class PatchError(HotswapError):
    """A patch series is faulty or does not fit the tree. The tree is as it was."""

    exit_code = 16


class HostError(HotswapError):
    """The machine refused a file: a missing permission, a full or read-only disk."""

    exit_code = 17


class ProofRejected(HotswapError):
    """A proof contradicts what is known about a VM's rings. No side is given them."""

    exit_code = 18


class RemoteError(HotswapError):
    """A host cannot be reached by SSH, is not the one that is known, or lacks a fitting ovs-hotswap. Nothing began."""

    exit_code = 19


class ConnectionLost(HotswapError):
    """The connection to a host was lost while a command ran there. What changes something continues there as a job."""

    exit_code = 20


def error_classes() -> list[type[HotswapError]]:
    """Return every class of the tree, sorted by exit code."""
    found: list[type[HotswapError]] = []
    waiting = [HotswapError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return sorted(found, key=lambda kind: kind.exit_code)


def to_document(error: HotswapError) -> dict[str, object]:
    """Return an error as JSON for another process. Notes that were added to the error are in ``notes``."""
    document: dict[str, object] = {
        "class": type(error).__name__, "message": error.message, "hint": error.hint, "exit_code": error.exit_code,
    }  # fmt: skip
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return document | ({"notes": notes} if notes else {})


def from_document(document: Mapping[str, object], default: type[HotswapError] = HotswapError) -> HotswapError:
    """Return the error that another process wrote with ``to_document``.

    It has the class that it had there; if that is not known, the class with the same exit code; if there is none,
    ``default``. An older version writes fewer fields.
    """
    kinds = error_classes()
    name, code, hint, notes = (document.get(key) for key in ("class", "exit_code", "hint", "notes"))
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    kind = kind or next((kind for kind in kinds if kind.exit_code == code), default)
    error = kind(str(document.get("message")), hint=None if hint is None else str(hint))
    for note in notes if isinstance(notes, list) else ():
        error.add_note(str(note))
    return error
