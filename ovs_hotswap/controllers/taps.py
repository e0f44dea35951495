"""Taps of the switch that the host's own network lives on, such as ``br-ex``: they pass from one instance to the other.

A tap is a device of the process that made it, and two processes cannot have one (drivers/net/tun.c, tun_attach). It
outlives its process, though, with all that it has: if the old switch is killed, the new one takes the very same tap as
soon as it looks at its configuration again, and nothing else is to be done. Nothing here is needed for that.

While the old switch is to stay alive, the host's network passes to another tap of the same name:

1. ``make_way``: the old switch's tap gets another name, and the host's network stays on it. Now the new switch can make
   its own under the name (``database.wait_pass`` has it look; ``is_ready`` says that it has).
2. ``pass_to_new``: addresses, routes, neighbours and settings pass to the new switch's tap, within milliseconds.
3. ``pass_back`` undoes both, at any time. ``finish`` removes the old tap, after the old switch has ended.

A record says, before each step, what is to be where; so each step may be repeated after a kill half way, and so may
``pass_back``. Names of devices in rules and filters are those of the tap that has the name.
"""

from __future__ import annotations

import enum
from pathlib import Path

from pydantic import Field

from ovs_hotswap.controllers.devices import Devices, Link, Settings, bound
from ovs_hotswap.controllers.netlink_records import Entry, labelled
from ovs_hotswap.controllers.netlink_tables import Tables
from ovs_hotswap.errors import HostError, StateUnknown
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.waiting import wait_until

_IN_USE_S = 2.0
_MARK = "ovsh"  # with the index it fits into IFNAMSIZ, whatever the tap's name is


class Place(enum.StrEnum):
    """Where the host's network of a tap is to be. ``OLD_ASIDE``: on the old tap, which has another name."""

    OLD = "old"
    OLD_ASIDE = "old, under another name"
    NEW = "new"


class TapSettings(Strict):
    """``devices.Settings`` in a file."""

    flags: int = 0
    mac: str = ""
    mtu: int = 0
    queue: int = 0
    alias: str = ""
    group: int = 0
    sysctls: dict[str, str] = Field(default_factory=dict)

    def value(self) -> Settings:
        return Settings(**{key: getattr(self, key) for key in type(self).model_fields})


class TapRecord(Strict):
    """The record of a tap. ``old``, ``new``: indexes of the two devices; ``new`` is ``None`` until it is known.
    ``entries``: ``Entry.text`` of what the host has on it. ``place``: where that is to be. ``done``: it is there,
    whole, and may have been changed since."""

    name: str
    old: int
    new: int | None = None
    place: Place
    settings: TapSettings = TapSettings()
    entries: tuple[str, ...] = ()
    done: bool = False

    @property
    def aside(self) -> str:
        return f"{_MARK}{self.old}"


class Taps:
    """The taps of one host. ``directory``: where their records are, which outlive this process. It works in the network
    namespace of the calling thread. Every method raises HostError, and StateUnknown if a record cannot be read."""

    def __init__(self, directory: Path, system: System) -> None:
        self._directory, self._system = directory, system

    def record(self, name: str) -> TapRecord | None:
        path = self._path(name)
        try:
            return TapRecord.model_validate_json(path.read_text(), strict=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateUnknown(f"{path}: {error}", hint="`ip address` shows what the host has") from error

    def obstacles(self, name: str) -> list[str]:
        """Return what cannot pass from one tap to another, in words for people; with any of it, only the way by which
        the old switch ends first leaves the host's network as it is."""
        with Devices() as devices, Tables() as tables:
            link = devices.named(name)
            return [] if link is None else bound(link, tables.of(link.index))

    def make_way(self, name: str) -> tuple[str, ...]:
        """Give the old switch's tap another name, with the host's network still on it. Returns what could not be put
        back there, in words for people; then ``pass_back`` is called for."""
        with Devices() as devices, Tables() as tables:
            record = self.record(name)
            if record is None:
                link = devices.named(name)
                if link is None or not link.tap:
                    raise HostError(f"{name} is no tap of a switch on this host", hint="`ip -details link`")
                if found := bound(link, tables.of(link.index)):
                    raise HostError(
                        f"{name} cannot pass to another switch: {'; '.join(found)}",
                        hint="let it pass when the old switch has ended",
                    )
                record = self._seen(link, tables, TapRecord(name=name, old=link.index, place=Place.OLD_ASIDE))
            return () if record.done else self._enforce(record, devices, tables)

    def is_ready(self, name: str) -> bool:
        """Whether there is another tap, the new switch's, for the host's network."""
        record = self.record(name)
        if record is None:
            return False
        with Devices() as devices:
            if record.new is not None:
                return devices.numbered(record.new) is not None
            link = devices.named(name)
            return link is not None and link.index != record.old and link.tap

    def pass_to_new(self, name: str) -> tuple[str, ...]:
        """Have the host's network pass to the new switch's tap. Returns what could not, in words for people."""
        record = self.record(name)
        if record is None:
            raise HostError(f"{name}: the old switch's tap has not made way")
        with Devices() as devices, Tables() as tables:
            link = devices.named(name) if record.new is None else devices.numbered(record.new)
            if link is None or link.index == record.old:
                raise HostError(f"{name}: the new switch has not made its tap", hint="`ip link`, and the switch's log")
            if record.place is not Place.NEW:
                record = self._turned(record, devices, tables, Place.NEW, link.index)
            return () if record.done else self._enforce(record, devices, tables)

    def pass_back(self, name: str) -> tuple[str, ...]:
        """Have the host's network back on the old tap under its own name. It is no error if it never left. The new
        switch's tap keeps another name while that switch lives. Returns what could not be put back."""
        record = self.record(name)
        if record is None:
            return ()
        with Devices() as devices, Tables() as tables:
            if record.place is not Place.OLD:
                link = devices.named(name)
                other = link.index if record.new is None and link and link.index != record.old else record.new
                record = self._turned(record, devices, tables, Place.OLD, other)
            return () if record.done else self._enforce(record, devices, tables)

    def finish(self, name: str) -> None:
        """Remove the old tap, after the old switch has ended, and forget it. It is no error if that was done."""
        record = self.record(name)
        if record is None:
            return
        if record.place is not Place.NEW:
            raise HostError(f"{name}: the host's network is still on the old switch's tap")
        with Devices() as devices:
            if devices.numbered(record.old) is not None:
                devices.remove(record.old)
        self._forget(name)

    def forget_new(self, name: str) -> None:
        """Remove the new switch's tap, after ``pass_back`` and the end of that switch, and forget it."""
        record = self.record(name)
        if record is None:
            return
        if record.place is not Place.OLD:
            raise HostError(f"{name}: the host's network is not on the old switch's tap")
        with Devices() as devices:
            if record.new is not None and devices.numbered(record.new) is not None:
                devices.remove(record.new)
        self._forget(name)

    def _enforce(self, record: TapRecord, devices: Devices, tables: Tables) -> tuple[str, ...]:
        """Bring about what a record says, whatever was done of it before."""
        holder, other = (record.new, record.old) if record.place is Place.NEW else (record.old, record.new)
        name = record.aside if record.place is Place.OLD_ASIDE else record.name
        present = None if holder is None else devices.numbered(holder)
        if present is None:
            raise HostError(f"{name}: the tap that the host's network is to be on is gone", hint="`ip link`")
        settings, entries = record.settings.value(), [Entry.of_text(each) for each in record.entries]
        left = None if other is None else devices.numbered(other)
        if left is not None and left.name == name:
            devices.rename(left.index, f"{_MARK}{left.index}")
        if present.name != name:
            devices.rename(present.index, name)
        refused = devices.bring(present.index, settings, up=True)
        refused += tables.bring(present.index, entries, labels=record.place is not Place.OLD_ASIDE)
        wait_until(lambda: tables.in_use(present.index), _IN_USE_S, self._system)
        if left is not None:  # both have had everything for a moment, so that nothing was interrupted
            tables.clear(left.index)
            devices.set_up(left.index, up=False)
            refused += tables.bring(present.index, entries)
        devices.settle(present.index, settings)
        if not refused:
            self._kept(record.model_copy(update={"done": True}))
        return refused

    def _turned(self, record: TapRecord, devices: Devices, tables: Tables, place: Place, new: int | None) -> TapRecord:
        """Record the next place, with what the host has now if the last step was done, and else what it had."""
        holder = record.new if record.place is Place.NEW else record.old
        link = None if holder is None or not record.done else devices.numbered(holder)
        turned = record.model_copy(update={"place": place, "new": new, "done": False})
        return self._kept(turned) if link is None else self._seen(link, tables, turned)

    def _seen(self, link: Link, tables: Tables, record: TapRecord) -> TapRecord:
        """Record what a device has now, before anything is changed."""
        settings = TapSettings.model_validate({key: getattr(link.settings, key) for key in TapSettings.model_fields})
        entries = tables.of(link.index)
        if link.name != record.name:
            entries = labelled(entries, [Entry.of_text(each) for each in record.entries], record.name)
        texts = tuple(each.text() for each in entries)
        return self._kept(record.model_copy(update={"settings": settings, "entries": texts}))

    def _kept(self, record: TapRecord) -> TapRecord:
        with files(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self._path(record.name), record.model_dump_json(indent=1))
        return record

    def _forget(self, name: str) -> None:
        with files():
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
