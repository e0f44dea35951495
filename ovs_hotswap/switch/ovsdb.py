"""The configuration database of one instance, over ovsdbapp.

Transactions go to ovsdb-server only: apart from ``wait_ports``, nothing here waits for ovs-vswitchd, because its main
thread may be blocked. Every call has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ovsdbapp import exceptions as ovsdbapp_exceptions
from ovsdbapp.backend import ovs_idl
from ovsdbapp.backend.ovs_idl import command, connection, idlutils, transaction

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.rpc import NoAnswer, call, transact

SCHEMA = "Open_vSwitch"
ROOT_TABLES = ("Open_vSwitch",)  # enough for ``SwitchDb.state`` and the methods for other_config
INTERFACE_TABLES = (*ROOT_TABLES, "Interface")  # enough for ``SwitchDb.interfaces``
TABLES = (*ROOT_TABLES, "Bridge", "Port", "Interface")
FAILED_OFPORT = -1  # ovs-vswitchd.conf.db(5), Interface.ofport: the port could not be created
_POLL_S = 0.01
_LOOK_S = 1.0  # until a new count is visible here, and an idle ovs-vswitchd has looked at its configuration

# Failures are raised as SwitchError; without a handler Python would print ovsdbapp's own records of them as well.
logging.getLogger("ovsdbapp").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A port with its interface. ``mtu``: in bytes; ``None``: the switch's. ``found``: further options of a new one."""

    name: str
    type: str
    ofport: int
    options: Mapping[str, str] = field(default_factory=dict)
    other_config: Mapping[str, str] = field(default_factory=dict)
    mtu: int | None = None
    found: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A bridge and all its ports, without the local port, which every bridge has.

    ``hwaddr`` is the MAC address of the local port. ``sockets`` is the directory in which only ovs-hotswap makes
    sockets of VMs.
    """

    name: str
    hwaddr: str
    ports: tuple[PortSpec, ...] = ()
    datapath_type: str = "netdev"
    fail_mode: str = "secure"
    other_config: Mapping[str, str] = field(default_factory=dict)
    sockets: str = ""


@dataclass(frozen=True, slots=True)
class InterfaceStatus:
    """What ovs-vswitchd reports about an interface. A field is ``None`` if it has reported nothing yet."""

    ofport: int | None
    error: str | None
    link_state: str | None
    admin_state: str | None
    type: str
    options: Mapping[str, str]
    mtu: int | None
    statistics: Mapping[str, int]
    ofport_request: int | None = None

    @property
    def misnumbered(self) -> bool:
        """Whether the interface has another OpenFlow number than was requested for it."""
        return self.ofport_request is not None and (self.ofport or 0) > 0 and self.ofport != self.ofport_request


@dataclass(frozen=True, slots=True)
class SwitchState:
    """What ovs-vswitchd reports about itself. ``pending``: it has not applied the newest configuration yet."""

    dpdk_initialized: bool
    dpdk_version: str | None
    pending: bool


Shape = Mapping[str, Any]
"""The columns of an interface from which ovs-vswitchd configures it, as they are in the database."""
SHAPE_COLUMNS = ("type", "options", "mtu_request")


class _Api(ovs_idl.Backend):  # type: ignore[misc]  # ovsdbapp has no types
    """ovsdbapp's back end with a connection per object. ovsdbapp has one per class, which two instances would share.

    Its transactions do not wait for ovs-vswitchd, as those of ovsdbapp's ``open_vswitch`` API do.
    """

    schema = SCHEMA
    lookup_table = idlutils._LOOKUP_TABLE
    ovsdb_connection = None


class _Command(command.BaseCommand):  # type: ignore[misc]
    """A change of rows. ``edit`` returns whether it changed anything; if so, ``next_cfg`` is incremented, by which
    ``wait_ports`` knows whether ovs-vswitchd has seen the change."""

    def edit(self, txn: Any, root: Any) -> bool:
        raise NotImplementedError

    def run_idl(self, txn: Any) -> None:
        rows = list(self.api.tables["Open_vSwitch"].rows.values())
        root = rows[0] if rows else self.insert(txn, "Open_vSwitch", bridges=[], other_config={}, external_ids={})
        self.result = self.edit(txn, root)
        if self.result and rows:
            root.increment("next_cfg")

    def insert(self, txn: Any, table: str, **columns: Any) -> Any:
        """Return a new row. The IDL cannot read a column of it before one was set."""
        row = txn.insert(self.api.tables[table])
        for column, value in columns.items():
            setattr(row, column, value)
        return row

    def find_bridge(self, root: Any, name: str) -> Any:
        return next((bridge for bridge in root.bridges if bridge.name == name), None)

    def put_port(self, txn: Any, known: Mapping[str, Any], spec: PortSpec) -> tuple[Any, bool]:
        """Make the port's row, or bring the row of this name to ``spec``; return it and whether anything changed."""
        port, changed = known.get(spec.name), False
        if port is None:
            interface = self.insert(txn, "Interface", name=spec.name, options=dict(spec.found))
            port, changed = self.insert(txn, "Port", name=spec.name, interfaces=[interface]), True
        return port, _bring(port.interfaces[0], _wanted(spec)) or changed


class _PutBridge(_Command):
    def __init__(self, api: Any, spec: BridgeSpec) -> None:
        super().__init__(api)
        self.spec = spec

    def edit(self, txn: Any, root: Any) -> bool:
        spec = self.spec
        bridge, changed = self.find_bridge(root, spec.name), False
        if bridge is None:
            bridge, changed = self.insert(txn, "Bridge", name=spec.name, ports=[]), True
            root.bridges = [*root.bridges, bridge]
        wanted = {
            "datapath_type": spec.datapath_type,
            "fail_mode": [spec.fail_mode],
            "other_config": {**spec.other_config, "hwaddr": spec.hwaddr},
        }
        changed = _bring(bridge, wanted) or changed
        known = {port.name: port for port in bridge.ports}
        local = PortSpec(spec.name, "internal", 0)
        ports = [self.put_port(txn, known, port) for port in (local, *spec.ports)]
        names = {local.name, *(port.name for port in spec.ports)}
        foreign = [port for port in bridge.ports if port.name not in names and not _is_ours(port, spec.sockets)]
        if known.keys() != names | {port.name for port in foreign}:
            bridge.ports = [*(port for port, _ in ports), *foreign]
            changed = True
        return changed or any(edited for _, edited in ports)


class _PutPort(_Command):
    def __init__(self, api: Any, bridge: str, spec: PortSpec) -> None:
        super().__init__(api)
        self.bridge, self.spec = bridge, spec

    def edit(self, txn: Any, root: Any) -> bool:
        bridge = self.find_bridge(root, self.bridge)
        if bridge is None:
            raise SwitchError(f"there is no bridge {self.bridge} to add the port {self.spec.name} to")
        known = {port.name: port for port in bridge.ports}
        port, changed = self.put_port(txn, known, self.spec)
        if self.spec.name not in known:
            bridge.ports = [*bridge.ports, port]
        return changed


class _RemovePort(_Command):
    def __init__(self, api: Any, bridge: str, name: str) -> None:
        super().__init__(api)
        self.bridge, self.name = bridge, name

    def edit(self, txn: Any, root: Any) -> bool:
        bridge = self.find_bridge(root, self.bridge)
        if bridge is None or self.name not in {port.name for port in bridge.ports}:
            return False
        bridge.ports = [port for port in bridge.ports if port.name != self.name]
        return True


class _PutBack(_Command):
    def __init__(self, api: Any, shapes: Mapping[str, Shape]) -> None:
        super().__init__(api)
        self.shapes = shapes

    def edit(self, txn: Any, root: Any) -> bool:
        rows = [row for row in self.api.tables["Interface"].rows.values() if row.name in self.shapes]
        return any([_assign(row, self.shapes[row.name]) for row in rows])


class _SetOtherConfig(_Command):
    def __init__(self, api: Any, values: Mapping[str, str | None], notes: Mapping[str, str]) -> None:
        super().__init__(api)
        self.values, self.notes = values, notes

    def edit(self, txn: Any, root: Any) -> bool:
        values = {**root.other_config, **self.values}
        columns = {
            "other_config": {key: value for key, value in values.items() if value is not None},
            "external_ids": {**owned.remember(getattr(root, "external_ids", {}), self.values), **self.notes},
        }
        return _assign(root, columns)


def _wanted(spec: PortSpec) -> dict[str, Any]:
    """Return the columns that ovs-hotswap writes to a port's interface."""
    return {
        "type": spec.type,
        "ofport_request": [spec.ofport] if spec.ofport else None,
        "options": spec.options,
        "other_config": spec.other_config,
        "mtu_request": None if spec.mtu is None else [spec.mtu],
    }


def _bring(row: Any, wanted: Mapping[str, Any]) -> bool:
    """Bring what ovs-hotswap wrote to a row to ``wanted``, and keep the rest; return whether anything changed."""
    current = {column: getattr(row, column, {}) for column in (*wanted, "external_ids")}
    return _assign(row, owned.merged(current, wanted))


def _is_ours(port: Any, sockets: str) -> bool:
    columns = ("type", "options", "external_ids")
    return any(
        owned.made_here({column: getattr(interface, column) for column in columns}, sockets)
        for interface in port.interfaces
    )


def _assign(row: Any, columns: Mapping[str, Any]) -> bool:
    """Set the columns that differ; return whether any did."""
    changed = False
    for column, value in columns.items():
        if getattr(row, column, None) != value:
            setattr(row, column, value)
            changed = True
    return changed


class SwitchDb:
    """A connection to one instance's ovsdb-server, to be used as a context manager.

    ``timeout`` (seconds) limits connecting, each transaction and each reading. All methods raise SwitchError, and after
    the deadline NoAnswer: the outcome of a change is then unknown, and the caller reads again over a new connection.
    ``lives`` returns whether ovs-vswitchd can act on a change, so that ``wait_ports`` does not wait in vain.
    """

    def __init__(
        self, socket: Path, timeout: float = 5.0, lives: Callable[[], bool] = lambda: True,
        tables: Sequence[str] = TABLES,
    ) -> None:  # fmt: skip
        self._socket = socket
        self._tables = tables
        self._timeout = timeout
        self._lives = lives
        self._api: Any = None
        self._connection: Any = None
        self._stuck = False

    def __enter__(self) -> SwitchDb:
        schema = call(self._socket, "get_schema", [SCHEMA], timeout=self._timeout)
        helper = idlutils.create_schema_helper(schema)
        idl = connection.OvsdbIdl.from_server(f"unix:{self._socket}", SCHEMA, helper=helper, helper_tables=self._tables)
        self._connection = connection.Connection(idl, self._timeout)
        self._api = _Api(self._connection, start=False)
        try:
            self._connection.start()
        except ovsdbapp_exceptions.TimeoutException as error:
            idl.close()
            raise NoAnswer(f"{self._socket}: cannot read the database within {self._timeout:g} s") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The thread of a stuck connection ends when the server closes it; waiting for it would wait for the server.
        self._connection.stop(0 if self._stuck else self._timeout)

    def apply(self, spec: BridgeSpec) -> bool:
        """Bring the bridge and its ports to ``spec`` in one transaction; other ports of ovs-hotswap are removed.

        What ovs-hotswap did not write (``owned``) stays: settings of these ports, and the operator's ports. Returns
        whether anything changed; if not, no transaction is made. This does not wait for ovs-vswitchd.
        """
        return bool(self._commit(_PutBridge(self._api, spec)))

    def shapes(self, spec: BridgeSpec) -> dict[str, Shape]:
        """Return the present configuration, for ``put_back``, of those existing interfaces of ``spec`` that ``apply``
        would change."""
        found: dict[str, Shape] = {}
        with self._reading() as tables:
            rows = {row.name: row for row in tables["Interface"].rows.values()}
            for port in spec.ports:
                row, wanted = rows.get(port.name), _wanted(port)
                if row is None:
                    continue
                current = {column: getattr(row, column) for column in (*wanted, "external_ids")}
                future = owned.merged(current, wanted)
                if any(future.get(column, current[column]) != current[column] for column in SHAPE_COLUMNS):
                    found[port.name] = {column: current[column] for column in (*SHAPE_COLUMNS, "external_ids")}
        return found

    def put_back(self, shapes: Mapping[str, Shape]) -> bool:
        """Give interfaces the configuration they had when ``shapes`` was asked; returns whether anything changed."""
        return bool(self._commit(_PutBack(self._api, shapes)))

    def add_port(self, bridge: str, spec: PortSpec) -> bool:
        """Add a port, or bring the port of this name to ``spec``; returns whether anything changed."""
        return bool(self._commit(_PutPort(self._api, bridge, spec)))

    def remove_port(self, bridge: str, name: str) -> bool:
        """Remove a port; returns whether it was there."""
        return bool(self._commit(_RemovePort(self._api, bridge, name)))

    def set_other_config(self, values: Mapping[str, str | None], notes: Mapping[str, str] | None = None) -> bool:
        """Set keys of Open_vSwitch.other_config, or remove those whose value is ``None``; the others stay. ``notes``
        are keys to set in its external_ids."""
        return bool(self._commit(_SetOtherConfig(self._api, values, notes or {})))

    def external_ids(self) -> dict[str, str]:
        """Return Open_vSwitch.external_ids, including what ovs-hotswap keeps there (``owned``)."""
        with self._reading() as tables:
            root = _root(tables)
            return dict(root.external_ids) if root else {}

    def other_config(self) -> dict[str, str]:
        """Return Open_vSwitch.other_config as the database has it; it is empty in a database that was just made."""
        with self._reading() as tables:
            root = _root(tables)
            return dict(root.other_config) if root else {}

    def state(self) -> SwitchState:
        with self._reading() as tables:
            root = _root(tables)
            if root is None:
                return SwitchState(False, None, pending=True)
            return SwitchState(
                dpdk_initialized=bool(root.dpdk_initialized),
                dpdk_version=_optional(root.dpdk_version),
                pending=root.cur_cfg < root.next_cfg,
            )

    def interfaces(self) -> dict[str, InterfaceStatus]:
        """Return all interfaces by name, including the local ones of the bridges."""
        with self._reading() as tables:
            return {row.name: _interface(row) for row in tables["Interface"].rows.values()}

    def wait_ports(self, names: Collection[str], timeout: float) -> None:
        """Wait until ovs-vswitchd has applied the newest configuration and made every port of ``names``.

        Raises SwitchError if it cannot make a port (as soon as that is certain; the error names each such port with the
        reason), or if it has ended or is stopped. Raises NoAnswer after ``timeout`` seconds.

        A new port whose OpenFlow number another port has gets an arbitrary number first. The next time that
        ovs-vswitchd looks at its configuration, it takes the number from a port that did not request it
        (vswitchd/bridge.c, bridge_delete_or_reconfigure_ports). So it is made to look again.
        """
        deadline, looked_again = time.monotonic() + timeout, 0.0
        while True:
            pending, interfaces = self.state().pending, self.interfaces()
            waiting = [name for name in names if name not in interfaces or not interfaces[name].ofport]
            failed = {} if pending else faults(interfaces, names)
            if failed:
                raise SwitchError(
                    "; ".join(f"port {name}: {cause}" for name, cause in failed.items()),
                    hint="the log of ovs-vswitchd says more",
                )
            wrong = [name for name in names if name in interfaces and interfaces[name].misnumbered]
            if not pending and not waiting and not wrong:
                return
            if wrong and not pending and not looked_again:
                count = {"op": "mutate", "table": SCHEMA, "where": [], "mutations": [["next_cfg", "+=", 1]]}
                transact(self._socket, [count], timeout=self._timeout)  # the IDL makes none of a count alone
                looked_again = time.monotonic()
            elif wrong and not pending and time.monotonic() - looked_again > _LOOK_S:
                raise SwitchError(_misnumbered(interfaces, wrong), hint="give the other port another ofport_request")
            self._wait_on(deadline, timeout, f"ports not made: {', '.join(waiting)}" if waiting else "")

    def wait_pass(self, timeout: float) -> None:
        """Wait until ovs-vswitchd has looked at its configuration once more. Its datapath then receives from every
        vhost-user device that was connected before: a device is taken up in the same turn of the main thread, before
        the configuration (vswitchd/bridge.c, bridge_run; lib/dpif-netdev.c, dpif_netdev_run), and in no turn without
        the database. Raises SwitchError if ovs-vswitchd or its database has ended, NoAnswer after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        root: dict[str, Any] = {"table": SCHEMA, "where": []}
        look = [{**root, "op": "mutate", "mutations": [["next_cfg", "+=", 1]]},
                {**root, "op": "select", "columns": ["next_cfg"]}]  # fmt: skip
        wanted = transact(self._socket, look, timeout=self._timeout)[1]["rows"][0]["next_cfg"]
        while True:
            with self._reading() as tables:
                found = _root(tables)
                if found is not None and found.cur_cfg >= wanted:
                    return
            self._wait_on(deadline, timeout)

    def _wait_on(self, deadline: float, timeout: float, missing: str = "") -> None:
        """Wait for the next look at ovs-vswitchd. Raises SwitchError if it has ended, NoAnswer after ``deadline``."""
        if not self._lives():
            text = f"{self._socket}: ovs-vswitchd has ended or is stopped"
            raise SwitchError(text, hint="its log is kept in the state directory")
        if time.monotonic() >= deadline:
            text = f"{self._socket}: ovs-vswitchd has not taken up its configuration within {timeout:g} s; "
            raise NoAnswer(text + (missing or "its main thread may be blocked"))
        time.sleep(_POLL_S)

    def _commit(self, change: _Command) -> Any:
        txn = transaction.Transaction(
            self._api, self._connection, self._timeout, check_error=True, log_errors=False
        )  # fmt: skip
        txn.add(change)
        if self._stuck:  # ovsdbapp's queue has one place: a second transaction behind a stuck one would fill it
            raise NoAnswer(f"{self._socket}: an earlier transaction is still not confirmed")
        try:
            return txn.commit()[0]
        except ovsdbapp_exceptions.TimeoutException as error:
            self._stuck = True
            raise NoAnswer(f"{self._socket}: transaction not confirmed within {self._timeout:g} s") from error
        except (ovsdbapp_exceptions.OvsdbAppException, RuntimeError) as error:
            raise SwitchError(f"{self._socket}: {error}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """Yield the tables of the local replica, which do not change in the block. The thread that updates them holds
        the same lock in a commit."""
        if not self._connection.lock.acquire(timeout=self._timeout):
            raise NoAnswer(f"{self._socket}: no answer within {self._timeout:g} s")
        try:
            idl = self._connection.idl
            # ``state`` alone says "monitoring" even while the server is gone.
            if idl.state != idl.IDL_S_MONITORING or not idl._session.is_connected():
                raise SwitchError(f"{self._socket}: the connection to ovsdb-server is lost")
            yield idl.tables
        finally:
            self._connection.lock.release()


def faults(interfaces: Mapping[str, InterfaceStatus], names: Collection[str]) -> dict[str, str]:
    """Return each port of ``names`` that the switch could not make, with the switch's reason."""
    found = {}
    for name in names:
        status = interfaces.get(name)
        if status is None:
            found[name] = "not in the database"
        elif status.error or status.ofport == FAILED_OFPORT:
            found[name] = status.error or "could not be made"
    return found


def _misnumbered(interfaces: Mapping[str, InterfaceStatus], names: Collection[str]) -> str:
    has = {status.ofport: name for name, status in interfaces.items()}
    return "; ".join(
        f"port {name} has OpenFlow number {status.ofport}, not {status.ofport_request}, which"
        f" {has.get(status.ofport_request, 'no port')} has"
        for name, status in ((name, interfaces[name]) for name in names)
    )


def _root(tables: Any) -> Any:
    return next(iter(tables["Open_vSwitch"].rows.values()), None)


def _optional(column: list[Any]) -> Any:
    return column[0] if column else None


def _interface(row: Any) -> InterfaceStatus:
    return InterfaceStatus(
        ofport=_optional(row.ofport),
        error=_optional(row.error),
        link_state=_optional(row.link_state),
        admin_state=_optional(row.admin_state),
        type=row.type,
        options=dict(row.options),
        mtu=_optional(row.mtu),
        statistics=dict(row.statistics),
        ofport_request=_optional(row.ofport_request),
    )
