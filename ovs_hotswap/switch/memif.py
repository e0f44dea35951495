"""A memif: the shared-memory link between two instances while both live (DPDK drivers/net/memif)."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.switch.memory import data_room
from ovs_hotswap.switch.ovsdb import PortSpec

_BUFFER = 2048  # bytes: ETH_MEMIF_DEFAULT_PKT_BUFFER_SIZE
_CONNECTED = "03"  # SS_CONNECTED, include/uapi/linux/net.h


def memif_spec(name: str, ofport: int, socket: Path, *, device: str, server: bool, mtu: int, queues: int) -> PortSpec:
    """Return one end of a link that meets the other at ``socket``. ``device``: what DPDK calls it. ``mtu``: in bytes,
    with the tags that frames have on the link. ``queues``: receive queues.

    A memif has as many receive queues as the other end has transmit queues, and Open vSwitch makes one more of these
    than it has PMD threads. A frame must fit into one buffer: the driver would make a chain of several
    (drivers/net/memif, eth_memif_rx), of which Open vSwitch reads the first one only.
    """
    role = "server" if server else "client"
    devargs = f"net_memif_{device},role={role},id=0,socket-abstract=no,socket={socket}"
    if data_room(mtu) > _BUFFER:
        devargs += f",bsize={data_room(mtu)}"
    return PortSpec(name, "dpdk", ofport, {"dpdk-devargs": devargs, "n_rxq": str(queues)}, mtu=mtu)


def connected(client: int, socket: Path) -> bool:
    """Whether the client's process ``client`` is connected to the server, which listens at ``socket``.

    The table of the client's network namespace has the connection: the socket that the server accepts belongs to this
    namespace (net/unix/af_unix.c, unix_stream_connect). The database reports a link as up to five seconds late
    (lib/netdev-dpdk.c, DPDK_PORT_WATCHDOG_INTERVAL).
    """
    try:
        table = Path(f"/proc/{client}/net/unix").read_text()
    except OSError:  # it has ended
        return False
    return has_connection(table, str(socket))


def has_connection(table: str, path: str) -> bool:
    """Whether ``table``, the text of /proc/net/unix, has the server's end of a connection through the socket ``path``:
    an accepted socket has the path of the listening one."""
    rows = (line.split(maxsplit=7) for line in table.splitlines()[1:])
    return any(len(row) == 8 and row[7] == path and row[5] == _CONNECTED for row in rows)
