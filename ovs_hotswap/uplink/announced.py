"""The record of the side that was last announced as the one with the VTEP's address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import HostError, UplinkError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict


class Announced(Strict, extra="ignore"):
    """``side`` was announced, or is about to be, as the one with the VTEP's ``address``. ``settled``: the other side
    has been silent since, except if there was none to listen to. ``before``: the packets that it had counted by then.
    """

    side: Side
    address: str
    settled: bool = False
    before: int = 0


@dataclass(frozen=True, slots=True)
class AnnouncedFile:
    """The record in the run directory, which a boot empties. All methods raise UplinkError."""

    path: Path
    system: System

    def read(self) -> Announced | None:
        """Return the record; ``None`` if there is none, or a damaged one."""
        try:
            return Announced.model_validate_json(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise UplinkError(f"{self.path}: which side was announced cannot be read: {error}") from error

    def write(self, announced: Announced) -> None:
        try:
            self.system.write_atomic(self.path, announced.model_dump_json())
        except HostError as error:
            raise UplinkError(error.message, hint=error.hint) from error

    def remove(self) -> None:
        """Remove the record, if there is one."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise UplinkError(f"{self.path}: which side was announced cannot be forgotten: {error}") from error
