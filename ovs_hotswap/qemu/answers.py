"""The answers of QEMU's two commands (qapi/net.json of the series), as far as they are used.

A guest may have taken over its QEMU, so every answer is validated before it is used.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ovs_hotswap.errors import BrokerError

Slot = Literal["first", "second"]
Kind = TypeVar("Kind")


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Ring(_Answer):
    index: int = Field(ge=0)
    enabled: bool
    available: int = Field(ge=0, lt=1 << 16)
    used: int = Field(ge=0, lt=1 << 16)


class Netdev(_Answer):
    """One netdev that has two back ends, as QEMU describes it."""

    netdev: str
    state: Literal["served", "unowned", "down"]
    active_slot: Slot = Field(alias="active-slot")
    active_pid: int = Field(alias="active-pid")
    standby_state: str = Field(alias="standby-state")
    standby_pid: int = Field(alias="standby-pid")
    swaps: int
    last_swap_us: float | None = Field(None, alias="last-swap-us")
    reason: str | None = None
    rings: list[_Ring]


class Swap(_Answer):
    outcome: str
    give_us: float = Field(alias="give-us")
    take_us: float = Field(alias="take-us")
    time_us: float = Field(alias="time-us")


_BACK_ENDS, _SWAPS = TypeAdapter(list[Netdev]), TypeAdapter(list[Swap])


def back_ends(vm: str, value: object) -> list[Netdev]:
    """Return the answer to query-vhost-user-backends. Raises BrokerError if ``value`` is no such answer."""
    return _proven(vm, value, _BACK_ENDS, "query-vhost-user-backends")


def swap(vm: str, value: object) -> Swap:
    """Return the answer to vhost-user-swap of one netdev. Raises BrokerError if ``value`` is no such answer."""
    swaps = _proven(vm, value, _SWAPS, "vhost-user-swap")
    if not swaps:
        raise BrokerError(f"vm {vm}: QEMU's answer to vhost-user-swap names no netdev")
    return swaps[0]


def _proven(vm: str, value: object, kind: TypeAdapter[list[Kind]], command: str) -> list[Kind]:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise BrokerError(f"vm {vm}: QEMU's answer to {command} cannot be understood: {where}: {first['msg']}",
                          hint="a patched QEMU of this version: qemu-patches, `make packages`") from error  # fmt: skip
