"""``ovs-hotswap uplink``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ovs_hotswap.cli.app import App, Group, pass_app, unless_dry_run
from ovs_hotswap.errors import ConfigError, PrecheckFailed, UplinkError
from ovs_hotswap.model import Finding, Severity, Side, Steered

if TYPE_CHECKING:
    from ovs_hotswap.uplink.ethtool import DriverInfo
    from ovs_hotswap.uplink.i40e_card import Card
    from ovs_hotswap.uplink.selftest import Trial

_LOCATION = click.IntRange(0, 8191)
_MARKS = {"passed": "ok", "failed": "FAIL", "refused": "WARN", "not tried": "?"}


@click.group(cls=Group)
def uplink() -> None:
    """Show how the overlay's traffic comes to the active instance, and try a NIC."""


@uplink.command(short_help="Show the uplink's driver, NIC, rules and counters.", changes=False)
@pass_app
def show(app: App) -> None:
    """Show the uplink's driver, its NICs, its rules, where they lead, and what they have counted.

    With --json: {"driver", "owner", "active", "nics": [{"device", "driver", "version", "firmware"}], "rules": [text],
    "counters": {side: {"given", "taken"}}, "findings": [{"check", "severity", "text", "hint", "item"}]}. What cannot
    be read is null or empty, and a finding says why.

    \b
    Example:
      ovs-hotswap uplink show
    """
    from ovs_hotswap.host.host import Host
    from ovs_hotswap.uplink.base import rules_of

    host = Host(app.config, app.system)
    config, found = host.config.uplink, host.uplink
    findings = found.check()
    owner, rules, counters = None, list[str](), dict[Side, Steered]()
    try:
        owner, rules = found.owner(), rules_of(found)
        counters = {side: counted for side in Side if (counted := found.steered(side)) is not None}
    except UplinkError as error:
        findings.append(Finding("uplink", Severity.UNKNOWN, f"where it leads: {error.message}", error.hint))
    document: dict[str, Any] = {
        "driver": config.driver, "owner": owner, "active": host.recorded_active(),
        "nics": [{"device": nic.device, **_nic(nic.device, config.namespace)} for nic in config.nics if nic.device],
        "rules": rules, "counters": counters, "findings": findings,
    }  # fmt: skip
    app.output.document(document)
    out = app.output
    out.line(f"driver    {config.driver}")
    out.line(f"leads to  {f'instance {owner}' if owner else 'neither instance, as far as this driver knows'}")
    out.line(f"active    {document['active'] or 'none'}")
    for nic in document["nics"]:
        facts = (nic["device"], nic["driver"], nic["version"], nic["firmware"] and f"firmware {nic['firmware']}")
        out.line(f"NIC       {', '.join(filter(None, facts))}")
    for rule in document["rules"]:
        out.line(f"rule      {rule}")
    for side, counted in counters.items():
        out.line(f"counted   instance {side}: {counted.given} packets given to it, {counted.taken} taken from it")
    out.line()
    out.findings(document["findings"])


def _nic(device: str, namespace: str | None) -> dict[str, str | None]:
    from ovs_hotswap.uplink.i40e_card import KernelCards

    try:
        with KernelCards(device, namespace).open() as card:
            found = card.ethtool.driver()
    except UplinkError:
        return {"driver": None, "version": None, "firmware": None}
    return {"driver": found.driver, "version": found.version, "firmware": found.firmware or None}


@uplink.command(short_help="Try an X710 or XL710: its prerequisites and every form of rule.", changes=unless_dry_run)
@click.option("--device", metavar="NAME", help="The physical function.  [default: uplink.device]")
@click.option("--vf", type=click.IntRange(0, 255), metavar="N",
              help="Try each form of rule on this virtual function (VF), which may be any.")  # fmt: skip
@click.option("--locations", type=(_LOCATION, _LOCATION), metavar="N N",
              help="Two free places in the NIC's table.  [default: uplink.locations]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check the prerequisites, and show the rules that would be tried.")
@pass_app
def selftest(
    app: App, device: str | None, vf: int | None, locations: tuple[int, int] | None, dry_run: bool
) -> None:  # fmt: skip
    """Try on a real X710 or XL710 what the driver "i40e" needs, and report it. It takes some seconds.

    First the prerequisites are checked. Then, with --vf, each form of rule is inserted, read back, moved twenty times
    between two places in the NIC's table, and deleted. The rules are for a UDP port and an address that no network
    uses, so no traffic changes its way. Nothing is tried if one of the two places is in use. With --device and
    --locations no configuration is needed.

    Exit code 4 if a prerequisite is missing, or if no form works that uplink.match allows.
    With --json: {"device", "driver", "version", "firmware", "vf", "findings": [{"check", "severity", "text", "hint",
    "item"}], "trials": [{"name", "result", "text", "ms", "hint"}], "passed"}. "result" is "passed", "failed",
    "refused" or "not tried". "passed" is null if no rule was tried.

    \b
    Example:
      ovs-hotswap uplink selftest --dry-run
      ovs-hotswap uplink selftest --vf 1
      ovs-hotswap uplink selftest --device enp3s0f0 --vf 1 --locations 4000 4001 --json
    """
    from ovs_hotswap.uplink.i40e_card import KernelCards

    match: str | None = None
    namespace: str | None = None
    if device is None or locations is None:
        configured = app.config.uplink
        match = configured.match if configured.driver == "i40e" else None
        namespace = configured.namespace if device is None else None
        device, locations = device or configured.device, locations or configured.locations
    if device is None:
        raise ConfigError("the configuration has no uplink.device", hint="name the physical function with --device")
    if locations[0] == locations[1]:
        raise click.UsageError("the two locations must differ")
    with KernelCards(device, namespace).open() as card:
        report = report_of(card, vf, locations, match, dry_run=dry_run)
    app.output.document(report)
    print_report(app, report)
    missing = any(each.severity is Severity.ERROR for each in report["findings"])
    if missing or report["passed"] is False:
        click.get_current_context().exit(PrecheckFailed.exit_code)


def report_of(
    card: Card, vf: int | None, locations: tuple[int, int], match: str | None, *, dry_run: bool
) -> dict[str, Any]:
    """Check and try the NIC. ``match``: the value of uplink.match that has to work, ``None`` if any will do. Raises
    UplinkError."""
    from ovs_hotswap.uplink import i40e_checks, selftest
    from ovs_hotswap.uplink.frames import VXLAN_UDP_PORT
    from ovs_hotswap.uplink.i40e_rules import Plan

    address = None if match == "udp-port" else selftest.TRIED_ADDRESS  # l4mode is judged by the trials, if nothing asks
    plan = Plan(dict.fromkeys(Side, vf or 0), dict(zip(Side, locations, strict=True)), VXLAN_UDP_PORT, address)
    facts = i40e_checks.gather(card, plan)
    if not isinstance(facts, i40e_checks.Facts):
        nothing = selftest.not_tried(vf, locations, "it is no X710 or XL710")
        return _document(card.device, None, vf, [facts], nothing, None)
    found = [*i40e_checks.nic(facts, plan)]
    found += i40e_checks.function(facts, vf, "on which rules are tried") if vf is not None else ()
    selftest.refuse_used(card.device, card.ethtool, locations)
    if vf is None or dry_run or not facts.out_of_tree or vf not in facts.functions:
        why = "without --vf" if vf is None else "a dry run" if dry_run else "a prerequisite is missing"
        return _document(card.device, facts.driver, vf, found, selftest.not_tried(vf, locations, why), None)
    trials = list(selftest.try_forms(card.device, card.ethtool, vf, locations))
    return _document(card.device, facts.driver, vf, found, trials, selftest.passed(trials, match))


def _document(
    device: str,
    driver: DriverInfo | None,
    vf: int | None,
    findings: list[Any],
    trials: list[Trial],
    passed: bool | None,
) -> dict[str, Any]:  # fmt: skip
    names = (driver.driver, driver.version, driver.firmware) if driver else (None, None, None)
    return {"device": device, **dict(zip(("driver", "version", "firmware"), names, strict=True)), "vf": vf,
            "findings": findings, "trials": trials, "passed": passed}  # fmt: skip


def print_report(app: App, report: dict[str, Any]) -> None:
    """Print a report for people."""
    app.output.findings(report["findings"])
    app.output.line()
    rows = [(_MARKS[each.result], each.name, each.text, each.hint or "") for each in report["trials"]]
    app.output.table(("result", "form", "what was seen", "hint"), rows)
    app.output.line()
    can = {True: "the NIC can carry the overlay", False: "the NIC cannot carry the overlay", None: "no rule was tried"}
    app.output.line(can[report["passed"]])
