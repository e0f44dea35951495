"""Checks the part of JSON Schema (draft 2020-12) that the schemas in ``docs/json`` use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    "null": type(None),
}  # fmt: skip
_KNOWN = {"$schema", "$defs", "title", "$ref", "anyOf", "enum", "type", "properties", "required", "items",
          "additionalProperties"}  # fmt: skip


def faults(schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a document: where, and why."""
    return list(_faults(schema, schema, value, "document"))


def _faults(whole: dict[str, Any], schema: dict[str, Any], value: object, where: str) -> Iterator[str]:
    assert schema.keys() <= _KNOWN, f"{where}: this validator does not know {sorted(schema.keys() - _KNOWN)}"
    if "$ref" in schema:
        yield from _faults(whole, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, where)
    if "anyOf" in schema and all(list(_faults(whole, each, value, where)) for each in schema["anyOf"]):
        yield f"{where}: {value!r} is nothing that it may be"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{where}: {value!r} is not of type {schema['type']}"
        return
    if isinstance(value, dict):
        yield from (f"{where}: no {name}" for name in schema.get("required", ()) if name not in value)
        for name, each in schema.get("properties", {}).items():
            if name in value:
                yield from _faults(whole, each, value[name], f"{where}.{name}")
        others = value.keys() - schema.get("properties", {}).keys() if "additionalProperties" in schema else ()
        for name in others:
            yield from _faults(whole, schema["additionalProperties"], value[name], f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, each in enumerate(value):
            yield from _faults(whole, schema["items"], each, f"{where}[{number}]")


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
