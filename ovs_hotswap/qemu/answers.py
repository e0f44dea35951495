"""What QEMU's two commands answer (qapi/net.json of the series), as far as it is used. A QEMU is its guest's neighbour:
what it says is looked at before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ovs_hotswap.errors import BrokerError

Slot = Literal["first", "second"]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Ring(_Answer):
    index: int = Field(ge=0)
    enabled: bool
    available: int = Field(ge=0, lt=1 << 16)
    used: int = Field(ge=0, lt=1 << 16)


class _BackEnds(_Answer):
    netdev: str
    state: Literal["served", "unowned", "down"]
    active_slot: Slot = Field(alias="active-slot")
    active_pid: int = Field(alias="active-pid")
    standby_state: str = Field(alias="standby-state")
    standby_pid: int = Field(alias="standby-pid")
    swaps: int
    last_swap_us: int | float | None = Field(None, alias="last-swap-us")
    reason: str | None = None
    rings: list[_Ring]


class _Swap(_Answer):
    outcome: str
    give_us: int | float = Field(alias="give-us")
    take_us: int | float = Field(alias="take-us")
    time_us: int | float = Field(alias="time-us")


_BACK_ENDS, _SWAPS = TypeAdapter(list[_BackEnds]), TypeAdapter(list[_Swap])


def back_ends(vm: str, value: Any) -> Sequence[Mapping[str, Any]]:
    """The answer to query-vhost-user-backends. Raises BrokerError if it is none."""
    return _proven(vm, value, _BACK_ENDS, "query-vhost-user-backends")


def swap(vm: str, value: Any) -> Mapping[str, Any]:
    """The answer to vhost-user-swap of one netdev. Raises BrokerError if it is none."""
    swaps = _proven(vm, value, _SWAPS, "vhost-user-swap")
    if not swaps:
        raise BrokerError(f"vm {vm}: QEMU's answer to vhost-user-swap names no netdev")
    return swaps[0]


def _proven(vm: str, value: Any, kind: TypeAdapter[Any], command: str) -> Sequence[Mapping[str, Any]]:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise BrokerError(f"vm {vm}: QEMU's answer to {command} cannot be understood: {where}: {first['msg']}",
                          hint="a patched QEMU of this version: qemu-patches, `make packages`") from error  # fmt: skip
    found: Sequence[Mapping[str, Any]] = value
    return found
