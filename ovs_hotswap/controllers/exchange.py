"""The ports of a switch that the host itself uses pass from one running instance to the other, all of them.

The order: ``make_way`` before the cut, ``pass_to_new`` right after it, and ``finish`` when the old switch has ended.
``pass_back`` undoes the first two at any time. ``take_over`` is for an old switch that died. Each may be repeated. The
copy of the database is without ``devices`` until ``pass_to_new`` is called, which has them copied by ``copy_devices``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ovs_hotswap.controllers import kernel_ports
from ovs_hotswap.controllers.devices import IFF_UP, Devices
from ovs_hotswap.controllers.taps import Taps
from ovs_hotswap.errors import HostError, SwitchError
from ovs_hotswap.switch.ovsdb import ROOT_TABLES, SwitchDb
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

_ASK_S, _READY_S, _LOOK_S = 5.0, 10.0, 0.1
_KERNEL = ("", "system")


def names_of(interfaces: Iterable[Mapping[str, Any]], types: Iterable[str]) -> list[str]:
    """Return the names of interfaces of these types, sorted. This is pure."""
    return sorted(str(each["name"]) for each in interfaces if each["type"] in types)


class Exchange:
    """The ports of the switch with the database ``old`` that the host uses, for the switch with the database ``new``.
    It works in the network namespace of the calling thread. Methods raise HostError, StateUnknown, SwitchError."""

    def __init__(self, taps: Taps, old: Path, new: Path, system: System) -> None:
        self._taps, self._old, self._new, self._system = taps, old, new, system

    def taps(self) -> list[str]:
        """The taps of internal ports that are up and can pass. Those that are down are not used, and the new switch
        takes them when the old one has ended, as it takes those that cannot pass."""
        names = names_of(_interfaces(self._old), ("internal",))
        with Devices() as devices:
            links = [link for name in names if (link := devices.named(name)) is not None]
        up = [link.name for link in links if link.tap and link.settings.flags & IFF_UP]
        return [name for name in up if not self._taps.obstacles(name)]

    def internal(self) -> list[str]:
        """All internal ports, those of the bridges themselves included."""
        return names_of(_interfaces(self._old), ("internal",))

    def devices(self) -> list[str]:
        """The other devices of the kernel that are ports, such as veths."""
        return names_of(_interfaces(self._old), _KERNEL)

    def make_way(self) -> tuple[str, ...]:
        """Have the new switch make taps under the names of the old one's, which keep the host's network under other
        names. Returns the names of the taps that are to pass."""
        names = self.taps()
        for name in names:
            _see_whole(name, self._taps.make_way(name))
        if names:
            _look_again(self._new)
        if not wait_until(lambda: all(map(self._taps.is_ready, names)), _READY_S, self._system):
            late = ", ".join(name for name in names if not self._taps.is_ready(name))
            raise SwitchError(f"the new switch has not made {late} in {_READY_S:g} s", hint="its log says why")
        return tuple(names)

    def pass_to_new(self, taps: Iterable[str], devices: Iterable[str], copy_devices: Callable[[], object]) -> None:
        """Have the host's network on ``taps``, and ``devices``, pass to the new switch. ``copy_devices`` copies the
        rows of these ports into the new database."""
        for name in taps:
            _see_whole(name, self._taps.pass_to_new(name))
        self._pass_devices(devices, copy_devices)

    def take_over(self, taps: Iterable[str], devices: Iterable[str], copy_devices: Callable[[], object]) -> None:
        """Have all of it on the new switch after the old one died: what ``pass_to_new`` does, for ``taps`` that have
        made way. The others outlive the old switch with all that they have, and the new one takes them when it looks at
        its configuration again."""
        # The kernel closes the taps of a process that was killed some time after the process has ended.
        late = wait_until(self._not_made, _READY_S, self._system, done=operator.not_, poll_s=_LOOK_S)
        for name in taps:
            if wait_until(lambda name=name: self._taps.is_ready(name), _READY_S, self._system):  # type: ignore[misc]
                _see_whole(name, self._taps.pass_to_new(name))
        self._pass_devices(devices, copy_devices)
        if late:
            raise SwitchError(f"the new switch has not opened {', '.join(late)} in {_READY_S:g} s",
                              hint="its log says why")  # fmt: skip

    def _not_made(self) -> list[str]:
        """The internal ports that the new switch could not make yet. It tries again because of this call."""
        missing = names_of((row for row in _interfaces(self._new) if row["ofport"] in (-1, ["set", []])), ("internal",))
        if missing:
            _look_again(self._new)
        return missing

    def _pass_devices(self, devices: Iterable[str], copy_devices: Callable[[], object]) -> None:
        names = list(devices)
        if names:
            kernel_ports.take(self._old, names)
            copy_devices()
            kernel_ports.give(self._new, names)
            _await_looked(self._new)

    def pass_back(self, taps: Iterable[str], devices: Iterable[str], *, new_lives: bool = True) -> None:
        """Have all of it back on the old switch, as it was."""
        names = list(devices)
        if names and new_lives:
            kernel_ports.take(self._new, names)
        if names:
            kernel_ports.give(self._old, names)
        for name in taps:
            _see_whole(name, self._taps.pass_back(name))
        if names:
            _await_looked(self._old)

    def finish(self, taps: Iterable[str]) -> None:
        """Remove the old switch's taps, after it has ended."""
        for name in taps:
            self._taps.finish(name)


def _interfaces(socket: Path) -> list[dict[str, Any]]:
    select = {"op": "select", "table": "Interface", "where": [], "columns": ["name", "type", "ofport"]}
    rows: list[dict[str, Any]] = transact(socket, [select], timeout=_ASK_S)[0]["rows"]
    return rows


def _look_again(socket: Path) -> None:
    """Have ovs-vswitchd look at its configuration: then it tries again to make what it could not make."""
    look = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]}
    transact(socket, [look], timeout=_ASK_S)


def _await_looked(socket: Path) -> None:
    """Wait until ovs-vswitchd has looked at its configuration, and has opened what it was given."""
    with SwitchDb(socket, _ASK_S, tables=ROOT_TABLES) as database:
        database.wait_pass(_READY_S)


def _see_whole(name: str, refused: tuple[str, ...]) -> None:
    if refused:
        raise HostError(f"{name}: the kernel refuses what the other tap had: {'; '.join(refused)}",
                        hint=f"`ip -details address show {name}`")  # fmt: skip
