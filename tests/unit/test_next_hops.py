"""Which next hops are used: the MACs that are known, and the first gateway that answers."""

from __future__ import annotations

from typing import Any

import pytest

from ovs_hotswap.model import Severity
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.next_hops import NextHops, asked, changes, choose, judge

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
ONE, TWO, FAR = "192.0.2.0", "192.0.2.2", "10.0.0.2"
M1, M2, M3 = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
NETWORK = "10.0.0.0/24"


def intent(macs: dict[str, str | None], *gateways: str, remote: str | None = None) -> Intent:
    """``macs``: of the neighbours in the overlay file."""
    tables: dict[str, Any] = {
        "vtep": {"address": "10.9.9.9/32", "mac": "52:54:00:1f:00:01",
                 "link_addresses": ["192.0.2.1/31", "192.0.2.3/31"]},
        "neighbour": [{"address": address, **({} if mac is None else {"mac": mac})} for address, mac in macs.items()],
        "route": [{"destination": NETWORK, "gateway": list(gateways)}] if gateways else [],
        "remote": [{"vni": 1, "mac": M3, "vtep": remote}] if remote else [],
    }  # fmt: skip
    return Intent.model_validate(tables)


def test_neighbours_without_a_mac_and_gateways_with_an_alternative_are_asked() -> None:
    assert [each.address for each in asked(intent({ONE: None, TWO: M2}))] == [ONE]
    assert asked(intent({ONE: M1, TWO: M2}, ONE)) == ()
    assert [each.address for each in asked(intent({ONE: M1, TWO: M2}, ONE, TWO))] == [ONE, TWO]


@pytest.mark.parametrize(
    ("given", "answers", "before", "expected"),
    [
        (M1, {}, {}, M1), (M1, {ONE: M2}, {}, M1), (M1, {ONE: M2}, {ONE: M3}, M1),
        (None, {}, {}, None), (None, {ONE: M2}, {}, M2), (None, {ONE: M2}, {ONE: M3}, M2), (None, {}, {ONE: M3}, M3),
    ],
)  # fmt: skip
def test_the_files_mac_counts_then_the_answer_then_the_last_one(
    given: str | None, answers: dict[str, str], before: dict[str, str], expected: str | None
) -> None:
    assert choose(intent({ONE: given}), answers, NextHops({}, before)).macs.get(ONE) == expected


@pytest.mark.parametrize(
    ("alive", "before", "expected"),
    [
        ([ONE, TWO], None, ONE), ([TWO], None, TWO), ([ONE, TWO], TWO, ONE), ([TWO], ONE, TWO), ([ONE], TWO, ONE),
        ([], TWO, TWO), ([], ONE, ONE), ([], None, ONE), ([], "192.0.2.9", ONE),
    ],
)  # fmt: skip
def test_the_first_gateway_that_answers_is_used_and_the_last_one_if_none_does(
    alive: list[str], before: str | None, expected: str
) -> None:
    of = intent({ONE: M1, TWO: M2}, ONE, TWO)
    earlier = NextHops({} if before is None else {NETWORK: before})
    assert choose(of, dict.fromkeys(alive, M1), earlier).gateways == {NETWORK: expected}


def test_a_gateway_whose_mac_is_known_is_used_before_one_that_has_never_answered() -> None:
    assert choose(intent({ONE: None, TWO: M2}, ONE, TWO), {}, NextHops()).gateways == {NETWORK: TWO}


def test_a_single_gateway_is_used_whether_or_not_it_answers() -> None:
    assert choose(intent({ONE: None, TWO: M2}, ONE), {}, NextHops()).gateways == {NETWORK: ONE}


def test_what_changes_is_said() -> None:
    before = NextHops({NETWORK: ONE}, {ONE: M1})
    assert changes(before, before) == []
    assert changes(before, NextHops({NETWORK: TWO}, {ONE: M2, TWO: M3})) == [
        f"next hop {ONE} is at {M2} now, before at {M1}", f"next hop {TWO} is at {M3} now",
        f"{NETWORK} goes through {TWO} now, before through {ONE}",
    ]  # fmt: skip
    assert changes(NextHops(), before) == [f"next hop {ONE} is at {M1} now"]


@pytest.mark.parametrize(
    ("of", "answers", "before", "severity", "parts"),
    [
        (intent({ONE: None}), {ONE: M1}, {}, OK, ["1 were asked"]),
        (intent({ONE: None}), {}, {}, ERROR, [ONE, "its MAC is not known", "nothing can be sent to"]),
        (intent({ONE: None}, remote=ONE), {}, {}, ERROR, [ONE, f"VTEP {ONE}"]),
        (intent({ONE: None}, remote=ONE), {}, {ONE: M1}, WARNING, [ONE, "last known MAC"]),
        (intent({ONE: None}, ONE), {}, {}, ERROR, [ONE, f"the network {NETWORK}"]),
        (intent({ONE: None, TWO: None}, ONE, TWO), {}, {}, ERROR, [f"{ONE} and {TWO} do not", "their MAC", NETWORK]),
        (intent({ONE: None, TWO: None}, ONE, TWO), {TWO: M2}, {}, WARNING, [ONE, f"goes through {TWO}"]),
        (intent({ONE: None, TWO: None}, ONE, TWO), {ONE: M1}, {}, WARNING, [TWO, f"goes through {ONE}"]),
        (intent({ONE: M1, TWO: M2}, ONE, TWO), {}, {}, WARNING, [f"{ONE} and {TWO}", "last known MAC"]),
        (intent({ONE: M1, TWO: M2}, ONE, TWO), {ONE: M1, TWO: M3}, {}, WARNING, [TWO, M2, M3, "answers from"]),
    ],
)  # fmt: skip
def test_a_silent_next_hop_is_named_with_what_is_behind_it(
    of: Intent, answers: dict[str, str], before: dict[str, str], severity: Severity, parts: list[str]
) -> None:
    (found,) = judge(of, answers, NextHops({}, before))
    assert found.severity is severity
    assert [part for part in parts if part not in found.text] == []
    assert severity is OK or found.hint


def test_nothing_is_said_where_nothing_is_asked() -> None:
    assert judge(intent({ONE: M1}, ONE), {}, NextHops()) == []
