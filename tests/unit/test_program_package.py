"""The package of ovs-hotswap itself: what is decided about it, and that its parts fit together."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.errors import ReleaseError
from tools.packages import program
from tools.packages.__main__ import NAMES, known
from tools.packages.program import HERE, LOCK, ROOT, SCRIPTS, Inputs

INPUTS = Inputs("0.4.0", 10, {"ovs_hotswap/x.py": "1"}, {"libssl3": "3.0"}, {"patchelf": "0.14"})


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0.4.1"}, {"changed": 11}, {"sources": {"ovs_hotswap/x.py": "2"}}, {"runtime": {"libssl3": "3.1"}},
        {"tools": {"patchelf": "0.15"}},
    ],
)  # fmt: skip
def test_every_input_is_part_of_the_key(change: dict[str, object]) -> None:
    assert replace(INPUTS, **change).key != INPUTS.key  # type: ignore[arg-type]
    assert replace(INPUTS).key == INPUTS.key


def test_names() -> None:
    assert INPUTS.file_name == f"ovs-hotswap_0.4.0-{program.REVISION}_amd64.deb"
    assert known([]) == list(NAMES)
    assert known(["hotswap"]) == ["hotswap"]
    with pytest.raises(ReleaseError, match="there is no package dpdk") as caught:
        known(["hotswap", "dpdk"])
    assert caught.value.hint == "known are: ovs, qemu, hotswap"


def test_the_release_in_the_changelog_is_the_programs() -> None:
    version, changed = program.newest_release((ROOT / "CHANGELOG.md").read_text())
    assert version == __version__
    assert changed % 86400 == 0
    assert program.newest_release("# C\n\n## Soon\n\n## 1.2 (1970-01-02)\n\n## 1.1 (1970-01-01)\n") == ("1.2", 86400)
    with pytest.raises(ReleaseError, match="no heading of a release"):
        program.newest_release("# C\n\n## Soon\n")


def test_the_control_file() -> None:
    text = program.control("0.4.0-1", ["openssl (= 3)", "expat (= 2)", "openssl (= 3)"], 9)
    assert "Version: 0.4.0-1\n" in text
    assert "Built-Using: expat (= 2), openssl (= 3)\n" in text
    assert "openvswitch" not in text.partition("Suggests: ")[0], "apt would restart a switch that serves VMs"
    described = text.partition("Description: ")[2].splitlines()
    assert all(line.startswith(" ") for line in described[1:])
    assert text.endswith("\n")


def test_the_changelog_of_debian() -> None:
    lines = program.debian_changelog("0.4.0-1", 0).splitlines()
    assert lines[0] == "ovs-hotswap (0.4.0-1) unstable; urgency=medium"
    assert re.fullmatch(r" -- .* <.*>  Thu, 01 Jan 1970 00:00:00 \+0000", lines[-1])


def pinned() -> dict[str, str]:
    """Version by normalized name of what the lock file lists."""
    return {
        name.lower().replace("_", "-").replace(".", "-"): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK.read_text(), re.MULTILINE)
    }


def test_the_lock_file_has_everything_that_the_program_needs() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options"]["install_requires"].split():
        name, _, least = line.partition(">=")
        version = pinned()[name.lower().replace("_", "-").replace(".", "-")]
        assert [int(part) for part in version.split(".")] >= [int(part) for part in least.split(".")], line


def test_each_entry_of_the_lock_file_has_a_sum() -> None:
    entries = LOCK.read_text().split("==")[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert "://" not in LOCK.read_text(), "packages are fetched by name"


def test_the_sources_are_those_of_the_repository() -> None:
    found = program.sources(ROOT)
    for path in ("ovs_hotswap/cli/main.py", "systemd/ovs-hotswap-broker.service", "tools/packages/program/postinst"):
        assert path in found
    assert not any("__pycache__" in path or path.startswith("tests/") for path in found)


def test_a_package_of_other_sources_or_another_version_is_not_taken_for_the_present_one(tmp_path: Path) -> None:
    present = {"file": "x.deb", "version": __version__, "sources": program._digest(program.sources(ROOT))}
    stamp = tmp_path / "ovs-hotswap.json"
    for wrong in ({}, {**present, "version": "0"}, {**present, "sources": "0"}, present):
        stamp.write_text(json.dumps(wrong))
        with pytest.raises(ReleaseError, match="no package of these sources") as caught:
            program.built(tmp_path)
        assert caught.value.hint == "`make packages ONLY=hotswap`"
    (tmp_path / "x.deb").touch()
    assert program.built(tmp_path) == tmp_path / "x.deb"
    stamp.write_text("{")
    with pytest.raises(ReleaseError):
        program.built(tmp_path)


@pytest.mark.parametrize("script", [*SCRIPTS, "stage.sh"])
def test_scripts_have_no_fault_of_syntax(script: str) -> None:
    path = HERE / script
    assert path.read_text().startswith("#!/bin/sh\n")
    assert "set -e" in path.read_text()
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_the_units_and_the_package_agree_on_the_place() -> None:
    commands = {
        found for path in (ROOT / "systemd").glob("*.service")
        for found in re.findall(r"^Exec\w+=-?(/opt/\S+)", path.read_text(), re.MULTILINE)
    }  # fmt: skip
    assert commands == {f"{program.PREFIX}/bin/ovs-hotswap"}
    for script in SCRIPTS:
        for found in re.findall(r"(?<![\w/])/opt/\S+", (HERE / script).read_text()):
            assert found == f"{program.PREFIX}/bin/ovs-hotswap"


def test_what_the_removal_stops_is_every_unit() -> None:
    text = (HERE / "prerm").read_text()
    for path in sorted((ROOT / "systemd").glob("*.*")):
        if path.suffix in (".service", ".timer"):
            name = path.name.replace("@.", "@a.")
            assert name in text, name
