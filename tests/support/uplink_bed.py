"""What the contract test of the uplink's drivers asks of a driver under test: a world that can be looked at and can
fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ovs_hotswap.model import Side
from ovs_hotswap.uplink.base import Uplink


@dataclass
class Calls:
    """Counts the calls of a driver's seam. ``fault``: makes the error of the call number ``fail_at``, counted from 0;
    with ``lasting`` all calls from there on fail, too. ``after``: the call that fails takes effect first, as one whose
    answer is lost."""

    fault: Callable[[], Exception]
    made: int = 0
    fail_at: int | None = None
    lasting: bool = False
    after: bool = False

    def expect(self, fail_at: int | None, *, lasting: bool = False, after: bool = False) -> None:
        """Count from 0 again, with this call to fail."""
        self.made, self.fail_at, self.lasting, self.after = 0, fail_at, lasting, after

    def wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            number, self.made = self.made, self.made + 1
            fails = self.fail_at is not None and (number == self.fail_at or (self.lasting and number > self.fail_at))
            if not fails or self.after:
                found = method(*args, **kwargs)
            if fails:
                raise self.fault()
            return found

        return call


@dataclass
class Failing:
    """Passes every method call on to ``inner``, if ``calls`` lets it."""

    inner: Any
    calls: Calls

    def __getattr__(self, name: str) -> Any:
        return self.calls.wrap(getattr(self.inner, name))


class Bed(Protocol):
    """One driver over its fake. A bed begins without any steering of ours, with foreign rules where the driver has such
    beside its own. ``calls``: those of the driver's seam."""

    calls: Calls

    def uplink(self) -> Uplink:
        """A new object of the driver over the same world."""

    def state(self) -> object:
        """All of the world that a driver could change, to be compared."""

    def leads_to(self) -> Side | None:
        """Where the overlay's packets go in this world, found without the driver."""

    def break_steering(self) -> None:
        """Take the traffic from the side that has it, as something other than ovs-hotswap would do it."""


@dataclass
class Driver:
    """A row of the contract's table: how a bed of the driver is made."""

    name: str
    bed: Callable[[], Bed]
    skips: dict[str, str] = field(default_factory=dict)  # clauses that cannot hold for the driver, each with the reason
