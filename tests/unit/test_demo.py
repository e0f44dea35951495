from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ovs_hotswap.lab.demo import DemoReport, Phase
from ovs_hotswap.lab.pings import PingStats

ANSWERED = PingStats("vm1", "host", 10, 10, 0, 0, 10.0, 12.5, 0.1, 0.2, 0.3)
SILENT = replace(ANSWERED, guest="vm2", received=0, lost=10, longest_gap_ms=None, rtt_p50_ms=None, rtt_p99_ms=None,
                 rtt_max_ms=None)  # fmt: skip


def refused(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(("pings", "longest"), [([], 0.0), ([ANSWERED], 12.5), ([ANSWERED, SILENT], None)])
def test_the_document_is_json_even_if_a_guest_got_no_answer(pings: list[PingStats], longest: float | None) -> None:
    quiet, upgrade, rollback, restart = (Phase(name, 1.0, pings, {"vm1": 50.0})
                                         for name in ("quiet", "upgrade", "rollback", "restart"))  # fmt: skip
    report = DemoReport({"old": "host", "new": "trixie"}, quiet, upgrade, rollback, restart)
    document = json.loads(json.dumps(report.document()), parse_constant=refused)
    assert {phase["longest_gap_ms"] for phase in document["phases"].values()} == {longest}
