"""The record of a made-up run over a fleet, of any size: what `upgrade.yml` leaves in its directory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
BEGIN = 1_790_000_000.0
RELEASE = "trixie"
WATCHED = {"mode": "automatic", "running": True, "ready": True, "events": []}


def report(moves: Mapping[str, float], warnings: tuple[str, ...] = ()) -> Json:
    return {
        "changed": True, "active": "b", "old": "a", "new": "b", "release": RELEASE, "previous": "host",
        "committed": True, "moves": dict(moves), "warnings": list(warnings), "steps": [],
    }  # fmt: skip


def error(kind: str, code: int, message: str, hint: str | None) -> Json:
    return {"error": {"class": kind, "message": message, "hint": hint, "exit_code": code}, "steps": []}


def host(name: str, wave: str | int, state: str, at: float = 0.0, seconds: float = 13.0, **fields: Any) -> Json:
    """The document of a host that began ``at`` seconds after the run."""
    return {
        "host": name, "wave": wave, "state": state, "started": BEGIN + at, "ended": BEGIN + at + seconds,
        "reason": None, "report": None, "check": None, "watch": WATCHED, **fields,
    }  # fmt: skip


def upgraded(name: str, wave: str | int, vms: int, at: float = 0.0, seed: int = 0, **fields: Any) -> Json:
    rng = random.Random(f"{name}/{seed}")
    moves = {f"vm{k}": round(rng.uniform(70, 200), 1) for k in range(vms)}
    return host(name, wave, "upgraded", at, 12 + rng.random() * 4, **{"report": report(moves), **fields})


def failures() -> list[Callable[[str, str | int, float], Json]]:
    """A host in each state that needs a person."""
    return [
        lambda name, wave, at: host(
            name, wave, "failed", at, 1.2, reason="check refuses the upgrade",
            report=error("PrecheckFailed", 4, "VM web7: its memory has 8 regions", "unplug a memory device of web7"),
        ),
        lambda name, wave, at: host(
            name, wave, "rolled_back", at, 21.0, reason="the standby died during the moves",
            report=error("RolledBack", 5, "step move: instance b ended: signal 11", "read ovs-vswitchd-b.log"),
        ),
        lambda name, wave, at: host(name, wave, "unreachable", at, 10.0, reason="ssh: no route to host", watch=None),
    ]  # fmt: skip


def run(**fields: Any) -> Json:
    policy = {"serial": [1, 5, "10%"], "max_fail_percentage": 0, "max_failed": 1}
    return {"id": "2026-09-21-trixie", "release": RELEASE, "started": BEGIN, "policy": policy, **fields}


def waves(count: int) -> list[tuple[str | int, int]]:
    """The waves of ``serial: [1, 5, "10%"]`` after one canary, with their sizes."""
    sizes: list[tuple[str | int, int]] = [("canary", 1)]
    number, left = 1, count - 1
    for size in (1, 5, *[max(1, count // 10)] * count):
        if left <= 0:
            break
        sizes.append((number, min(size, left)))
        number, left = number + 1, left - size
    return sizes


def fleet(count: int, bad: int = 0, vms: int = 40, begun: int | None = None) -> tuple[Json, list[Json]]:
    """A run over ``count`` hosts, of which ``begun`` have a document; ``bad`` of them need a person."""
    begun = count if begun is None else begun
    documents: list[Json] = []
    plan: dict[str, str | int] = {}
    rng, at = random.Random(count), 5.0
    chosen = set(rng.sample(range(1, begun), bad)) if bad else set()
    kinds, number = failures(), 0
    for wave, size in waves(count):
        for _ in range(size):
            name = f"hv{number:04}.example.net"
            plan[name] = wave
            began = at + rng.random() * 3
            if number in chosen:
                documents.append(kinds[len(documents) % len(kinds)](name, wave, began))
            elif number < begun:
                documents.append(upgraded(name, wave, vms + rng.randrange(5), began))
            number += 1
        at += 45
    return run(hosts=plan), documents


def write(directory: Path, record: Json, documents: list[Json]) -> None:
    hosts = directory / "hosts"
    hosts.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(record))
    for each in documents:
        (hosts / f"{each['host']}.json").write_text(json.dumps(each))
