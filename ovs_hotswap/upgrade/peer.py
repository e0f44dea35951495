"""The peer link: a DPDK memif between the two instances while both live."""

from __future__ import annotations

from contextlib import ExitStack

from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import PEER
from ovs_hotswap.upgrade.host import Host

_UP_S = 15.0


def join(host: Host) -> None:
    """Have the link up. Raises SwitchError.

    A memif client connects when its port is made and not again (DPDK drivers/net/memif, memif_dev_start): one that
    finds no server fails, and one whose server was made anew never comes back. So both ends are made anew unless the
    link is up, the server's (side a) first.
    """
    with ExitStack() as stack:  # with hundreds of ports it takes a second to connect
        databases = {side: stack.enter_context(host.instances[side].database()) for side in Side}

        def up() -> bool:
            ends = [database.interfaces().get(PEER) for database in databases.values()]
            return all(end is not None and end.link_state == "up" for end in ends)

        if up():
            return
        for database in databases.values():
            if database.remove_port(host.config.bridge, PEER):
                database.wait_ports([], host.config.upgrade.ready_s)  # else the new port might pass for the old one
        host.peer_socket.unlink(missing_ok=True)  # a server that was killed left it, and the next one would refuse it
        for side, database in databases.items():
            database.add_port(host.config.bridge, host.peer_spec(side))
            database.wait_ports([PEER], host.config.upgrade.ready_s)
        host.wait(up, _UP_S, lambda: "the peer link does not come up", on=Side)


def part(host: Host, side: Side) -> None:
    """Take the side's end off; its switch does it soon. Raises SwitchError."""
    with host.instances[side].database() as database:
        database.remove_port(host.config.bridge, PEER)
