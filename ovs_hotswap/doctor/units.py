"""The units of systemd: installed, as they were shipped, enabled, active, and not contradicted by a drop-in."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.config import DEFAULT_RUN_DIR, Config
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, healthy
from ovs_hotswap.errors import CommandError
from ovs_hotswap.model import Severity
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import System

_HERE = Section.UNITS
MISSING = Kind(_HERE, "installed", Severity.ERROR)
DIFFERS = Kind(_HERE, "as shipped", Severity.WARNING)
NOT_COMPARED = Kind(_HERE, "as shipped", Severity.UNKNOWN)
CONTRADICTS = Kind(_HERE, "drop-ins", Severity.ERROR)
NOT_ENABLED = Kind(_HERE, "enabled", Severity.WARNING, safe=True)
NOT_ACTIVE = Kind(_HERE, "active", Severity.ERROR)
NOT_READ = Kind(_HERE, "daemon-reload", Severity.WARNING)
RESTARTED = Kind(_HERE, "needrestart", Severity.WARNING)
CANNOT_WRITE = Kind(_HERE, "state_dir", Severity.ERROR)
RIGHTS = Kind(_HERE, "device rights", Severity.ERROR)
HIDDEN = Kind(_HERE, "hidden paths", Severity.ERROR)

BROKER, RESTORE, WATCH = (f"ovs-hotswap-{what}.service" for what in ("broker", "restore", "watch"))
INSTANCE, NETNS = "ovs-hotswap-instance@.service", "ovs-hotswap-netns@.service"
LOGS = ("ovs-hotswap-logs.service", "ovs-hotswap-logs.timer")
UNITS = (BROKER, INSTANCE, NETNS, RESTORE, WATCH, *LOGS)
_NEEDRESTART = "needrestart.conf"
# In the order in which systemd prefers them (systemd.unit(5)).
_PLACES = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
           "lib/systemd/system")  # fmt: skip
_DEFAULT_STATE_DIR = Path("/var/lib/ovs-hotswap")
_WRITERS = (BROKER, INSTANCE, RESTORE, WATCH)  # those that are made for one state_dir (StateDirectory=)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A setting of a unit that a drop-in must not change to a value that matches ``wrong``, and why."""

    unit: str
    key: str
    wrong: re.Pattern[str]
    why: str


def _not(unit: str, key: str, wrong: str, why: str) -> Contradiction:
    return Contradiction(unit, key, re.compile(wrong, re.IGNORECASE), why)


_FEW = r"\d{1,4}$"
CONTRADICTIONS = (
    _not(BROKER, "Restart", r"(?!always$)", "a broker that ends is not started again, and its VMs lose their network"),
    _not(BROKER, "FileDescriptorStoreMax", r"\d{1,3}$", "systemd keeps two connections of each VM over a restart"),
    _not(BROKER, "LimitNOFILE", _FEW, "the broker has about ten descriptors a VM and two a ring"),
    _not(BROKER, "RestrictRealtime", "yes|true|on|1$", "the broker needs real-time priority for handovers"),
    _not(INSTANCE, "Restart", r"(?!no$)", "systemd would start a switch without ports and flows beside a standby"),
    _not(INSTANCE, "LimitNOFILE", _FEW, "an instance has seven descriptors a VM"),
    _not(INSTANCE, "LimitMEMLOCK", r"\d", "DPDK locks its memory"),
    _not(INSTANCE, "OOMPolicy", r"(stop|kill)$", "an ovsdb-server that is short of memory would end the switch, too"),
    _not(INSTANCE, "PrivateNetwork", "yes|true|on|1$", "the instance could not take the uplink's device"),
    _not(INSTANCE, "PrivateDevices", "yes|true|on|1$", "the instance would see no huge pages and no VFIO"),
    _not(WATCH, "Restart", r"no$", "a watchdog that fails would not be started again"),
    _not(WATCH, "PrivateNetwork", "yes|true|on|1$", "the watchdog could not steer the uplink"),
    *(_not(NETNS, key, r"(?!no$|false$|off$|0$)", "its namespace would be seen by no other process")
      for key in ("ProtectSystem", "PrivateTmp", "PrivateMounts", "PrivateDevices", "ProtectHome")),
    *(_not(unit, "RuntimeDirectoryPreserve", r"(?!yes$|restart$)", "sockets and records would go with the unit")
      for unit in (BROKER, WATCH, INSTANCE, RESTORE)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A unit on the host. ``text`` is ``None`` if it is not installed, ``shipped`` if the file that was shipped is not
    known. ``drop_ins`` has the text of each by its path. ``active`` and ``stale`` (systemd has not read the file that
    is there now) are those of systemd, ``None`` if it was not asked."""

    name: str
    path: str | None = None
    text: str | None = None
    shipped: str | None = None
    drop_ins: Mapping[str, str] | None = None
    enabled: bool = False
    active: str | None = None
    stale: bool | None = None


@dataclass(frozen=True, slots=True)
class Units:
    """``used``: systemd runs the host, and the units are for this configuration. ``needrestart``: the program is there
    without the file that keeps it from our units. ``watching``: the configuration wants a watchdog. ``packaged``: the
    units belong to an installed package."""

    used: bool
    files: tuple[UnitFile, ...]
    needrestart: bool
    state_dir: Path
    watching: bool
    packaged: bool = False


def shipped_directory() -> Path | None:
    """Return where the units are that belong to this program: beside the package in a checkout, otherwise with the data
    of the installed program."""
    checkout = Path(__file__).parents[2] / "systemd"
    places = (checkout, Path(sys.prefix) / "share/ovs-hotswap/systemd")
    return next((place for place in places if (place / BROKER).is_file()), None)


def uses_units(root: Root, config: Config) -> bool:
    return config.run_dir == DEFAULT_RUN_DIR and root.exists("run/systemd/system")


def read(root: Root, config: Config, shipped: Path | None, system: System) -> Units:
    used = uses_units(root, config)
    files = tuple(_file(root, name, shipped, system) for name in UNITS) if used else ()
    installed = root.exists("etc/needrestart") and not root.exists("etc/needrestart/conf.d/ovs-hotswap.conf")
    packaged = root.exists("var/lib/dpkg/info/ovs-hotswap.list")
    return Units(used, files, installed, config.state_dir, config.watch.mode != "off", packaged)


def _file(root: Root, name: str, shipped: Path | None, system: System) -> UnitFile:
    path = next((f"{place}/{name}" for place in _PLACES if root.exists(f"{place}/{name}")), None)
    known = Unit(name, system)
    active = known.active() if "@" not in name else None
    if active == "":  # it says that of a unit that it does not know, too
        raise CommandError(f"systemctl does not say in which state {name} is", hint=f"systemctl status {name}")
    return UnitFile(
        name,
        None if path is None else f"/{path}",
        None if path is None else root.text(path),
        Root(shipped).text(name) if shipped is not None else None,
        dict(_drop_ins(root, name)),
        any(root.path(f"etc/systemd/system/{wants}/{name}").is_symlink() for wants in root.names("etc/systemd/system")
            if wants.endswith((".wants", ".requires"))),
        active,
        None if active is None else known.stale(),
    )  # fmt: skip


def _drop_ins(root: Root, name: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each drop-in: of the unit, and of each instance of a template."""
    stem, at, _ = name.partition("@")
    directories = [f"{name}.d", *((f"{stem}@{side}.service.d" for side in "ab") if at else ())]
    for place in _PLACES:
        for directory in directories:
            for each in root.names(f"{place}/{directory}"):
                if each.endswith(".conf"):
                    yield f"/{place}/{directory}/{each}", root.text(f"{place}/{directory}/{each}") or ""


# ------------------------------------------------------------------------------------------------------------ judging


def judge(facts: Units) -> Iterator[Found]:
    if not facts.used:
        yield from healthy([], _HERE, MISSING.check, "systemd does not run what this configuration describes")
        return
    missing = [each.name for each in facts.files if each.text is None]
    for name in missing:
        yield MISSING(f"{name} is not installed", _install(name, facts.packaged), name)
    if len(missing) == len(facts.files):
        return
    yield from healthy(_as_shipped(facts), _HERE, DIFFERS.check, "all units")
    yield from healthy(_contradictions(facts.files), _HERE, CONTRADICTS.check, "none contradicts a unit")
    yield from healthy(_running(facts), _HERE, NOT_ACTIVE.check, "the broker's and the watchdog's unit")
    if facts.state_dir != _DEFAULT_STATE_DIR:
        yield from _writing(facts)
    if facts.needrestart:
        yield RESTARTED("needrestart would restart our units after an upgrade of a library, which cuts VMs off",
                        f"install -D -m 644 {shipped_directory() or 'systemd'}/{_NEEDRESTART} "
                        "/etc/needrestart/conf.d/ovs-hotswap.conf")  # fmt: skip


def _install(name: str, packaged: bool) -> str:
    if packaged:
        return "apt-get install --reinstall ovs-hotswap"
    source = shipped_directory() or Path("systemd")
    return f"install -m 644 {source}/{name} /etc/systemd/system/ && systemctl daemon-reload"


def _as_shipped(facts: Units) -> Iterator[Found]:
    for each in facts.files:
        if each.text is None:
            continue
        if each.shipped is None:
            yield NOT_COMPARED(f"{each.name}: the file that was shipped is not there to compare with",
                               f"systemctl cat {each.name}", each.name)  # fmt: skip
        elif each.text != each.shipped:
            hint = _install(each.name, facts.packaged)
            if facts.packaged and str(each.path).startswith("/etc/"):  # it takes the place of the package's
                hint = f"rm {each.path} && systemctl daemon-reload"
            text = f"{each.path} is not the file that belongs to this version; put changes into a drop-in"
            yield DIFFERS(text, hint, each.path)


def settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of a unit file or a drop-in (systemd.syntax(7))."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not line.lstrip().startswith(("#", ";", "[")):
            yield key.strip(), value.strip()


def _contradictions(files: Iterable[UnitFile]) -> Iterator[Found]:
    for each in files:
        for path, text in (each.drop_ins or {}).items():
            values = dict(settings(text))
            for rule in CONTRADICTIONS:
                value = values.get(rule.key)
                if rule.unit == each.name and value and rule.wrong.match(value):
                    command = f"sed -i '/^[ \\t]*{rule.key}[ \\t]*=/d' {path} && systemctl daemon-reload"
                    yield CONTRADICTS(f"{path} sets {rule.key}={value}: {rule.why}", command, path)


def _running(facts: Units) -> Iterator[Found]:
    wanted = [BROKER, RESTORE, *([WATCH] if facts.watching else [])]
    for each in facts.files:
        if each.text is None:
            continue
        if each.stale:
            yield NOT_READ(
                f"systemd has not read {each.path} since it was changed", "systemctl daemon-reload", each.path
            )
        if each.name not in wanted:
            continue
        if not each.enabled:
            yield NOT_ENABLED(f"{each.name} is not enabled: it does not start at boot", f"systemctl enable {each.name}",
                              each.name)  # fmt: skip
        if each.active not in (None, "active", "activating", "reloading") and each.name != RESTORE:
            yield NOT_ACTIVE(f"{each.name} is {each.active}", f"systemctl start {each.name}", each.name)


def _writing(facts: Units) -> Iterator[Found]:
    for each in facts.files:
        if each.text is None or each.name not in _WRITERS:
            continue
        values = [value for text in (each.drop_ins or {}).values() for key, value in settings(text)
                  if key in ("ReadWritePaths", "StateDirectory", "BindPaths")]  # fmt: skip
        if not _covers(facts.state_dir, values):
            where, text = f"/etc/systemd/system/{each.name}.d", f"[Service]\\nReadWritePaths={facts.state_dir}\\n"
            command = f"mkdir -p {where} && printf '{text}' > {where}/state.conf && systemctl daemon-reload"
            yield CANNOT_WRITE(f"{each.name} may not write to state_dir ({facts.state_dir})", command, each.name)


def _covers(path: Path, values: Collection[str]) -> bool:
    words = [Path(word.lstrip("-+")) for value in values for word in value.split()]
    return any(path.is_relative_to(word) or path == Path("/var/lib") / word for word in words)
