"""Reads a broker's answers on its control socket into types.

Each function raises ValueError, which names the field, for an answer of another shape. Fields that only a newer broker
has are ignored. Fields that an older broker does not have get their default, and are named in ``unreported``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ovs_hotswap.backends import VM_FIELDS, MoveResult, Undelivered, VmStatus
from ovs_hotswap.broker.control.status import BROKER_FIELDS, BrokerStatus
from ovs_hotswap.errors import BrokerError, from_document

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Moves:
    """The VMs that were moved, and the error of the first one that could not be, as an object."""

    moved: list[MoveResult]
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Parked:
    """By VM: the error of one that cannot be parked, and of one that is not parked yet, as objects."""

    errors: dict[str, dict[str, Any]]
    late: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Undelivered:
    frames: list[str]


@dataclass(frozen=True, slots=True)
class _UndeliveredOf(_Undelivered):
    vm: str
    undeliverable: int


@dataclass(frozen=True, slots=True)
class _UndeliveredMany:
    vms: list[_UndeliveredOf]
    errors: dict[str, dict[str, Any]]


_VM, _VMS, _BROKER = TypeAdapter(VmStatus), TypeAdapter(list[VmStatus]), TypeAdapter(BrokerStatus)
_MOVE, _MOVES, _NAMES = TypeAdapter(MoveResult), TypeAdapter(Moves), TypeAdapter(list[str])
_PARKED, _UNDELIVERED, _UNDELIVERED_MANY = TypeAdapter(Parked), TypeAdapter(_Undelivered), TypeAdapter(_UndeliveredMany)


def result(answer: object) -> Any:
    if not isinstance(answer, dict) or "result" not in answer:
        raise ValueError("no result")
    return answer["result"]


def status(value: object) -> BrokerStatus:
    return _read(_BROKER, _with_unreported(value, BROKER_FIELDS))


def vm(value: object) -> VmStatus:
    return _read(_VM, _with_unreported(value, VM_FIELDS))


def vms(value: object) -> list[VmStatus]:
    return _read(_VMS, [_with_unreported(each, VM_FIELDS) for each in value] if isinstance(value, list) else value)


def move(value: object) -> MoveResult:
    return _read(_MOVE, value)


def moves(value: object) -> Moves:
    return _read(_MOVES, value)


def names(value: object) -> list[str]:
    return _read(_NAMES, value)


def parked(value: object) -> Parked:
    return _read(_PARKED, value)


def frames(value: object) -> list[bytes]:
    return _frames(_read(_UNDELIVERED, value))


def frames_of_many(value: object) -> list[Undelivered]:
    found = _read(_UNDELIVERED_MANY, value)
    faults = [Undelivered(vm, [], from_document(error, BrokerError)) for vm, error in found.errors.items()]
    return faults + [Undelivered(each.vm, _frames(each), undeliverable=each.undeliverable) for each in found.vms]


def _frames(found: _Undelivered) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in found.frames]


def _with_unreported(value: object, fields: tuple[str, ...]) -> object:
    if not isinstance(value, Mapping):
        return value
    return {**value, "unreported": frozenset(fields) - value.keys()}


def _read(kind: TypeAdapter[Kind], value: object) -> Kind:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'result'}: {first['msg']}") from error
