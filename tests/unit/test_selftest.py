"""`ovs-hotswap uplink selftest` and `uplink show`, over a fake NIC and over the devices of this machine."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import main, uplink_cmd
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY_EXAMPLE
from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.ethtool import UDP_V4_FLOW, Ethtool, FlowRule
from ovs_hotswap.uplink.i40e_rules import CLOUD
from ovs_hotswap.uplink.selftest import FORMS, Result, Trial, not_tried, passed, refuse_used, try_forms
from tests.support.fake_i40e import EADMINQ, FakeCards, FakeI40e

AT = (4094, 4095)


def results(nic: FakeI40e) -> dict[str, Result]:
    return {each.name: each.result for each in trials(nic)}


def trials(nic: FakeI40e) -> list[Trial]:
    found = list(try_forms("pf0", Ethtool(nic, "pf0"), 1, AT))
    assert (nic.cloud, nic.director, nic.firmware) == ({}, {}, {}), "all is given back"
    return found


def test_each_form_is_tried_moved_and_given_back() -> None:
    found = trials(FakeI40e())
    assert [each.result for each in found] == [Result.PASSED] * 3
    assert "rule 4094: UDP port 64789 to VF 1: read back, moved 20 times" in found[0].text
    assert all(each.ms is not None for each in found)
    assert passed(found, None)


@pytest.mark.parametrize(("nic", "refused", "match", "serves"), [
    (FakeI40e(l4mode=False), {"UDP port"}, "udp-port", False),
    (FakeI40e(l4mode=False), {"UDP port"}, "address", True),
    (FakeI40e(package=False), {"outer address"}, "address", True),
    (FakeI40e(package=False, l4mode=False), {"outer address", "UDP port"}, None, True),
    (FakeI40e(ntuple=False), set(FORMS), None, False),
])  # fmt: skip
def test_what_the_nic_does_not_have_is_refused_and_judged_by_what_is_needed(
    nic: FakeI40e, refused: set[str], match: str | None, serves: bool
) -> None:
    found = trials(nic)
    assert {each.name for each in found if each.result is Result.REFUSED} == refused
    assert all(each.hint for each in found if each.result is Result.REFUSED)
    assert passed(found, match) is serves


class Odd(FakeI40e):
    """A NIC that does not do what its driver's source says."""

    def __init__(self, after: Callable[[Odd, int], None]) -> None:
        super().__init__()
        self.after, self.inserts = after, 0

    def call(self, device: str, request: bytes) -> bytes:
        answer = super().call(device, request)
        if request[0] == 0x32:
            self.inserts += 1
            self.after(self, self.inserts)
        return answer


def _elsewhere(nic: Odd, _count: int) -> None:
    nic.reset_vf(1)  # the rule reads back as one that leads to no VF


def _lost(nic: Odd, _count: int) -> None:
    nic.cloud.clear()
    nic.firmware.clear()


def _refuses_the_fifth(nic: Odd, count: int) -> None:
    nic.refuse = EADMINQ if count == 4 else None


def _takes_a_second_one(nic: Odd, _count: int) -> None:
    nic.firmware.clear()


@pytest.mark.parametrize(("fault", "text"), [
    (_elsewhere, "reads back as rule 4094: UDP port 64789 to the device itself"),
    (_lost, "reads back as no rule"),
    (_refuses_the_fifth, "after it was inserted once"),
    (_takes_a_second_one, "was not refused"),
])  # fmt: skip
def test_a_nic_that_does_something_else_fails(fault: Callable[[Odd, int], None], text: str) -> None:
    found = trials(Odd(fault))
    assert found[0].result is Result.FAILED
    assert text in found[0].text
    assert not passed(found, None)


def test_places_in_use_are_refused_and_left_alone() -> None:
    nic = FakeI40e()
    tool = Ethtool(nic, "pf0")
    tool.insert(FlowRule(4095, UDP_V4_FLOW, 0, 0xFFFF, port=4789, user=CLOUD))
    with pytest.raises(UplinkError, match="rule 4095: UDP port 4789 to VF 0: this location is in use") as caught:
        refuse_used("pf0", tool, AT)
    assert "--locations" in str(caught.value.hint)
    refuse_used("pf0", tool, (4092, 4093))
    assert nic.cloud.keys() == {4095}


def test_a_rule_that_cannot_be_deleted_is_an_error_with_the_command() -> None:
    class Keeps(FakeI40e):
        def _delete(self, nfc: Any) -> None:
            """Says that it is deleted."""

    with pytest.raises(UplinkError, match="still there") as caught:
        list(try_forms("pf0", Ethtool(Keeps(), "pf0"), 1, AT))
    assert caught.value.hint == "ethtool -N pf0 delete 4094"


# ---------------------------------------------------------------------------------------------------------- the command


class Shell:
    """Runs command lines in this process."""

    def __init__(self, directory: Path) -> None:
        overlay = directory / "overlay.toml"
        overlay.write_text(OVERLAY_EXAMPLE)
        self.config = directory / "config.toml"
        self.config.write_text(
            f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
            + EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(overlay))
        )
        self.text, self.err = "", ""

    def __call__(self, *arguments: str) -> int:
        out, err = io.StringIO(), io.StringIO()
        status = main.run(["--config", str(self.config), *arguments], App(Output(out=out, err=err)))
        self.text, self.err = out.getvalue(), err.getvalue()
        return status


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_device_of_another_kind_is_reported(shell: Shell) -> None:
    assert shell("uplink", "selftest", "--device", "lo", "--locations", "1", "2", "--vf", "0", "--json") == 12
    assert shell("uplink", "selftest", "--device", "no-such0", "--locations", "1", "2", "--json") == 4
    document = json.loads(shell.text)
    assert [each["severity"] for each in document["findings"]] == ["error"]
    assert {each["result"] for each in document["trials"]} == {"not tried"}
    assert document["passed"] is None


def test_two_places_are_needed(shell: Shell) -> None:
    assert shell("uplink", "selftest", "--device", "lo", "--locations", "7", "7") == 2
    assert "must differ" in shell.err


def report(nic: FakeI40e, *, vf: int | None, match: str | None = "udp-port", dry_run: bool = False) -> dict[str, Any]:
    with FakeCards(nic).open() as card:
        return uplink_cmd.report_of(card, vf, AT, match, dry_run=dry_run)


def test_the_report_of_a_good_nic() -> None:
    found = report(FakeI40e(), vf=1)
    assert found["passed"] is True
    assert (found["driver"], found["version"]) == ("i40e", "2.28.16")
    assert {each.severity for each in found["findings"]} == {"ok"}


def test_the_report_as_text_ends_with_the_verdict() -> None:
    for nic, verdict in ((FakeI40e(), "can carry"), (FakeI40e(l4mode=False), "cannot carry")):
        out = io.StringIO()
        uplink_cmd.print_report(App(Output(out=out)), report(nic, vf=1))
        assert "UDP port 64789 to VF 1" in out.getvalue() or "could not be inserted" in out.getvalue()
        assert out.getvalue().splitlines()[-1] == f"the NIC {verdict} the overlay"


@pytest.mark.parametrize(("changes", "vf", "dry_run", "why"), [
    ({}, 1, True, "a dry run"),
    ({}, None, False, "without --vf"),
    ({}, 9, False, "a prerequisite is missing"),
    ({"version": "2.8.20-k"}, 1, False, "a prerequisite is missing"),
])  # fmt: skip
def test_nothing_is_tried_without_need(changes: dict[str, Any], vf: int | None, dry_run: bool, why: str) -> None:
    nic = FakeI40e(**changes)
    nic.refuse = errno.EIO
    found = report(nic, vf=vf, dry_run=dry_run)
    assert found["passed"] is None
    assert all(why in each.text for each in found["trials"])
    assert nic.refuse == errno.EIO, "no insert was made"


def test_the_text_says_what_was_not_tried() -> None:
    (first, *_) = not_tried(1, AT, "a dry run")
    assert first.text == "rule 4094: UDP port 64789 to VF 1 (a dry run)"
    (first, *_) = not_tried(None, AT, "without --vf")
    assert first.text == "rule 4094: UDP port 64789 to a VF (without --vf)"


def test_show_needs_only_what_can_be_read(shell: Shell) -> None:
    shell.config.write_text(shell.config.read_text().partition("\n[uplink]\n")[0])
    assert shell("uplink", "show", "--json") == 0
    document = json.loads(shell.text)
    assert (document["driver"], document["owner"], document["rules"], document["nics"]) == ("none", None, [], [])
    assert shell("uplink", "show") == 0
    assert "driver    none" in shell.text


def test_show_says_what_cannot_be_read(shell: Shell) -> None:
    text = shell.config.read_text().partition("\n[uplink]\n")[0]
    shell.config.write_text(text + '\n[uplink]\ndriver = "i40e"\ndevice = "no-such0"\nvf_a = 0\nvf_b = 1\n')
    assert shell("uplink", "show", "--json") == 0
    document = json.loads(shell.text)
    assert (document["owner"], document["rules"], document["counters"]) == (None, [], {})
    assert document["nics"] == [{"device": "no-such0", "driver": None, "version": None, "firmware": None}]
    assert {each["severity"] for each in document["findings"]} == {"error", "unknown"}
