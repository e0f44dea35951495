"""Takes over a VM that a switch serves without the broker, with what the broker itself may not do: looking into both
processes and stopping QEMU (``adopt``). The broker's part is ``entering``.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from ovs_hotswap.adopt import taking
from ovs_hotswap.adopt.fetching import Fetched, fetch
from ovs_hotswap.adopt.guard import Guarded, guarded
from ovs_hotswap.adopt.processes import ForeignProcess
from ovs_hotswap.adopt.snapshot import Snapshot
from ovs_hotswap.backends import MoveResult, VmStatus
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.errors import BrokerError, ConnectionLost, StateUnknown, TryAgain
from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser.channel import OwnedFd

log = logging.getLogger(__name__)

ATTEMPTS = 8
_PAUSE_S = 0.2
_LEAVES_S = 2.0
_DESTROYS_S = 0.1  # DPDK closes the socket before it destroys the device (``vhost_user_read_cb``)
_SERVED_S = 15.0


@dataclass(frozen=True, slots=True)
class Adopted:
    """A VM that was taken over, in so many ``attempts``. ``stopped_s``: how long its QEMU stood still, in seconds."""

    vm: VmStatus
    move: MoveResult
    stopped_s: float
    attempts: int


def prepare(client: BrokerClient, name: str, paths: InstancePaths, to: Side, system: System) -> Snapshot:
    """Park a VM that the switch with ``paths`` serves without the broker on side ``to``, and return what ``adopt``
    needs. ``cancel`` undoes it.

    A switch that is given a VM's rings distributes all queues among its threads again, which stop for that. So many VMs
    are best prepared before the first one is moved.

    Raises TryAgain if QEMU or the switch was active, NotServed, and StateUnknown or BrokerError if the VM cannot be
    taken over.
    """
    snapshot = taking.take(paths, name, system)
    with contextlib.closing(fetch(snapshot)) as fetched:
        _prepare(client, name, snapshot, fetched, to)
    return snapshot


def _prepare(client: BrokerClient, name: str, snapshot: Snapshot, fetched: Fetched, to: Side) -> None:
    client.adopt_prepare(name, snapshot.model_dump_json(), to, [each.fileno() for each in fetched.descriptors()])


def adopt(
    client: BrokerClient, name: str, paths: InstancePaths, to: Side, system: System, *,
    ready: Callable[[], None] = lambda: None, attempts: int = ATTEMPTS, prepared: Snapshot | None = None,
) -> Adopted:  # fmt: skip
    """Move a VM that the switch with ``paths`` serves without the broker to side ``to``, with no disconnect. If that is
    the side of this switch, the VM stays with it, and has no network until the switch has connected to the broker.

    ``ready`` is called when the VM is parked on side ``to``: it returns when that switch receives from the VM. It is
    not called for what was ``prepared`` before, for which the caller has waited.

    Raises TryAgain if QEMU or the switch was active in every attempt, and StateUnknown, BrokerError or what ``ready``
    raises if the VM cannot be taken over. In all these cases the VM is served as before. If the broker has ended in the
    meantime, the VM gets a new connection by the next broker, and BrokerError says so.
    """
    for number in range(1, attempts + 1):
        try:
            return _attempt(client, name, paths, to, system, ready, number, prepared if number == 1 else None)
        except TryAgain as error:
            if number == attempts:
                raise
            log.info("vm %s: attempt %d: %s", name, number, error.message)
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _attempt(
    client: BrokerClient, name: str, paths: InstancePaths, to: Side, system: System, ready: Callable[[], None],
    number: int, prepared: Snapshot | None,
) -> Adopted:  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(cancel, client, name)
        first = taking.take(paths, name, system)
        fetched = stack.enter_context(contextlib.closing(fetch(first)))
        if prepared is None:
            _prepare(client, name, first, fetched, to)
            ready()
        elif not first.same_connection(prepared):
            raise TryAgain(f"vm {name}: QEMU has changed the connection since it was prepared")
        moved, section = _enter(client, name, first, fetched)
        return Adopted(client.adopt_finish(name), moved, section.stopped_s, number)


def _enter(client: BrokerClient, name: str, snapshot: Snapshot, fetched: Fetched) -> tuple[MoveResult, Guarded]:
    client.status()  # a connection that is open already; no other broker is asked
    try:
        with guarded(snapshot, fetched) as section:
            return client.adopt_enter(name, [each.fileno() for each in fetched.ends]), section
    except ConnectionLost as error:
        send_away(snapshot, fetched.switch_end)
        raise BrokerError(
            f"vm {name}: the broker ended while the VM was taken over; its switch connects to the next broker",
            hint="`ovs-hotswap broker start`, then `ovs-hotswap vm list`",
        ) from error


def cancel(client: BrokerClient, name: str) -> None:
    """Undo what is prepared; nothing is prepared any longer if the VM was taken over or the broker has ended."""
    with contextlib.suppress(BrokerError):
        client.adopt_cancel(name)


def send_away(snapshot: Snapshot, switch_end: OwnedFd) -> None:
    """Have a switch leave the connection with QEMU. It connects again at the same path, where a broker listens.

    This is for a VM of which it is not known how far a broker came that has ended. ``switch_end`` keeps QEMU's
    connection open until the switch is off the rings; the caller closes it after this.
    """
    with socket.socket(fileno=switch_end.detach()) as end:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RD)
        deadline = time.monotonic() + _LEAVES_S
        with contextlib.suppress(StateUnknown), ForeignProcess(snapshot.switch.pid) as switch:
            while switch.connections(snapshot.socket, listener=False) and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(_DESTROYS_S)


def reconnect(client: BrokerClient, name: str, paths: InstancePaths, to: Side, system: System) -> VmStatus:
    """Take a VM over by a new connection of its QEMU, for a VM whose connection cannot be entered.

    The guest has no network for some ten milliseconds, and may see its link go down and up. Raises StateUnknown and
    BrokerError.
    """
    pid = system.read_pid(paths.vswitchd_pid)
    if pid is None:
        raise StateUnknown(f"{paths.vswitchd_pid}: no ovs-vswitchd runs")
    path = taking.read_port(paths, name).socket
    with ForeignProcess(pid) as switch:
        found = switch.connections(path, listener=False)
        if len(found) != 1:
            raise StateUnknown(f"{path}: the switch has {len(found)} connections to it")
        end = switch.fetch(found[0], own=True)
        try:
            return client.adopt_reconnect(name, to, end.fileno())
        finally:
            end.close()
