"""The flow log of an instance before it ends on purpose, and what may be missing of it otherwise."""

from __future__ import annotations

import contextlib
import logging

from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch import flow_log
from ovs_hotswap.switch.ovsdb import ROOT_TABLES

log = logging.getLogger(__name__)

_FLUSH_S = 2.0
_QUICK_S = 1.0


def flush(host: Host, side: Side) -> str:
    """Have an instance that is about to end export what it holds. Returns what may be missing, in words; empty if
    nothing is. Never raises: the end of an instance waits for its records for ``_FLUSH_S`` at most."""
    export_s, instance = host.config.flowlog.export_s, host.instances[side]
    if not host.config.flowlog.on:
        return ""
    if instance.pid() is None:
        return "" if instance.release() is None else f"{may_lack(export_s, side)}: it ended by itself"
    try:
        with instance.database(_FLUSH_S, ROOT_TABLES) as database:
            if flow_log.remove(instance.paths.db_socket, _FLUSH_S):
                database.wait_pass(_FLUSH_S)
    except HotswapError as error:
        text = f"{may_lack(export_s, side)}: {error.message}"
        log.warning("%s", text)
        return text
    return ""


def may_lack(export_s: int, side: Side) -> str:
    """What is missing if an instance ended with counts that it had not exported, in words."""
    return f"flow log: up to {export_s} s of what instance {side} saw last may be missing"


def renew(host: Host, side: Side) -> None:
    """Have an instance send its templates again: it exports what it holds, and gathers again with none sent. The
    packets of a few milliseconds are not logged. Raises BusyError if other work on an instance is under way, and
    SwitchError."""
    with host.lock():
        socket = host.instances[side].paths.db_socket
        try:
            with host.instances[side].database(_FLUSH_S, ROOT_TABLES) as database:
                if flow_log.remove(socket, _FLUSH_S):
                    database.wait_pass(_FLUSH_S)
        finally:
            with contextlib.suppress(SwitchError):  # the cause is raised
                flow_log.put(socket, host.config.bridge, host.config.flowlog)


def lacking(host: Host, side: Side) -> bool:
    """Whether an instance has other rows than the configuration says. Raises SwitchError."""
    socket = host.instances[side].paths.db_socket
    return flow_log.lacks(socket, host.config.bridge, host.config.flowlog, _QUICK_S)


def ensure(host: Host, side: Side) -> bool:
    """Give an instance its rows if it lacks them: a command that was killed may have left it without. Returns whether
    it did lack them. Raises BusyError and SwitchError."""
    if not lacking(host, side):
        return False
    with host.lock():
        return flow_log.put(host.instances[side].paths.db_socket, host.config.bridge, host.config.flowlog)
