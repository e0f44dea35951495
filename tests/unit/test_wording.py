"""Many findings in few lines."""

from __future__ import annotations

import io

import pytest

from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.switch.openflow import window_incapable
from ovs_hotswap.upgrade import checks
from ovs_hotswap.upgrade.checks import VmFacts
from ovs_hotswap.wording import some, summary

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
NEUTRON = [
    f"cookie=0xabc, table=82, priority=77,ct_state=+new-est,tcp,reg5={number:#x},tp_dst=0x10/0xfff8 "
    "actions=ct(commit,zone=NXM_NX_REG6[0..15]),output:11,resubmit(,92)"
    for number in range(600)
]


def printed(findings: list[Finding]) -> list[str]:
    out = io.StringIO()
    Output(out=out).findings(findings)
    return out.getvalue().splitlines()


def test_few_are_told_one_by_one_and_many_by_examples() -> None:
    assert some(["a", "b", "c", "d"]) == "a, b, c, d"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_six_hundred_flows_are_a_line_for_each_reason() -> None:
    findings = checks.window_flows(window_incapable(NEUTRON))
    assert len(findings) == 1200
    lines = printed(findings)
    assert len(lines) == 3
    assert all("600 times: cannot be on two instances at once: " in line for line in lines[1:])
    assert sum(map(len, lines)) < 4000
    with pytest.raises(PrecheckFailed) as raised:
        checks.verdict(findings)
    assert len(raised.value.message.splitlines()) == 2
    assert len(raised.value.message) < 2000
    assert raised.value.hint == findings[0].hint


def test_255_vms_without_a_qemu_are_a_line() -> None:
    facts = [VmFacts(f"vm{number}", False, 0, 0, 0) for number in range(255)]
    findings = checks.vms_connected(facts, "/run/{}.sock".format)
    assert len(findings) == 255
    (_, line) = printed(findings)
    assert "255 times: VM vm0: its QEMU is not connected" in line
    assert "also of VM vm1; VM vm2; VM vm3 and 251 more" in line


def test_what_differs_in_more_than_its_item_is_told_apart() -> None:
    findings = [Finding("features", ERROR, f"VM vm{number} uses {what}", None, f"VM vm{number}")
                for what in ("A", "B") for number in range(6)]  # fmt: skip
    assert [each.text for each in summary(findings)] == [
        f"6 times: VM vm0 uses {what}; also of VM vm1; VM vm2; VM vm3 and 2 more" for what in ("A", "B")
    ]


def test_three_of_a_kind_stay_as_they_are() -> None:
    findings = [Finding("QEMU", WARNING, f"VM vm{number}: gone", None, f"VM vm{number}") for number in range(3)]
    assert summary(findings) == findings


def test_what_has_nothing_in_common_is_told_up_to_a_number() -> None:
    findings = [Finding("log", ERROR, f"error {number * 7919}") for number in range(100)]
    found = summary([*findings, Finding("flows", OK, "fine")])
    assert [each.text for each in found[-2:]] == ["fine", "and 92 more"]
    assert len(found) == 10


def test_a_long_flow_is_cut() -> None:
    (finding,) = summary([Finding("flows", ERROR, f"wrong: {'x' * 5000}", None, "x" * 5000)])
    assert len(finding.text) < 200
