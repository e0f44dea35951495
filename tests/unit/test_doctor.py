"""doctor: a healthy host has no finding."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ovs_hotswap.doctor.report import Section
from tests.unit.doctor_bed import Bed, bad

# Releases are programs of the machine that runs the test.
SECTIONS = tuple(section for section in Section if section is not Section.RELEASES)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def hidden(check: str) -> bool:
    """Whether a finding is about the caller, who is not root in every test run."""
    return check == "caller" and os.geteuid() != 0


def test_a_healthy_host_has_no_finding(bed: Bed) -> None:
    found = bed.examine(*SECTIONS)
    assert [each for each in bad(found) if not hidden(each.check)] == []
    assert {each.section for each in found} == set(SECTIONS)


def test_a_healthy_host_with_units_has_no_finding(bed: Bed) -> None:
    bed.install_units()
    assert bad(bed.examine(Section.UNITS)) == []
