"""The status of a broker, as its control socket and ``ovs-hotswap broker`` report it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from ovs_hotswap.config_changes import Change
from ovs_hotswap.model import Side


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """The memory for capture rings, in bytes: the limit, what is taken now, what the largest VM of the overlay intent
    needs, and what all VMs of the intent need at once."""

    limit: int
    taken: int
    largest: int
    all: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """The fields of ``broker status`` (docs/json.md).

    Fields with a default were added after the first release. ``unreported`` names those that an older broker does not
    have: ``document`` leaves them out.
    """

    version: str
    pid: int
    uptime_s: float
    vms: int
    supervised: bool = False
    withdrawn: bool = False
    unsaved: int = 0
    unit: bool = False
    formats: tuple[int, ...] = ()
    home: Side | None
    capture: CaptureStatus | None = None
    config_fault: str | None = None
    differing: tuple[Change, ...] = ()
    leaving: tuple[str, ...] = ()
    unreported: frozenset[str] = frozenset()

    @property
    def kept_by_systemd(self) -> bool:
        """Whether systemd keeps the broker's descriptors. A broker without ``unit`` predates the own supervisor."""
        return self.supervised if "unit" in self.unreported else self.unit

    def document(self) -> dict[str, object]:
        """Return the JSON object for programs."""
        found = {name: value for name, value in asdict(self).items() if name not in {*self.unreported, "unreported"}}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


BROKER_FIELDS = tuple(each.name for each in fields(BrokerStatus) if each.name != "unreported")
