"""Releases: whether those that are needed can be used, at the next boot, for the standby, and to go back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ovs_hotswap.config import Config, read_kept
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.model import Severity
from ovs_hotswap.switch.release import HOST, LOCK, VSWITCHD, ReleaseEntry

_HERE = Section.RELEASES
NEEDED = Kind(_HERE, "needed", Severity.ERROR)
ABSENT = Kind(_HERE, "needed", Severity.WARNING)
UNUSABLE = Kind(_HERE, "usable", Severity.WARNING)
NONE = Kind(_HERE, "usable", Severity.ERROR)
LEFT = Kind(_HERE, "leftovers", Severity.WARNING)

AT_BOOT, FOR_STANDBY, TO_GO_BACK = "for the next boot", "for the standby (watch.release)", "to go back to"


@dataclass(frozen=True, slots=True)
class Stock:
    """``entries``: the releases. ``needed``: what each release is needed for, by its name. ``left``: directories that a
    killed command has left; one that still runs has the lock, and its directories are not left."""

    entries: tuple[ReleaseEntry, ...]
    needed: Mapping[str, str]
    left: tuple[str, ...]


def read(root: Root, config: Config, entries: Iterable[ReleaseEntry], before: str | None) -> Stock:
    """``before`` is the release to which `rollback` would go."""
    kept = read_kept(config)
    needed = {} if before is None else {before: TO_GO_BACK}
    needed |= {} if config.watch.release is None else {config.watch.release: FOR_STANDBY}
    needed |= {} if kept is None else {kept.release: AT_BOOT}
    left = [str(path) for pattern in (".build-*", ".remove-*") for path in config.releases_dir.glob(pattern)]
    return Stock(tuple(entries), needed, () if _at_work(root, config) else tuple(sorted(left)))


def _at_work(root: Root, config: Config) -> bool:
    """Whether a release is being added or removed. The lock is looked at and not taken: its owner would be refused."""
    try:
        lock = (config.releases_dir / LOCK).stat().st_ino
    except OSError:
        return False
    held = (line.split() for line in (root.text("proc/locks") or "").splitlines())
    return any("FLOCK" in words and words[-3].endswith(f":{lock}") for words in held if len(words) > 3)


def judge(facts: Stock) -> Iterator[Found]:
    usable = {each.name: each.release for each in facts.entries if each.release is not None}
    for each in facts.entries:
        if each.name in usable:
            yield ok(_HERE, UNUSABLE.check, f"{usable[each.name].label}, {each.source}")
        elif each.name not in facts.needed and (each.name != HOST or (usable and _installed(each))):
            yield UNUSABLE(
                f"release {each.name} cannot be used: {each.error}", _again(each.name, each.source), each.name
            )
    for name, why in facts.needed.items():
        if name not in usable:
            there = next((each for each in facts.entries if each.name == name), None)
            error, source = (there.error, there.source) if there else ("there is none of that name", "")
            kind = ABSENT if why == TO_GO_BACK else NEEDED
            yield kind(f"release {name} is needed {why}, and cannot be used: {error}", _again(name, source), name)
    if not usable and not facts.needed:
        yield NONE("no release can be used, so no instance can be started", _again(HOST))
    for path in facts.left:
        yield LEFT(f"{path} was left by a command that was killed", f"rm -rf --one-file-system {path}", path)


def _installed(host: ReleaseEntry) -> bool:
    """Whether the host's package is there and broken. A host that runs other releases needs none."""
    return not (host.error or "").endswith(f"{VSWITCHD} is missing")


def _again(name: str, source: str = "") -> str:
    """Return the commands that make a release again from its source (``Manifest.text``)."""
    if name == HOST:
        return "apt-get install openvswitch-switch-dpdk"
    remove = f"`ovs-hotswap release remove {name}`, then "
    if suite := source.removeprefix("Debian ") if source.startswith("Debian ") else "":
        return f"{remove}`ovs-hotswap release add {name} --suite {suite}`"
    if directory := source.removeprefix("the directory ") if source.startswith("the directory ") else "":
        return f"{remove}`ovs-hotswap release add {name} --from-directory {directory}`"
    return f"`ovs-hotswap release add {name} --suite trixie`, or another suite or directory"
