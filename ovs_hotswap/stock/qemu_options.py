"""What a QEMU's command line says about it (qemu-system-x86_64(1)). This module is pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_VERSION = re.compile(r"\bversion (\d+\.\d+)")
_LIBVIRT_MONITOR = "charmonitor"  # libvirt src/qemu/qemu_command.c, qemuBuildMonitorCommandLine


@dataclass(frozen=True, slots=True)
class MonitorOption:
    """A QMP socket: its ``path``, or the number ``fd`` of a descriptor that QEMU was given, or neither."""

    path: str | None = None
    fd: int | None = None


@dataclass(frozen=True, slots=True)
class QemuOptions:
    """``guest``: the VM's name. ``libvirt``: libvirt made this command line. ``memory``: the types of the memory back
    ends. ``machine``: the type of the machine."""

    guest: str | None
    monitors: tuple[MonitorOption, ...]
    libvirt: bool
    memory: tuple[str, ...]
    machine: str | None
    kvm: bool


def version(text: str) -> str | None:
    """Return the version from what ``--version`` prints, as in ``7.2``."""
    found = _VERSION.search(text)
    return found[1] if found else None


def parse(argv: Sequence[str]) -> QemuOptions:
    """Return what the arguments of a QEMU say. Options may have one dash or two."""
    options = list(_options(argv))
    chardevs = {each["id"]: each for name, each in options if name == "chardev" and "id" in each}
    monitors = [_direct(each[""], chardevs) for name, each in options if name in ("qmp", "qmp-pretty")]
    monitors += [
        _of(chardevs.get(each.get("chardev", each[""]), {}))
        for name, each in options
        if name == "mon" and each.get("mode") == "control"
    ]
    machine = next((each for name, each in reversed(options) if name in ("machine", "M")), {})
    accelerators = [each.get("accel", each[""]) for name, each in options if name == "accel"]
    guests = [each.get("guest", each[""]) for name, each in options if name == "name"]
    objects = [each.get("qom-type", each[""]) for name, each in options if name == "object"]
    return QemuOptions(
        guest=guests[-1] if guests else None,
        monitors=tuple(monitors),
        libvirt=_LIBVIRT_MONITOR in chardevs,
        memory=tuple(each for each in objects if each.startswith("memory-backend-")),
        machine=machine.get("type", machine.get("")) or None,
        kvm=("enable-kvm", {"": ""}) in options or "kvm" in [*accelerators[:1], *_words(machine.get("accel", ""))[:1]],
    )


def _options(argv: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each option with its value taken apart. The key of what comes first without a key is empty."""
    for at, word in enumerate(argv[1:], 1):
        if word.startswith("-") and len(word) > 1:
            following = argv[at + 1] if at + 1 < len(argv) else ""
            yield word.lstrip("-"), _keys("" if following.startswith("-") else following)


def _keys(value: str) -> dict[str, str]:
    """Take ``kind,key=value`` or a JSON object apart; two commas stand for one (QEMU util/keyval.c)."""
    if value.startswith("{"):
        try:
            document = json.loads(value)
        except ValueError:
            return {"": ""}
        return {"": "", **{str(key): str(held) for key, held in document.items() if isinstance(held, str | int)}}
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    pairs = [part.partition("=") for part in parts]
    named = {key: held for key, equals, held in pairs if equals}
    first = parts[0] if "=" not in parts[0] or ":" in parts[0].partition("=")[0] else ""
    return {"": first, **named}


def _direct(value: str, chardevs: dict[str, dict[str, str]]) -> MonitorOption:
    """The socket of ``-qmp unix:PATH,...``, or of a character device."""
    kind, _, rest = value.partition(":")
    if kind == "unix":
        return MonitorOption(path=rest)
    return _of(chardevs.get(rest, {})) if kind == "chardev" else MonitorOption()


def _of(chardev: dict[str, str]) -> MonitorOption:
    number = chardev.get("fd", "")
    return MonitorOption(chardev.get("path"), int(number) if number.isdecimal() else None)


def _words(value: str) -> list[str]:
    return value.split(":")  # machine,accel=kvm:tcg: the first one that works
