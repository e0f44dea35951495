"""What there is of traces in the switches of a host, and its end. A trace is made by ``tracing``; this keeps one from
ever being in the way of an upgrade."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ovs_hotswap.config import Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.stock.survey import running_paths
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.trace_mirror import TraceMirror
from ovs_hotswap.switch.trace_rows import Left

CLEAN = "`ovs-hotswap trace --clean`"


def left(host: Host) -> tuple[Left, ...]:
    """Return what there is of traces in all databases that answer."""
    return tuple(each for mirror in _mirrors(host) for each in _tried(mirror.left))


def remove(host: Host) -> tuple[Left, ...]:
    """Remove all traces, those that are under way as well, and return what there was. No lock is needed, because only
    rows of ours are removed. A database that does not answer is passed over."""
    return tuple(each for mirror in _mirrors(host) for each in _tried(mirror.remove))


def check(host: Host) -> list[Finding]:
    """Report traces: an upgrade ends them."""
    return [Finding("trace", Severity.WARNING, f"bridge {each.bridge} has {words(host, each)}: an upgrade removes it",
                    CLEAN) for each in left(host)]  # fmt: skip


def abandoned(host: Host) -> list[str]:
    """Return, in words, the traces whose process has ended without removing them."""
    return [f"bridge {each.bridge} has {words(host, each)}" for each in left(host) if not _lives(host, each)]


def _lives(host: Host, found: Left) -> bool:
    return found.owner is not None and host.system.is_still(found.owner.pid, found.owner.born)


def words(host: Host, found: Left) -> str:
    """Return what a trace is, and whether it is under way."""
    owner = found.owner
    if owner is None:
        return "the copies of a trace"
    if _lives(host, found):
        return f"a trace of {owner.vm}, under way (process {owner.pid})"
    return f"what a trace of {owner.vm} has left, whose process ({owner.pid}) has ended"


def _mirrors(host: Host) -> Iterator[TraceMirror]:
    places = [instance.paths for instance in host.instances.values()]
    if host.config.program is Program.CLONE and host.recorded_active() is None:
        places.append(running_paths(host.config, host.system))
    yield from (TraceMirror(paths, host.system) for paths in places if _may_answer(paths))


def _may_answer(paths: InstancePaths) -> bool:
    return paths.db_socket.exists()


def _tried(act: Callable[[], tuple[Left, ...]]) -> tuple[Left, ...]:
    try:
        return act()
    except SwitchError:
        return ()
