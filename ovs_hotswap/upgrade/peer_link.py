"""The peer link: a DPDK memif between the two instances while both live."""

from __future__ import annotations

from contextlib import ExitStack

from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import PEER
from ovs_hotswap.switch import memif

_UP_S = 15.0


def join(host: Host) -> None:
    """Bring the link up. Raises SwitchError.

    A memif client connects only when its port is made (DPDK drivers/net/memif, memif_dev_start): a client that finds no
    server fails, and a client whose server is made again never reconnects. So unless the link is up, both ends are made
    again, the server's (side a) first.

    The database reports a link as up to five seconds late (lib/netdev-dpdk.c, DPDK_PORT_WATCHDOG_INTERVAL). So the
    connection of the two ends is looked at directly. A later step proves that frames pass, when there are flows for
    them.
    """
    with ExitStack() as stack:  # with hundreds of ports it takes a second to connect
        databases = {side: stack.enter_context(host.instances[side].database()) for side in Side}

        def up() -> bool:
            ends = [database.interfaces().get(PEER) for database in databases.values()]
            made = all(end is not None and (end.ofport or 0) > 0 and not end.error for end in ends)
            return made and connected(host)

        if up():
            return
        for database in databases.values():
            if database.remove_port(host.config.bridge, PEER):
                database.wait_ports([], host.config.upgrade.ready_s)  # so that the new port is not taken for the old
        host.peer_socket.unlink(missing_ok=True)  # a killed server leaves it behind, and the next one would refuse it
        for side, database in databases.items():
            database.add_port(host.config.bridge, host.peer_spec(side))
            database.wait_ports([PEER], host.config.upgrade.ready_s)
        host.wait(up, _UP_S, lambda: "the peer link does not come up", on=Side)


def connected(host: Host) -> bool:
    """Whether the client (side b) is connected to the server, which listens on ``Host.peer_socket``."""
    pid = host.instances[Side.B].pid()
    return pid is not None and memif.connected(pid, host.peer_socket)


def part(host: Host, side: Side) -> None:
    """Remove the side's end of the link from the database; its switch follows soon. Raises SwitchError."""
    with host.instances[side].database() as database:
        database.remove_port(host.config.bridge, PEER)
