"""`diagnose` as a command: its page, its document, its exit codes, and how changes are followed."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.findings_page import follow
from ovs_hotswap.cli.output import Output
from ovs_hotswap.config_file import load_config
from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.diagnose.asking import asked
from ovs_hotswap.diagnose.facts import Facts, RemoteMac, Standby, Unseen
from ovs_hotswap.diagnose.found import Cause, Found, Report
from ovs_hotswap.diagnose.judging import Answer, Asked, report
from ovs_hotswap.diagnose.looking import hop_in, wanted_of
from ovs_hotswap.diagnose.page import headlines, lines
from ovs_hotswap.diagnose.parts import together
from ovs_hotswap.diagnose.target import Place, questions
from ovs_hotswap.diagnose.trace import parse
from ovs_hotswap.errors import ConfigError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.intent import load_intent
from ovs_hotswap.overlay.tables import Kind
from tests.support.json_schema import faults
from tests.unit import diagnose_bed as bed
from tests.unit.diagnose_bed import FAR, HEALTHY, VTEP, WANTED
from tests.unit.doctor_bed import Bed
from tests.unit.fake_system import FakeSystem
from tests.unit.test_cli import Terminal
from tests.unit.test_diagnose_texts import BY_TUNNEL
from tools import schema

PAGE = schema.DIRECTORY.parent / "json.md"
DIAGNOSE = json.loads((schema.DIRECTORY / "diagnose.schema.json").read_text())
GONE = replace(HEALTHY, broker_fault="cannot connect", guests=None)


def page(found: Report, width: int = 100) -> str:
    return "\n".join(text for _, text in lines(found, width))


def about_vm1(facts: Facts = HEALTHY) -> Report:
    vm = WANTED.vms["vm1"]
    asked_for = questions(WANTED, vm, None)[1]
    return report(facts, Asked(vm), [Answer(asked_for, parse(BY_TUNNEL))])


def test_the_page_of_a_vm_shows_its_way() -> None:
    text = page(about_vm1())
    for words in ("vm1: instance a is active", "nothing that was looked at is wrong", "owner", "parked", "ring 1",
                  "steered to a", VTEP, "into the tunnel to 172.31.0.2", "out by uplink", "b, ready"):  # fmt: skip
        assert words in text


def test_the_page_of_a_vm_shows_what_becomes_of_its_traffic() -> None:
    flows = (
        bed.flow(),
        bed.flow(to=bed.VM2, actions="2", packets=99),
        bed.flow(to=None, actions="ct(zone=7),recirc(1)"),
        bed.flow(actions="1", used=9.0, packets=500),
        bed.flow("vm2", packets=700),
    )
    ports = {**(bed.SWITCH.ports or {}), "vm2": bed.port("vm2", number="2")}
    text = page(about_vm1(bed.switch(megaflows=flows, ports=ports)))
    assert "for 52:54:00:64:00:02: to vm2; 99 packets so far" in text
    assert f"for {FAR}: dropped; 12 packets so far" in text
    assert "for any MAC: to another lookup" in text
    assert "its packets pass zone 7" in text
    assert "500 packets" not in text, "the last one came too long ago"
    assert "700 packets" not in text, "they are another VM's"


def test_each_finding_has_its_evidence_and_the_next_command() -> None:
    text = page(report(GONE))
    assert text.index("FAIL  The broker does not answer") < text.index("seen: cannot connect")
    assert text.index("seen: cannot connect") < text.index("next: systemd")
    assert "[broker-gone]" in text


def test_the_same_of_many_vms_is_told_once() -> None:
    unprotected = tuple(f"vm{number}" for number in range(1, 256))
    found = report(replace(HEALTHY, standby=Standby(True, Side.B, "ready", unprotected)))
    text = page(found)
    assert len(found.findings) == 255
    assert text.count("[not-protected]") == 1
    assert "the same of 254 more" in text


def test_many_findings_of_one_cause_are_counted() -> None:
    lines_of_flows = tuple(
        bed.line(
            Kind.TO_REMOTE, "set_field:172.31.0.9->tun_dst,output:2", f",dl_dst=52:54:00:65:00:{number:02x}", vni=100
        )
        for number in range(200)
    )
    remotes = tuple(RemoteMac(100, f"52:54:00:65:00:{number:02x}", VTEP) for number in range(200))
    found = report(replace(bed.switch(differences=lines_of_flows), wanted=replace(WANTED, remotes=remotes)))
    text = page(found)
    assert len(found.findings) == 200
    assert text.count("[wrong-vtep]") == 5
    assert "and 196 more [wrong-vtep]" in text


def test_long_lines_are_wrapped_and_commands_are_not() -> None:
    found = report(GONE)
    wide = [text for _, text in lines(found, 60)]
    assert all(len(text) <= 60 for text in wide if "next:" not in text)
    assert next(text for text in wide if "next:" in text).endswith(found.findings[0].command)


def test_drops_and_limits_are_on_the_page() -> None:
    facts = bed.switch(after=bed.counted("vm1", statistics={"ovs_rx_qos_drops": 4}))
    text = page(report(replace(facts, underlay=replace(bed.UNDERLAY, asked=()))))
    assert "policing" in text
    assert "Not judged" in text
    counted = [replace(each, vm=f"vm{number}") for number in range(20) for each in report(facts).drops]
    assert "and 8 more" in page(replace(report(facts), drops=tuple(counted)))


def test_the_document_is_as_its_schema_says() -> None:
    for found in (about_vm1(), report(GONE), report(replace(HEALTHY, active=None, switch=None))):
        out = io.StringIO()
        output = Output(out=out)
        output.json = True
        output.document(found)
        assert faults(DIAGNOSE, json.loads(out.getvalue())) == []


def test_the_page_of_documents_has_every_cause_in_order_and_every_reason() -> None:
    section = PAGE.read_text().partition("\n## diagnose\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning|unknown) \|", section, re.MULTILINE)
    known = [Found(cause, "", (), "") for cause in Cause]
    assert rows == [(each.cause, each.severity) for each in known]
    assert [each for each in Reason if f"`{each}`" not in section] == []


# ------------------------------------------------------------------------------------------------------ as a command


def run(config: Path, *arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main.run(["--config", str(config), *arguments], App(Output(out=out, err=err)))
    return code, out.getvalue(), err.getvalue()


def test_a_host_on_which_nothing_runs(tmp_path: Path) -> None:
    config = Bed(tmp_path).config
    code, out, _ = run(config, "--json", "diagnose", "--seconds", "0.6")
    found: dict[str, Any] = json.loads(out)
    assert code == 4
    assert [each["cause"] for each in found["findings"]][:2] == ["broker-gone", "no-active-instance"]
    assert faults(DIAGNOSE, found) == []
    code, out, _ = run(config, "diagnose", "--seconds", "0.6")
    assert code == 4
    assert "[broker-gone]" in out


def test_a_terminal_shows_the_mark_in_its_colour(tmp_path: Path) -> None:
    out = Terminal()
    code = main.run(["--config", str(Bed(tmp_path).config), "diagnose", "--seconds", "0.6"], App(Output(out=out)))
    assert code == 4
    assert re.search(r"\x1b\[[\d;]*mFAIL\x1b\[0m", out.getvalue())


def test_a_vm_that_does_not_exist_and_a_target_without_a_vm(tmp_path: Path) -> None:
    config = Bed(tmp_path).config
    code, _, err = run(config, "diagnose", "nobody", "--seconds", "0.6")
    assert code == ConfigError.exit_code
    assert "nobody" in err
    assert run(config, "diagnose", "--to", VTEP)[0] == 2


def test_the_shell_completes_the_names_of_vms(tmp_path: Path) -> None:
    host = Bed(tmp_path)
    known = sorted(vm.name for vm in load_intent(host.overlay).vms)
    shell = ShellComplete(main.cli, {}, main.PROGRAM, "_X")
    for words in (["diagnose"], ["diagnose", known[0], "--to"]):
        found = shell.get_completions(["--config", str(host.config), *words], known[0][:1])
        assert [each.value for each in found] == [name for name in known if name.startswith(known[0][:1])]
    assert shell.get_completions(["--config", str(tmp_path / "none.toml"), "diagnose"], "") == []


def follow_all(output: Output, looks: list[Callable[[], Report]]) -> None:
    """Follow these looks; the user interrupts after the last one."""
    left = list(looks)

    def wait() -> None:
        if not left:
            raise KeyboardInterrupt

    follow(App(output), lambda: left.pop(0)(), headlines, wait)


def failing() -> Report:
    raise StateUnknown("the record cannot be read")


def test_what_changes_is_a_line() -> None:
    out = io.StringIO()
    follow_all(Output(out=out), [lambda: report(HEALTHY), lambda: report(GONE), lambda: report(GONE), failing])
    texts = [line[10:] for line in out.getvalue().splitlines()]
    assert texts[0].startswith("ok")
    assert texts[1].startswith("FAIL  The broker")
    assert texts[2] == "?     the record cannot be read"
    assert texts[3].startswith("no longer: FAIL  The broker")
    assert len(texts) == 4


def test_what_changes_is_a_document_on_one_line() -> None:
    out = io.StringIO()
    output = Output(out=out)
    output.json = True
    follow_all(output, [lambda: report(HEALTHY), lambda: report(HEALTHY), lambda: report(GONE)])
    assert [len(json.loads(line)["findings"]) for line in out.getvalue().splitlines()] == [0, 1]


def test_headlines_have_the_mark_of_their_severity() -> None:
    found = replace(GONE, unseen=(Unseen("The uplink", "no answer"),))
    assert [line[:5] for line in headlines(report(found))] == ["FAIL ", "?    "]


# ------------------------------------------------------------------------------------------------- what is looked at


def test_what_is_asked() -> None:
    assert asked(HEALTHY, None, None) == Asked()
    to_mac = asked(HEALTHY, "vm1", FAR.upper())
    assert to_mac.target is not None
    assert (to_mac.target.place, to_mac.target.vtep) == (Place.REMOTE, VTEP)
    to_vm = asked(HEALTHY, "vm1", "vm2").target
    assert to_vm is not None
    assert (to_vm.place, to_vm.vm) == (Place.HERE, "vm2")
    seen = bed.switch(megaflows=(bed.flow(address="10.0.0.9", actions="2"),))
    by_address = asked(seen, "vm1", "10.0.0.9").target
    assert by_address is not None
    assert (by_address.mac, by_address.address) == (FAR, "10.0.0.9")
    unknown = asked(HEALTHY, "vm1", "10.0.0.9").target
    assert unknown is not None
    assert unknown.place is Place.NO_MAC
    with pytest.raises(ConfigError):
        asked(HEALTHY, "vm1", "vm9")


def test_parts_that_fail_or_hang_do_not_keep_the_others() -> None:
    def fails() -> None:
        raise SwitchError("no", hint="`x`")

    def is_refused() -> None:
        raise PermissionError(13, "Permission denied", "/x")

    hang = threading.Event()
    parts: dict[str, Callable[[], Any]] = {"well": lambda: 5, "fails": fails, "refused": is_refused, "hangs": hang.wait}
    found, wrong = together(parts, 0.5)
    hang.set()
    assert found == {"well": 5}
    assert {name: type(error) for name, error in wrong.items()}["fails"] is SwitchError
    assert "Permission denied" in wrong["refused"].message
    assert "no answer" in wrong["hangs"].message
    assert all(isinstance(error, HotswapError) for error in wrong.values())


def test_the_next_hops_of_an_intent(tmp_path: Path) -> None:
    host_bed = Bed(tmp_path)
    config = load_config(host_bed.config)
    intent = load_intent(config.overlay, config)
    wanted = wanted_of(Host(config, FakeSystem()))
    assert set(wanted.vms) == {vm.name for vm in intent.vms}
    assert {each.vtep for each in wanted.remotes} == {each.vtep for each in intent.remotes}
    hops = {each.vtep: hop_in(intent, each.vtep) for each in intent.remotes}
    known = {each.address for each in intent.neighbours}
    assert set(hops.values()) <= known, "each is a neighbour of the file"
    assert report(Facts(wanted, 1.0, Side.A, guests={})).worst is Severity.OK
