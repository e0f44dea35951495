"""What is decided about packages: what is built, from what, under which name, and when the cache will not do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.errors import ReleaseError
from ovs_hotswap.patches import directories
from ovs_hotswap.system import System
from tests.unit.fake_system import FakeSystem
from tools.packages.build import BUILD_PACKAGES, HERE, ROOT, chosen, listed
from tools.packages.debian import Apt
from tools.packages.recipes import RECIPES, Inputs, changelog_time, control

DPDK, OVS, QEMU = RECIPES
INPUTS = Inputs(OVS, "3.1.0-2+deb12u1", "patches", {"ovs.sh": "1"}, {"gcc-12": "12.2.0-14"}, {"dpdk": "2"})


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(OVS, revision=OVS.revision + 1)},
        {"source_version": "3.1.0-2+deb12u2"},
        {"patches": "others"},
        {"scripts": {"ovs.sh": "2"}},
        {"tools": {"gcc-12": "12.2.0-15"}},
        {"needs": {"dpdk": "3"}},
    ],
)
def test_every_input_is_part_of_the_key(change: dict[str, object]) -> None:
    assert replace(INPUTS, **change).key != INPUTS.key  # type: ignore[arg-type]
    assert replace(INPUTS).key == INPUTS.key


def test_names() -> None:
    assert (OVS.series, OVS.directory) == ("ovs/3.1.0", "ovs-3.1.0+hotswap2")
    assert OVS.prefix == "/opt/ovs-hotswap/ovs-3.1.0+hotswap2"
    assert (INPUTS.package_version, INPUTS.file_name) == (
        "3.1.0-2+deb12u1+hotswap2",
        "ovs-hotswap-ovs-3.1.0+hotswap2_3.1.0-2+deb12u1+hotswap2_amd64.deb",
    )
    qemu = replace(INPUTS, recipe=QEMU, source_version="1:7.2+dfsg-7")
    assert qemu.package_version == "1:7.2+dfsg-7+hotswap2"
    assert qemu.file_name == "ovs-hotswap-qemu-7.2+hotswap2_7.2+dfsg-7+hotswap2_amd64.deb"


def test_the_control_file() -> None:
    text = control(
        replace(INPUTS, recipe=replace(OVS, depends=("seabios",))), "libc6 (>= 2.34), libssl3", "dpdk (= 1)", 9
    )
    assert text.splitlines()[:7] == [
        "Package: ovs-hotswap-ovs-3.1.0+hotswap2",
        "Version: 3.1.0-2+deb12u1+hotswap2",
        "Architecture: amd64",
        "Maintainer: ovs-hotswap maintainers <maintainers@ovs-hotswap.invalid>",
        "Installed-Size: 9",
        "Depends: libc6 (>= 2.34), libssl3, seabios",
        "Built-Using: dpdk (= 1)",
    ]
    assert "Built-Using" not in control(INPUTS, "libc6", "", 9)
    assert all(line.startswith(" ") for line in text.partition("Description: ")[2].splitlines()[1:])


def test_the_time_of_a_changelog() -> None:
    entry = "x (1-1) unstable; urgency=low\n\n  * A thing.\n\n -- Some One <one@example.org>  {}\n\n"
    newest, older = "Thu, 01 Jan 1970 01:00:10 +0100", "Thu, 01 Jan 1970 00:00:05 +0000"
    assert changelog_time(entry.format(newest) + entry.format(older)) == 10
    with pytest.raises(ValueError, match="without a date"):
        changelog_time("x (1-1)\n")


def test_what_is_chosen() -> None:
    assert chosen([]) == (OVS, QEMU)
    assert chosen(["qemu"]) == (QEMU,)
    with pytest.raises(ReleaseError, match="there is no package dpdk"):
        chosen(["qemu", "dpdk"])
    names = [recipe.name for recipe in RECIPES]
    assert all(names.index(need) < names.index(recipe.name) for recipe in RECIPES for need in recipe.needs)


def test_each_recipe_has_a_script_and_a_series() -> None:
    for recipe in RECIPES:
        assert (HERE / f"{recipe.name}.sh").is_file()
        assert recipe.series in directories(ROOT)


def test_the_list_of_build_packages() -> None:
    assert listed("# a\n\nb  # why\nc\n") == ["b", "c"]
    packages = listed(BUILD_PACKAGES.read_text())
    assert packages == sorted(set(packages))
    assert any(name.startswith("gcc-") for name in packages), "the compiler's version is part of the key"
    assert "base-files" in packages, "the point release of all other packages is part of the key"


# ----------------------------------------------------------------------------------------------------------------- apt

TARGETS = """\
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm contrib
http://elsewhere.example/ nodistro main
http://mirror.example/security/ bookworm-security main
$(REPO_URI) bookworm main left over
"""
MADISON = """\
 gcc-12 | 12.2.0-14+deb12u2 | http://mirror.example/security bookworm-security/main amd64 Packages
 gcc-12 | 12.2.0-14+deb12u1 | http://mirror.example/debian bookworm/main amd64 Packages
 gcc-12 | 12.2.0-14 | http://mirror.example/debian bookworm/main Sources
   make | 4.3-4.1 | http://mirror.example/debian bookworm/main amd64 Packages
"""
SOURCES = f"""\
Package: qemu
Version: 1:7.2-7

Package: qemu
Version: 1:7.2-10
Checksums-Sha1:
 {"9" * 40} 1 qemu_7.2-10.dsc
Checksums-Sha256:
 {"f" * 64} 1 qemu_7.2-10.dsc
 {"a" * 64} 22 qemu_7.2.orig.tar.xz
Homepage: {"b" * 64}

Package: qemu
Version: 1:7.2-9
Checksums-Sha256:
 {"c" * 64} 1 qemu_7.2-9.dsc
"""
BINARY = f"Package: tree\nSHA256: {'a' * 64}\n\nPackage: tree\nSHA256: {'a' * 64}\n"


def apt(tmp_path: Path, answers: dict[str, str]) -> tuple[Apt, FakeSystem]:
    def handler(argv: Sequence[str]) -> tuple[int, str]:
        if "--compare-versions" in argv:
            return System().run(argv, check=False).status, ""
        return 0, next((text for word, text in answers.items() if word in argv), "")

    system = FakeSystem(handler)
    return Apt(tmp_path, system), system


def test_the_archive_is_the_machines_own(tmp_path: Path) -> None:
    subject, system = apt(tmp_path, {"indextargets": TARGETS})
    assert subject.mirror == "http://mirror.example/debian/"
    lines = (tmp_path / "sources.list").read_text().splitlines()
    kinds = [f"{line.split()[0]} {line.partition('] ')[2]}" for line in lines]
    assert kinds == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb-src http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/security/ bookworm-security main",
        "deb-src http://mirror.example/security/ bookworm-security main",
    ]
    subject.update()
    assert f"Dir::State::lists={tmp_path / 'lists'}" in system.ran[-1], "the machine's lists are left alone"


def test_a_machine_without_debian_12_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="the machine's apt sources have no bookworm main"):
        apt(tmp_path, {"indextargets": "http://mirror.example/ trixie main\n"})


def test_versions(tmp_path: Path) -> None:
    subject, _ = apt(tmp_path, {"indextargets": TARGETS, "madison": MADISON, "showsrc": SOURCES})
    assert subject.versions(["make", "gcc-12"]) == {"gcc-12": "12.2.0-14+deb12u1", "make": "4.3-4.1"}
    assert subject.newest_source("qemu") == "1:7.2-10"
    with pytest.raises(ReleaseError, match="Debian 12 has no package meson"):
        subject.versions(["make", "meson"])
    with pytest.raises(ReleaseError, match="Debian 12 has no package openvswitch-source"):
        subject.newest("openvswitch-source")


def test_checksums(tmp_path: Path) -> None:
    subject, _ = apt(tmp_path, {"indextargets": TARGETS, "showsrc": SOURCES, "tree=1": BINARY})
    assert subject.source_sums("qemu", "1:7.2-10") == ["a" * 64, "f" * 64]
    assert subject.source_sums("qemu", "1:7.2-9") == ["c" * 64]
    assert subject.binary_sums("tree", "1") == ["a" * 64]
    for sums, version in ((subject.source_sums, "1:7.2-7"), (subject.source_sums, "7"), (subject.binary_sums, "2")):
        with pytest.raises(ReleaseError, match=f"apt's lists have no SHA-256 of qemu {version}"):
            sums("qemu", version)
