"""The status of a broker, as its control socket and ``ovs-hotswap broker`` report it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from ovs_hotswap.config_changes import Change
from ovs_hotswap.model import Side


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """Bytes of memory for capture rings: the limit, what is taken now, what the largest VM of the overlay intent needs,
    and what all of them need at once."""

    limit: int
    taken: int
    largest: int
    all: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """The fields of ``broker status`` (docs/json.md). Those with a default were added after the first release, and
    ``unreported`` names the ones that an older broker does not have: ``document`` leaves them out."""

    version: str
    pid: int
    uptime_s: float
    vms: int
    supervised: bool = False
    withdrawn: bool = False
    unsaved: int = 0
    unit: bool = False
    home: Side | None
    capture: CaptureStatus | None = None
    config_fault: str | None = None
    differing: tuple[Change, ...] = ()
    leaving: tuple[str, ...] = ()
    unreported: frozenset[str] = frozenset()

    @property
    def kept_by_systemd(self) -> bool:
        """Whether systemd keeps its descriptors. A broker without ``unit`` is from before there was a supervisor."""
        return self.supervised if "unit" in self.unreported else self.unit

    def document(self) -> dict[str, object]:
        """The JSON object for programs."""
        found = {name: value for name, value in asdict(self).items() if name not in {*self.unreported, "unreported"}}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


BROKER_FIELDS = tuple(each.name for each in fields(BrokerStatus) if each.name != "unreported")
