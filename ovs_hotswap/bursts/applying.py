"""Makes the changes that `bursts` advises, and keeps a record with which they are undone.

The record is on the disk before a change is made, and is the host's, not a side's: an upgrade carries the settings to
the other instance, and there they are undone as well. A change is one transaction of the database, which makes it only
if the place still has the value that was read. So a command that is killed has made a change and recorded it, or has
recorded one that it did not make, and undoing that finds the earlier value in place.

An undo leaves a value that others have set since. If a port does not come up with its new configuration, it gets the
earlier one at once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ovs_hotswap.bursts.found import Advice, Made, Setting
from ovs_hotswap.bursts.target import ANSWER_S, Target, target
from ovs_hotswap.clone.rows import ROOT, Row, single, to_json
from ovs_hotswap.config import Program
from ovs_hotswap.errors import HostError, HotswapError, SwitchError
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.host.host import WATCHDOG_S, Host
from ovs_hotswap.switch.datapath import USERSPACE
from ovs_hotswap.switch.rpc import NoAnswer, transact
from ovs_hotswap.system import files
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.trust import along
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.waiting import wait_until

_POLL_S = 0.01
_SETTLE_S = 3.0  # until the datapath has a port as it was confirmed
_SHOWN_AS = {
    "n_rxq_desc": ("configured_rxq_descriptors", "n_rxq_desc"), "n_rxq": ("configured_rx_queues", "n_rxq"),
    "n_txq_desc": ("configured_txq_descriptors", "n_txq_desc"),
}  # fmt: skip
"""How ``dpctl/show`` prints what is in force (lib/netdev-dpdk.c, netdev_dpdk_get_config), by the option: OVS 3.1 and
later versions differ."""
_CHANGED = "the value was changed by others at the same time"


class Applied(Strict, extra="ignore"):
    """A change of one value. ``before`` and ``after`` are ``None`` if the key is not there. ``time``: in seconds since
    the epoch."""

    advice: str
    table: str
    row: str
    column: str
    key: str
    before: str | None
    after: str | None
    time: float = 0.0

    def to(self, value: str | None) -> Setting:
        return Setting(self.table, self.row, self.column, self.key, value)


class Record(Strict, extra="ignore"):
    """All changes that were made and not undone, the oldest first."""

    format: Literal[1] = 1
    changes: tuple[Applied, ...] = ()


@dataclass(frozen=True, slots=True)
class Undone:
    """A change that was to be undone. ``why_not`` is empty if its earlier value is in force. ``seconds``: how long the
    switch took; ``None`` if there was nothing to change."""

    change: Applied
    why_not: str = ""
    seconds: float | None = None


class Changer:
    """Makes and undoes changes in the database of the switch that forwards."""

    def __init__(self, host: Host) -> None:
        self._host, self._system = host, host.system
        self.record = host.config.state_dir / "bursts.json"

    def plan(self, advised: Sequence[Advice]) -> list[Applied]:
        """Return the changes with the values that are there now, without those that would change nothing. Raises
        SwitchError."""
        rows = target(self._host).rows()
        found = []
        for each in advised:
            for setting in each.settings:
                before = _value(_row(rows[setting.table], setting), setting)
                if before != setting.value:
                    found.append(Applied(advice=each.name, table=setting.table, row=setting.row, column=setting.column,
                                         key=setting.key, before=before, after=setting.value))  # fmt: skip
        return found

    def make(self, change: Applied) -> Made:
        """Make a change, and record it. Raises HotswapError: the earlier value is then in force, or the error says that
        it is not known which one is, and the record has the change. Raises BusyError while an upgrade is unfinished."""
        with self._alone() as here:
            kept = self.changes()
            made = change.model_copy(update={"time": self._system.wall()})
            self._keep((*kept, made))
            try:
                seconds = self._set(here, made.to(made.after), made.before)
            except HotswapError:
                with contextlib.suppress(HotswapError):  # what is not known stays in the record
                    if _now(here, made) == made.before:
                        self._keep(kept)
                raise
            self._remember(here)
            return shown(made, seconds)

    def undo(self, change: Applied) -> Undone:
        """Put the earlier value back, and take the change out of the record. Raises HotswapError; the record then still
        has the change."""
        with self._alone() as here:
            undone = self._undo(here, change)
            self._keep(tuple(each for each in self.changes() if each != change))
            if undone.seconds is not None:
                self._remember(here)
            return undone

    def changes(self) -> tuple[Applied, ...]:
        """Return the changes that were made and not undone, the oldest first. Raises HostError, also if others than
        root could have written the record: what it says is put into the switch."""
        if faults := along(self.record):
            raise HostError(f"{self.record} is not believed: {'; '.join(faults)}",
                            hint="chown root: and chmod go-w what it names")  # fmt: skip
        try:
            with files(self.record):
                return Record.model_validate_json(self.record.read_bytes()).changes
        except HostError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return ()
            raise
        except ValidationError as error:
            raise HostError(f"{self.record}: is not a record of changes", hint=f"rm {self.record}") from error

    def _undo(self, here: Target, change: Applied) -> Undone:
        try:
            now = _now(here, change)
        except _NoRow:
            return Undone(change, f"{change.table} {change.row} is not there any longer")
        if now == change.before:
            return Undone(change)
        if now != change.after:
            return Undone(change, f"it is {now or 'not set'} now, and not {change.after or 'not set'}")
        return Undone(change, seconds=self._set(here, change.to(change.before), change.after))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Target]:
        """Keep upgrades and the watchdog's tasks from this switch, and this program's other changes. A failover does
        not wait for it. Raises BusyError, SwitchError."""
        with self._host.lock(WATCHDOG_S):
            Upgrader(self._host).refuse_if_unfinished()
            yield target(self._host)

    def _set(self, here: Target, setting: Setting, before: str | None) -> float:
        """Set a value, and return after how many seconds the switch had taken it up. Raises SwitchError."""
        try:
            return self._written(here, setting, before)
        except _NotThere as error:
            back = Setting(*setting.place, before)
            became = "the earlier value was put back"
            try:
                self._written(here, back, setting.value)
            except SwitchError as worse:
                became = f"with the earlier value it does not come back either: {worse.message}"
            raise SwitchError(f"{error.message}; {became}", hint=error.hint) from error

    def _written(self, here: Target, setting: Setting, before: str | None) -> float:
        begun = self._system.monotonic()
        self._await(here, self._write(here, setting, before))
        self._see(here, setting)
        return self._system.monotonic() - begun

    def _write(self, here: Target, setting: Setting, before: str | None) -> int:
        """Return the number of the configuration that has the value."""
        row = _row(here.rows()[setting.table], setting)
        if _value(row, setting) != before:
            raise SwitchError(f"{setting.table} {setting.row}: {setting.column}:{setting.key}: {_CHANGED}",
                              hint="`ovs-hotswap bursts` looks again")  # fmt: skip
        where = [["name", "==", setting.row]] if setting.row else []
        mutations: list[object] = [[setting.column, "delete", ["set", [setting.key]]]]
        if setting.value is not None:
            mutations.append([setting.column, "insert", ["map", [[setting.key, setting.value]]]])
        results = transact(here.paths.db_socket, [
            {"op": "wait", "table": setting.table, "where": where, "columns": [setting.column], "until": "==",
             "rows": [{setting.column: to_json(row.get(setting.column, {}))}], "timeout": 0},
            {"op": "mutate", "table": setting.table, "where": where, "mutations": mutations},
            {"op": "mutate", "table": ROOT, "where": [], "mutations": [["next_cfg", "+=", 1]]},
            {"op": "select", "table": ROOT, "where": [], "columns": ["next_cfg"]},
        ], timeout=ANSWER_S)  # fmt: skip
        return int(results[3]["rows"][0]["next_cfg"])

    def _await(self, here: Target, wanted: int) -> None:
        """Wait until ovs-vswitchd has taken up a configuration. Raises SwitchError if it has ended, and NoAnswer."""
        select = {"op": "select", "table": ROOT, "where": [], "columns": ["cur_cfg"]}
        limit = self._host.config.upgrade.ready_s

        def over() -> bool:
            if not self._system.alive(here.pid):
                raise SwitchError("ovs-vswitchd ended while it took up the change", hint="`ovs-hotswap diagnose`")
            return bool(transact(here.paths.db_socket, [select], timeout=ANSWER_S)[0]["rows"][0]["cur_cfg"] >= wanted)

        if not wait_until(over, limit, self._system, poll_s=_POLL_S):
            raise NoAnswer(
                f"ovs-vswitchd has not taken up the change within {limit:g} s: its main thread may be blocked",
                hint="`ovs-hotswap diagnose`; the change is recorded: `ovs-hotswap bursts --undo`",
            )

    def _see(self, here: Target, setting: Setting) -> None:
        """Wait until the datapath has the port with its new rings: ovs-vswitchd confirms a configuration before it
        applies it to the datapath. Raises _NotThere if the port is gone."""
        if not setting.row:
            return
        wait_until(lambda: shows(setting, _port_line(here, setting.row)), _SETTLE_S, self._system)
        if not wait_until(lambda: _port_line(here, setting.row), _SETTLE_S, self._system):
            raise _NotThere(
                f"port {setting.row}: the datapath does not have it with {setting.key}={setting.value}, so nothing "
                "passes", hint=f"`grep {setting.row} {here.paths.log}` says why",
            )  # fmt: skip

    def _remember(self, here: Target) -> None:
        """Have the next start of the instance give it what it has now. What the host's others program is in a database
        that lasts. A failure is none of the change's: the watchdog does the same within seconds."""
        if here.side is not None and self._host.config.program is Program.OVERLAY:
            with contextlib.suppress(HotswapError):
                settings_transfer.keep(self._host, here.side)

    def _keep(self, changes: tuple[Applied, ...]) -> None:
        with files(self.record.parent):
            self.record.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self.record, Record(changes=changes).model_dump_json(indent=1) + "\n")


class _NoRow(SwitchError):
    """A row whose value is to be changed is not there."""


class _NotThere(SwitchError):
    """A port is not in the datapath after a change."""


def shows(setting: Setting, line: str) -> bool:
    """Whether the datapath's line of a port shows that a setting is in force; if it does not print such a setting,
    nothing more can be seen than that the port is there."""
    names = _SHOWN_AS.get(setting.key, ())
    if not names or setting.value is None:
        return bool(line)
    return re.search(rf"\b(?:{'|'.join(names)})={re.escape(setting.value)}\b", line) is not None


def _port_line(here: Target, name: str) -> str:
    """Return what the datapath says about a port (lib/dpctl.c, show_dpif); empty if it does not have it."""
    lines = here.ask("dpctl/show", USERSPACE).splitlines()
    return next((line for line in lines if re.match(rf"\s+port \d+: {re.escape(name)} ", line)), "")


def _row(rows: dict[str, Row], setting: Setting | Applied) -> Row:
    found = next((row for row in rows.values() if not setting.row or single(row, "name") == setting.row), None)
    if found is None:
        raise _NoRow(f"the switch has no {setting.table} {setting.row}", hint="`ovs-hotswap bursts` looks again")
    return found


def _value(row: Row, setting: Setting | Applied) -> str | None:
    found = row.get(setting.column, {}).get(setting.key)
    return None if found is None else str(found)


def _now(here: Target, setting: Setting | Applied) -> str | None:
    return _value(_row(here.rows()[setting.table], setting), setting)


def shown(change: Applied, seconds: float | None = None) -> Made:
    """Return a change as `bursts --json` prints it."""
    return Made(change.advice, change.table, change.row, change.column, change.key, change.before, change.after,
                None if seconds is None else round(seconds, 3))  # fmt: skip
