"""Keeps what others have programmed on the active instance, and gives it back when the instance is started again."""

from __future__ import annotations

import contextlib

from ovs_hotswap.clone import database
from ovs_hotswap.clone.dumps import Pipeline
from ovs_hotswap.clone.kept_pipelines import from_json, give_back, kept_bridges, to_json
from ovs_hotswap.clone.pipeline import BridgePipeline
from ovs_hotswap.errors import HostError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import RESTORE_WAIT
from ovs_hotswap.switch.ovsdb import ROOT_TABLES
from ovs_hotswap.switch.paths import read_record
from ovs_hotswap.system import files

_FRESH_S = 180.0  # what a watchdog keeps is younger


def keep(host: Host, side: Side) -> None:
    """Write the pipelines of an instance to a file. Raises SwitchError, HostError."""
    paths = host.instances[side].paths
    record = read_record(paths.record)
    if record is not None:
        names = kept_bridges(database.read(paths).rows)
        found = {name: BridgePipeline(host.system, paths, name).read() for name in names}
        host.system.write_atomic(host.config.flows_file(side), to_json(record.started, found).decode())


def drop_others(host: Host, side: Side) -> None:
    """Remove the file if it is not of the process that the instance had last: then it is older than an upgrade. An
    attempt to start it that failed has left no record. To be called before the instance is started again. Raises
    HostError."""
    record = read_record(host.instances[side].paths.record)
    with contextlib.suppress(HostError, ValueError):
        found = _read(host, side)
        if found is None or record is None or found[0] == record.started:
            return
    path = host.config.flows_file(side)
    with files(path):
        path.unlink(missing_ok=True)


def waits(host: Host, side: Side) -> bool:
    """Whether a running instance still waits for its flows, as when the process that started it was killed. Raises
    SwitchError."""
    with host.instances[side].database(tables=ROOT_TABLES) as rows:
        return rows.other_config().get(RESTORE_WAIT) == "true"


def go_on(host: Host, side: Side) -> list[str]:
    """Give an instance that was started with its last database the flows that it had, have it forward, and lead the
    host's programs to it. Returns what it did not get back, in words: that keeps it from nothing else. It may be
    repeated. The caller holds the lock. Raises SwitchError, HostError."""
    lacking = _give_back(host, side)
    with host.instances[side].database(tables=ROOT_TABLES) as rows:
        rows.set_other_config({RESTORE_WAIT: None})
    host.cloning.well_known.lead_to(host.instances[side].paths)
    return lacking


def _give_back(host: Host, side: Side) -> list[str]:
    paths = host.instances[side].paths
    rows, lacking = database.read(paths).rows, []
    try:
        found = _read(host, side)
    except (HostError, ValueError) as error:
        return [f"{host.config.flows_file(side)}: {error}"]
    kept = {} if found is None else found[1]
    if kept and (age := host.system.wall() - _written(host, side)) > _FRESH_S:
        lacking.append(f"the flows are those of {age / 60:.0f} minutes ago, when they were last read")
    for name in kept_bridges(rows):
        try:
            if name not in kept:
                raise SwitchError("they were not kept")
            give_back(BridgePipeline(host.system, paths, name), rows, name, kept[name])
        except SwitchError as error:
            lacking.append(f"bridge {name} does not have the flows that it had: {error.message}")
    if kept and (record := read_record(paths.record)) is not None:  # they are this process's from now on
        host.system.write_atomic(host.config.flows_file(side), to_json(record.started, kept).decode())
    return lacking


def _written(host: Host, side: Side) -> float:
    path = host.config.flows_file(side)
    with files(path):
        return path.stat().st_mtime


def _read(host: Host, side: Side) -> tuple[float, dict[str, Pipeline]] | None:
    path = host.config.flows_file(side)
    with files(path):
        return from_json(path.read_bytes()) if path.exists() else None
