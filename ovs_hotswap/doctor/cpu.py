"""The cores with PMD threads: whether anything else runs on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ovs_hotswap.doctor import boot
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, healthy
from ovs_hotswap.model import Severity
from ovs_hotswap.wording import listed, ranges

_HERE, _CPU = Section.CPU, "sys/devices/system/cpu"
ONLINE = f"{_CPU}/online"
ISOLATION = Kind(_HERE, "isolation", Severity.WARNING)
TICKS = Kind(_HERE, "timer ticks", Severity.WARNING)
INTERRUPT = Kind(_HERE, "interrupts", Severity.WARNING, safe=True)
SIBLING = Kind(_HERE, "SMT siblings", Severity.WARNING)
GOVERNOR = Kind(_HERE, "governor", Severity.WARNING, safe=True)


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt that arrives at ``cores``. ``counted``: how often it came to cores with PMD threads since boot."""

    number: int
    name: str
    cores: frozenset[int]
    counted: int


@dataclass(frozen=True, slots=True)
class Cores:
    """What the kernel says about the cores. ``polling`` are those with PMD threads. ``isolated`` and ``tickless``: the
    kernel runs no other work there, and stops its timer there. ``siblings`` has the other threads of a core of the
    processor, ``governors`` what decides about its frequency, for each of ``polling``."""

    polling: frozenset[int]
    online: frozenset[int]
    isolated: frozenset[int]
    tickless: frozenset[int]
    siblings: Mapping[int, frozenset[int]]
    governors: Mapping[int, str]
    interrupts: tuple[Interrupt, ...]


def read(root: Root, polling: Iterable[int]) -> Cores:
    cores = frozenset(polling)
    governors = {core: root.text(f"{_CPU}/cpu{core}/cpufreq/scaling_governor") for core in cores}
    # A cpuset partition isolates cores without the command line (Documentation/admin-guide/cgroup-v2.rst).
    partition = root.numbers("sys/fs/cgroup/cpuset.cpus.isolated")
    return Cores(
        cores,
        listed(root.need(ONLINE)),
        listed(root.need(f"{_CPU}/isolated")) | partition,
        # A kernel without CONFIG_NO_HZ_FULL has no such file, and cannot be told otherwise.
        root.numbers(f"{_CPU}/nohz_full") if root.exists(f"{_CPU}/nohz_full") else cores,
        {core: root.numbers(f"{_CPU}/cpu{core}/topology/thread_siblings_list") - {core} for core in cores},
        {core: text for core, text in governors.items() if text},
        tuple(_interrupts(root, cores)),
    )


def _interrupts(root: Root, polling: frozenset[int]) -> Iterator[Interrupt]:
    lines = root.need("proc/interrupts").splitlines()
    columns = [int(word.removeprefix("CPU")) for word in lines[0].split()] if lines else []
    for line in lines[1:]:
        label, _, rest = line.partition(":")
        words = rest.split()
        if not label.strip().isdecimal() or len(words) < len(columns):
            continue
        counts = dict(zip(columns, map(int, words[: len(columns)]), strict=True))
        number = int(label)
        cores = root.numbers(f"proc/irq/{number}/effective_affinity_list")
        yield Interrupt(number, " ".join(words[len(columns) :]), cores, sum(counts.get(core, 0) for core in polling))


def judge(facts: Cores) -> list[Found]:
    polling = facts.polling & facts.online
    found = [*_undisturbed(facts, polling), *_siblings(facts, polling), *_governors(facts)]
    if not polling or not (others := facts.online - facts.polling):
        return found  # interrupts have nowhere else to go
    arriving = [each for each in facts.interrupts if each.cores & polling and each.counted]
    found += healthy((_interrupt(each, polling, others) for each in arriving), _HERE, INTERRUPT.check,
                     f"none arrives at core {ranges(polling)}")  # fmt: skip
    return found


def _interrupt(each: Interrupt, polling: frozenset[int], others: frozenset[int]) -> Found:
    text = (
        f"interrupt {each.number} ({each.name}) arrives at core {ranges(each.cores & polling)}, which has a PMD thread"
    )
    item = f"interrupt {each.number} ({each.name})"
    return INTERRUPT(text, f"echo {ranges(others)} > /proc/irq/{each.number}/smp_affinity_list", item)


def _undisturbed(facts: Cores, polling: frozenset[int]) -> Iterator[Found]:
    names = ranges(facts.polling)
    words = f"isolcpus=managed_irq,domain,{names} nohz_full={names} rcu_nocbs={names}"
    command = boot.with_words("cores", words)
    shared, ticking = polling - facts.isolated, polling - facts.tickless
    if shared:
        yield ISOLATION(f"core {ranges(shared)} has PMD threads, and the kernel gives other work to it", command)
    elif ticking:
        yield TICKS(f"core {ranges(ticking)} has PMD threads, and the kernel's timer interrupts them", command)
    elif polling:
        yield from healthy([], _HERE, ISOLATION.check, f"core {names} is for PMD threads alone")


def _siblings(facts: Cores, polling: frozenset[int]) -> Iterator[Found]:
    for core in sorted(polling):
        for sibling in sorted(facts.siblings.get(core, frozenset()) & facts.online - facts.polling - facts.isolated):
            text = f"core {core} has a PMD thread, and core {sibling}, the other half of it, is used for other work"
            yield SIBLING(text, f"if no VM is pinned to core {sibling}: `echo 0 > /{_CPU}/cpu{sibling}/online`")


def _governors(facts: Cores) -> Iterator[Found]:
    slow = {core: name for core, name in facts.governors.items() if name != "performance"}
    for core, name in sorted(slow.items()):
        text = f"core {core} has a PMD thread, and the governor {name!r} lowers its frequency"
        yield GOVERNOR(text, f"echo performance > /{_CPU}/cpu{core}/cpufreq/scaling_governor", f"core {core}")
    if facts.governors and not slow:
        yield from healthy([], _HERE, GOVERNOR.check, "performance")
