"""Makes the report of everything that is known. This module is pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ovs_hotswap.diagnose import drop_faults, host_faults, traffic_faults, underlay_faults, vm_faults
from ovs_hotswap.diagnose.drop_counts import dropped
from ovs_hotswap.diagnose.facts import Facts, VmPort
from ovs_hotswap.diagnose.found import Cause, Found, Path, Report, finding, not_seen, ordered
from ovs_hotswap.diagnose.naming import meaning_of, ports_of
from ovs_hotswap.diagnose.seen import of as seen_of
from ovs_hotswap.diagnose.target import Place, Question, Target
from ovs_hotswap.diagnose.target import judge as judge_target
from ovs_hotswap.diagnose.trace import Trace, told

FOREIGN = ("others program the bridges of this host, so it is not known which MACs, networks and tunnels they should "
           "have: of the flows only what they do is shown")  # fmt: skip

NOT_TAKEN = ("ovs-hotswap has not taken over this host's switch yet, so nothing of it was looked at: "
             "`ovs-hotswap check` does that")  # fmt: skip

NO_SOURCE = ("the packets that were put to the flow tables had no IP address as their source: flows that check it, "
             "such as port security, drop them and let the VM's own pass")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks: about a VM, and what it wants to reach. ``to`` is as the user wrote it."""

    vm: VmPort | None = None
    to: str | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the flow tables do with the packet of a question."""

    question: Question
    trace: Trace


def report(facts: Facts, asked: Asked = Asked(), answers: Iterable[Answer] = ()) -> Report:
    """Return the report, with the findings worst first."""
    answers = tuple(answers)
    vm = asked.vm.name if asked.vm is not None else None
    found = list(_all(facts, asked, answers))
    kept = ordered(found) if vm is None else _about(found, {vm, asked.target.vm if asked.target else None})
    return Report(
        vm, asked.to, facts.active, round(facts.seconds, 2), tuple(map(finding, kept)),
        tuple(seen_of(facts, asked.vm)),
        tuple(_path(each, facts) for each in answers), dropped(facts, vm),
        tuple(_limits(facts, asked, answers)),
    )  # fmt: skip


def _about(found: Iterable[Found], vms: set[str | None]) -> list[Found]:
    return ordered(each for each in found if each.vm is None or each.vm in vms)


def _all(facts: Facts, asked: Asked, answers: Iterable[Answer]) -> Iterator[Found]:
    vm = asked.vm.name if asked.vm is not None else None
    yield from host_faults.judge(facts)
    yield from vm_faults.judge(facts, vm)
    yield from underlay_faults.judge(facts, vm)
    yield from traffic_faults.judge(facts)
    yield from drop_faults.judge(facts)
    for text, hint in facts.mtus:
        yield Found(Cause.MTU, f"A place on the way is too narrow: {text}.", ("its MTU, as the kernel says it",),
                    hint or "`ovs-hotswap overlay check`")  # fmt: skip
    if asked.vm is not None and asked.target is not None:
        yield from judge_target(asked.vm, asked.target)
    for answer in answers:
        if answer.question.needed and answer.trace.delivered is False:
            last = answer.trace.steps[-1] if answer.trace.steps else None
            where = f"in table {last.table} of bridge {last.bridge}" if last else "by the switch"
            yield Found(
                Cause.FLOWS_DROP, f"{answer.question.words} is dropped {where}.", _path(answer, facts).steps[-3:],
                f"the way of the packet, whole: `{facts.switch.appctl(*_trace(answer))}`"
                if facts.switch is not None else "`ovs-hotswap status`", answer.question.vm,
            )  # fmt: skip
    for each in facts.unseen:
        yield not_seen(each.part, each.why, each.command)


def _trace(answer: Answer) -> tuple[str, ...]:
    return "ofproto/trace", answer.question.bridge, answer.question.flow


def _path(answer: Answer, facts: Facts) -> Path:
    steps = told(answer.trace, meaning_of(facts.wanted), ports_of(facts.wanted))
    return Path(f"{answer.question.words}.", steps, answer.trace.delivered)


def _limits(facts: Facts, asked: Asked, answers: Iterable[Answer]) -> Iterator[str]:
    if facts.switch is not None:
        yield from facts.switch.omitted
    if not facts.wanted.overlay:
        yield FOREIGN
        if facts.active is None:
            yield NOT_TAKEN
        if any(answer.trace.delivered is False for answer in answers):
            yield NO_SOURCE
    if asked.target is not None and asked.target.place is Place.NO_MAC:
        yield (f"the MAC of {asked.target.address} is not known here, as no packet to it was seen: ask the guest "
               "(`ip neigh`), then use --to with the MAC")  # fmt: skip
    underlay = facts.underlay
    if underlay is None or facts.active is None:
        return
    if not underlay.steers:
        yield "something else steers the uplink, so its rule and its frames cannot be judged"
    elif underlay.unproven:
        yield f"frames could not be sent to prove the uplink: {underlay.unproven}"
    elif underlay.proof is None or (underlay.proof.out is None and underlay.proof.into is None):
        yield "no frames were sent to prove the uplink"
    vteps = underlay_faults.vteps_of(facts, asked.vm.name if asked.vm else None)
    behind = [vtep for vtep in vteps if vtep not in underlay.asked]
    if behind and facts.wanted.overlay:
        what = "1 VTEP was" if len(behind) == 1 else f"{len(behind)} VTEPs were"
        why = ": they are behind a gateway, which was asked, or too many" if underlay.asked else ""
        yield f"{what} not asked, so it is not known whether anything answers there{why}"
