# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""The state of a run over a fleet: files in a directory on the control node, and the decisions that follow from them.

``run.json`` is the run, and ``hosts/NAME.json`` what became of a host. Each file is written by one task at the moment
at which something is known, so that a control node that is killed loses nothing. The decisions are pure.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Dict

from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import summary

Json = Dict[str, Any]
UPGRADED, UNCHANGED, ROLLED_BACK, FAILED = "upgraded", "unchanged", "rolled_back", "failed"
UNREACHABLE, SKIPPED, RUNNING = "unreachable", "skipped", "running"
STATES = (UPGRADED, UNCHANGED, ROLLED_BACK, FAILED, UNREACHABLE, SKIPPED, RUNNING)
DONE = (UPGRADED, UNCHANGED)
LEFT_OUT = (ROLLED_BACK, FAILED, UNREACHABLE)
CANARY = "canary"
FIELDS = (
    "host", "wave", "state", "started", "ended", "reason", "report", "check", "watch", "soaked", "baseline", "job",
    "begun",
)  # fmt: skip
"""Of a host's file. ``begun``: the host was lost after its upgrade was begun, and may have ended it since."""
AFTERWARDS = ("reason", "check", "watch", "soaked")
"""What is known of a host after its upgrade."""
STALE_S = 7 * 86400.0
SHOWN = 5  # hosts that a reason names

POLICY = {
    "max_failed_canaries": 0,
    "max_failed_hosts": 0,
    "max_failed_percent": 100,
    "max_unhealthy_hosts": 0,
    "max_gap_us": 10_000,
    "max_lost": 0,
    "max_check_errors": 0,
    "min_canaries": 1,
}
"""The thresholds of a run with their defaults. ``max_gap_us`` may be ``None``: it is not looked at."""


def limits(given: Mapping[str, Any]) -> Json:
    """The thresholds, with the defaults of those that are not given. Raises ValueError for an unknown name, and for a
    value that is not a number."""
    unknown = sorted(set(given) - set(POLICY))
    if unknown:
        raise ValueError("the policy has no {}; there are {}".format(", ".join(unknown), ", ".join(POLICY)))
    return dict(POLICY, **{name: _limit(name, value) for name, value in given.items()})


def _limit(name: str, value: Any) -> Any:
    if value is None and name == "max_gap_us":
        return None
    found = value
    if isinstance(value, str):  # `-e` and templates make texts of numbers
        with contextlib.suppress(ValueError):
            found = float(value) if "." in value else int(value)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not found >= 0:
        raise ValueError(f"{name} of the policy is {value!r}, and must be a number that is not negative")
    return found


def now() -> str:
    """The time in UTC, with milliseconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --------------------------------------------------------------------------------------------------------- the files


def run_file(directory: str) -> str:
    return os.path.join(directory, "run.json")


def host_file(directory: str, host: str) -> str:
    """The file of a host. A name of the inventory may have a slash or begin with a dot; a file must not."""
    name = host.replace("%", "%25").replace("/", "%2F")
    return os.path.join(directory, "hosts", ("%2E" + name[1:] if name.startswith(".") else name) + ".json")


def read(path: str) -> Json | None:
    """The document of a file; ``None`` if there is no file. Raises OSError, and ValueError if it is no document."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read, so what it says is not known: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object, so what it says is not known")
    return found


def write(path: str, document: Json) -> None:
    """Replace the file in one act, and have it on the disk when this returns. Raises OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_hosts(directory: str) -> dict[str, Json]:
    """What became of each host, by its name."""
    place = os.path.join(directory, "hosts")
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    found = [read(os.path.join(place, name)) for name in names if name.endswith(".json") and not name.startswith(".")]
    return {each["host"]: each for each in found if each}


def open_runs(directory: str, release: str) -> list[str]:
    """The directories below ``directory`` of runs to a release that have not ended, the newest last."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    runs = [(read(run_file(os.path.join(directory, name))), os.path.join(directory, name)) for name in sorted(names)]
    mine = [(run["started"], path) for run, path in runs if run and run["release"] == release and not run.get("ended")]
    return [path for _started, path in sorted(mine)]


def idle_s(run: Json, hosts: Mapping[str, Json]) -> float:
    """Seconds since anything was recorded of the run."""
    times = [each.get(key) for each in (run, *hosts.values()) for key in ("started", "continued", "ended", "soaked")]
    newest = max((found for each in times if (found := summary.instant(each)) is not None), default=0.0)
    return datetime.datetime.now(datetime.timezone.utc).timestamp() - newest


# -------------------------------------------------------------------------------------------------------- the decisions


def classify(result: Json, unreachable: bool = False) -> tuple[str, str]:
    """State and reason of a host whose task failed with this result."""
    if unreachable or result.get("unreachable"):
        return UNREACHABLE, result.get("msg") or "the host cannot be reached"
    state = ROLLED_BACK if result.get("outcome") == "rolled_back" else FAILED
    said = (result.get("error") or {}).get("message")  # without the hint, which has a place of its own in the document
    return state, said or result.get("msg") or "the task failed"


def outcome_since(
    baseline: Json | None, status: Json, release: str | None
) -> tuple[str | None, str | None, Json | None]:
    """What the journal of a host says about an upgrade of which only the beginning is known.

    ``release``: the one that was asked for, if that is known; ``baseline``: the newest ended upgrade (``last``) before
    it began; ``status``: the document of `status` now. Returns state, reason and report; the state is ``None`` if the
    upgrade never began."""
    last = status["last"]
    if {"last", "unfinished"} & set(status.get("unknown_fields") or ()):
        return FAILED, "its journal cannot be read; `ovs-hotswap status` has the cause", None
    if status["unfinished"]:
        phase, failure = status["unfinished"]["phase"], status["unfinished"]["failure"]
        why = f"an upgrade is under way or was interrupted (phase {phase}{': ' + failure if failure else ''})"
        return (
            FAILED,
            why + "; `ovs-hotswap status` shows it, `ovs-hotswap resume` or `ovs-hotswap rollback` ends it",
            None,
        )
    if last == baseline or last is None:
        return None, None, None
    report = dict(last, active=status["active"], steps=[])
    if release is not None and last["release"] != release:
        why = "another upgrade, to {}, has ended on the host since; `ovs-hotswap status` shows it as `last`"
        return FAILED, why.format(last["release"]), report
    if last["committed"]:
        return UPGRADED, None, report
    return ROLLED_BACK, "the upgrade was put back while nothing followed it; the host's log has the cause", report


def reopened(record: Json) -> Json | None:
    """The record of a host with which a run is continued that had ended; ``None`` if the host is tried again from the
    beginning. An upgrade that the run has done stays one, so that the run can be undone."""
    if record["state"] in DONE:
        return dict(record, **dict.fromkeys(AFTERWARDS)) if record.get("reason") else record
    if record.get("begun"):
        return dict(record, state=RUNNING, ended=None, begun=None, **dict.fromkeys(AFTERWARDS))
    return None if record["state"] in LEFT_OUT else record


def gap_us(record: Json) -> float:
    """The longest handover of a VM of this host, in microseconds; 0 if none was moved."""
    moves = (record.get("report") or {}).get("moves") or {}
    return max(moves.values()) if moves else 0


def lost(record: Json) -> int:
    """How many frames the host reports as lost. A VM of which that is not known counts as one."""
    host = summary.host(record, "")
    return host.lost + len(host.lost_unknown)


def check_errors(record: Json) -> list[Json]:
    return [each for each in (record.get("check") or {}).get("findings") or [] if each.get("severity") == "error"]


def unhealthy(record: Json, policy: Json) -> list[str]:
    """Why an upgraded host is not as it must be; empty if it is."""
    found = [record["reason"]] if record.get("reason") else []
    limit = policy["max_gap_us"]
    if limit is not None and gap_us(record) > limit:
        found.append(f"a VM was without a switch for {gap_us(record):.0f} us, and at most {limit} are allowed")
    if lost(record) > policy["max_lost"]:
        found.append("frames were lost: {}, and at most {} may be".format(lost(record), policy["max_lost"]))
    errors = check_errors(record)
    if len(errors) > policy["max_check_errors"]:
        found.append("; ".join(each["text"] for each in errors))
    return found


def next_wave(hosts: Mapping[str, Json], batch: Iterable[str]) -> int:
    """The number of the wave that these hosts are: that of an interrupted wave if one of them is in it, else a new
    one."""
    waves = {name: record["wave"] for name, record in hosts.items() if isinstance(record.get("wave"), int)}
    again = [waves[name] for name in batch if name in waves]
    return max(again) if again else max(waves.values(), default=0) + 1


def settled(record: Json | None) -> bool:
    """Whether all is known of a host that must be: how it ended and, if it runs the release, how it is since."""
    if record is None or record["state"] == RUNNING:
        return False
    needed = ("report", "watch", "check") if record["state"] == UPGRADED else ("watch", "check")
    return record["state"] not in DONE or bool(record.get("reason")) or all(record.get(name) for name in needed)


def unsettled(hosts: Mapping[str, Json], ended: Iterable[str], begins: int | None, batch: Collection[str]) -> list[str]:
    """Hosts of which all must be known and is not: those of the wave that has ``ended``, and those of the waves before
    the one that ``begins``, unless they are in its batch."""
    wanted = dict.fromkeys(ended)
    for name, record in hosts.items():
        wave = record.get("wave")
        if begins is not None and name not in batch and (wave == CANARY or (isinstance(wave, int) and wave < begins)):
            wanted[name] = None
    return [name for name in wanted if not settled(hosts.get(name))]


def _some(texts: Collection[str]) -> str:
    """The first of them, and how many there are more: a reason is for people, and the summary has them all."""
    shown = "; ".join(list(texts)[:SHOWN])
    return shown if len(texts) <= SHOWN else f"{shown}; and {len(texts) - SHOWN} more"


def _named(hosts: Mapping[str, Json], names: Iterable[str]) -> str:
    return _some(["{}: {}".format(name, hosts[name].get("reason") or hosts[name]["state"]) for name in names])


def judge(
    hosts: Mapping[str, Json],
    policy: Json,
    waves_begin: bool = False,
    ended: Collection[str] = (),
    begins: int | None = None,
    batch: Collection[str] = (),
) -> list[str]:
    """Why the run must stop, given what became of its hosts so far; an empty list if it may continue.

    ``waves_begin``: whether a wave is about to begin, for which enough canaries are needed. ``ended``: the hosts of the
    wave that has just ended. ``begins`` and ``batch``: number and hosts of the wave that is about to begin."""
    found = []
    begun = [name for name in hosts if hosts[name]["state"] not in (SKIPPED, RUNNING)]
    bad = [name for name in begun if hosts[name]["state"] in LEFT_OUT]
    if len(bad) > policy["max_failed_hosts"]:
        found.append(
            "{} failed, and at most {} may ({})".format(_hosts(bad), policy["max_failed_hosts"], _named(hosts, bad))
        )
    elif begun and 100.0 * len(bad) / len(begun) > policy["max_failed_percent"]:
        found.append(
            "{} of {} failed, which is more than {} % ({})".format(
                len(bad), _hosts(begun), policy["max_failed_percent"], _named(hosts, bad)
            )
        )
    ill = {name: why for name in begun if hosts[name]["state"] in DONE and (why := unhealthy(hosts[name], policy))}
    if len(ill) > policy["max_unhealthy_hosts"]:
        texts = _some(["{}: {}".format(name, ", ".join(why)) for name, why in ill.items()])
        found.append(
            "{} upgraded and not healthy, and at most {} may be ({})".format(
                _are(ill), policy["max_unhealthy_hosts"], texts
            )
        )
    failed = [name for name in begun if hosts[name]["wave"] == CANARY and (name in bad or name in ill)]
    if not found and len(failed) > policy["max_failed_canaries"]:
        count = "1 canary" if len(failed) == 1 else f"{len(failed)} canaries"
        text = _named(hosts, failed)
        found.append(f"{count} failed, and at most {policy['max_failed_canaries']} may ({text})")
    unknown = unsettled(hosts, ended, begins, batch)
    if unknown:
        states = ["{}: {}".format(name, (hosts.get(name) or {}).get("state") or "no record") for name in unknown]
        found.append(f"what became of {_hosts(unknown)} is not known, and must be ({_some(states)})")
    canaries = [name for name in hosts if hosts[name]["wave"] == CANARY and hosts[name]["state"] in DONE]
    if waves_begin and len(canaries) < policy["min_canaries"]:
        found.append(
            "{} upgraded in this run, and at least {} must be before the waves begin".format(
                _are(canaries, "canary", "canaries"), policy["min_canaries"]
            )
        )
    return found


def _hosts(names: Collection[str]) -> str:
    return "1 host" if len(names) == 1 else f"{len(names)} hosts"


def _are(names: Collection[str], one: str = "host", many: str = "hosts") -> str:
    return f"1 {one} is" if len(names) == 1 else f"{len(names)} {many} are"
