"""A small OpenFlow 1.3 controller that behaves towards a bridge as Neutron's agent does: the bridges connect to it, it
knows each by its datapath id, and it asks for the flows of table 23 (Open Networking Foundation, TS-012).

An agent to which table 23 of br-int is empty believes that Open vSwitch was restarted, and programs every port again
(neutron, plugins/ml2/drivers/openvswitch/agent: common/constants.py, CANARY_TABLE; openflow/native/br_int.py,
check_canary_table; ovs_neutron_agent.py, check_ovs_status).

Run as a program, it listens where the agent does until it is killed, asks every bridge five times a second, and prints
a line for each answer: the datapath id and the number of flows.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

_HEADER = struct.Struct("!BBHI")  # version, type, length, transaction
_VERSION = 4
_HELLO, _ECHO, _ECHO_REPLY, _FEATURES, _FEATURES_REPLY, _MULTIPART, _MULTIPART_REPLY = 0, 2, 3, 5, 6, 18, 19
_OFPMP_FLOW, _ALL, _ANY = 1, 0xFF, 0xFFFFFFFF
_ADDRESS = ("127.0.0.1", 6633)  # of_listen_address and of_listen_port
_CANARY_TABLE = 23
_PERIOD_S = 0.2


class Bridge:
    """One connection of a bridge. ``peer``: the process at its other end cannot be seen over TCP; ``port`` can."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(10)
        self.port = connection.getpeername()[1]
        self._send(_HELLO, 0)
        self._send(_FEATURES, 1)
        self.datapath_id = self._answer(_FEATURES_REPLY)[:8].hex()

    def flows(self, table: int) -> int:
        """The number of flows in a table. Raises OSError if the connection is over."""
        match = struct.pack("!HH4x", 1, 4)
        body = struct.pack("!B3xII4xQQ", table, _ANY, _ANY, 0, 0) + match
        self._send(_MULTIPART, 2, struct.pack("!HH4x", _OFPMP_FLOW, 0) + body)
        answer, count = self._answer(_MULTIPART_REPLY)[8:], 0
        while answer:
            answer, count = answer[struct.unpack_from("!H", answer)[0] :], count + 1
        return count

    def close(self) -> None:
        self._connection.close()

    def _send(self, kind: int, transaction: int, body: bytes = b"") -> None:
        self._connection.sendall(_HEADER.pack(_VERSION, kind, _HEADER.size + len(body), transaction) + body)

    def _answer(self, wanted: int) -> bytes:
        while True:
            _, kind, size, transaction = _HEADER.unpack(self._read(_HEADER.size))
            body = self._read(size - _HEADER.size)
            if kind == _ECHO:
                self._send(_ECHO_REPLY, transaction, body)
            if kind == wanted:
                return body

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._connection.recv(size - len(data))
            if not part:
                raise ConnectionError("the bridge has closed the connection")
            data += part
        return data


class Agent:
    """The controller. ``bridges``: those connected now, by datapath id; ``seen``: how many have ever connected."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.bridges: dict[str, Bridge] = {}
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def canary(self, datapath_id: str) -> int | None:
        """The number of flows in table 23; ``None`` if the bridge is not connected. A connection that is over is
        forgotten."""
        bridge = self.bridges.get(datapath_id)
        if bridge is None:
            return None
        try:
            return bridge.flows(_CANARY_TABLE)
        except OSError:
            if self.bridges.get(datapath_id) is bridge:
                del self.bridges[datapath_id]
            return None

    def close(self) -> None:
        self._listener.close()
        for bridge in list(self.bridges.values()):
            bridge.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                bridge = Bridge(connection)
                self.seen += 1
                self.bridges[bridge.datapath_id] = bridge


def serve() -> None:
    """Be the agent, and tell what it is answered."""
    agent = Agent(socket.create_server(_ADDRESS))
    while True:
        for datapath_id in list(agent.bridges):
            if (count := agent.canary(datapath_id)) is not None:
                print(datapath_id, count, flush=True)
        time.sleep(_PERIOD_S)


if __name__ == "__main__":
    serve()
