"""The packages' builder on an archive and a build tree that are made up: what it takes from its cache, what it fetches
again, and what it makes of the parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.errors import ReleaseError
from tests.unit.fake_system import FakeSystem
from tools.packages.build import BUILD_PACKAGES, Builder, listed
from tools.packages.recipes import RECIPES

DPDK, OVS, QEMU = RECIPES
TARGETS = "http://mirror.example/debian/ bookworm main\n"
ARCHIVE = {
    "openvswitch-source=3.1.0-2": {"openvswitch-source_3.1.0-2_all.deb": b"tree in a package"},
    "dpdk=22.11-1": {"dpdk_22.11-1.dsc": b"description", "dpdk_22.11.orig.tar.xz": b"tree"},
}
CHANGELOG = "x (1-1) unstable; urgency=low\n\n  * A thing.\n\n -- Some One <one@example.org>  {date}\n"
PATCH = """\
Subject: [PATCH] x: a new file

Why.

Upstream-Status: not sent
Test: tests/unit/test_package_build.py
---
diff --git a/new.c b/new.c
new file mode 100644
index 0000000000..3e757656cf
--- /dev/null
+++ b/new.c
@@ -0,0 +1 @@
+new
"""
DATE = "Thu, 01 Jan 1970 00:00:10 +0000"


class Debian:
    """Apt, an archive, and a build tree in which nothing is compiled. ``mirror``: debootstrap reaches it."""

    def __init__(self, output: Path) -> None:
        self.build = output / "tree/build"
        self.mirror = False
        self.fetched: list[str] = []
        self.archive = {name: dict(files) for name, files in ARCHIVE.items()}
        packages = [*listed(BUILD_PACKAGES.read_text()), "openvswitch-source"]
        versions = {"openvswitch-source": "3.1.0-2"}
        self.madison = "".join(
            f"{name} | {versions.get(name, '1')} | http://mirror.example bookworm/main amd64 Packages\n"
            for name in packages
        )

    def __call__(self, argv: Sequence[str]) -> tuple[int, str]:
        if "debootstrap" in argv:
            return (0, "") if self.mirror else (1, "E: no mirror")
        if "indextargets" in argv:
            return 0, TARGETS
        if "madison" in argv:
            return 0, self.madison
        if "showsrc" in argv:
            files = ARCHIVE["dpdk=22.11-1"].items()
            sums = "".join(f" {hashlib.sha256(content).hexdigest()} 1 {name}\n" for name, content in files)
            return 0, f"Package: dpdk\nVersion: 22.11-1\nChecksums-Sha256:\n{sums}"
        if "show" in argv:
            (content,) = ARCHIVE[argv[-1]].values()
            return 0, f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        if "source" in argv or "download" in argv:
            self.fetched.append(argv[-1])
            for name, content in self.archive[argv[-1]].items():
                (Path(argv[argv.index("-C") + 1]) / name).write_bytes(content)
        elif "chroot" in " ".join(argv):
            self.inside(argv)
        return 0, ""

    def inside(self, argv: Sequence[str]) -> None:
        """What the scripts leave in ``/build`` of the tree."""
        if any("/build && " in word for word in argv):
            (self.build / "src/debian").mkdir(parents=True)
            (self.build / "src/debian/changelog").write_text(CHANGELOG.format(date=DATE))
            (self.build / "src/debian/copyright").write_text("free")
        elif argv[-1] == "dpdk":
            (self.build / "stage/build/dpdk/lib").mkdir(parents=True)
            (self.build / "stage/build/dpdk/lib/librte_eal.a").write_text("library")
        elif argv[-1] == "ovs":
            linked = self.build / "dpdk/lib/librte_eal.a"
            program = self.build / f"stage/{OVS.prefix}/sbin/ovs-vswitchd"
            program.parent.mkdir(parents=True)
            program.write_text(f"switch with {linked.read_text()}")
        elif argv[-1] == "depends":
            (self.build / "depends").write_text("shlibs:Depends=libc6 (>= 2.34)\n")
        else:
            (self.build / "out").mkdir()
            (self.build / "out" / argv[-1]).write_bytes((self.build / "stage/DEBIAN/control").read_bytes())


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    return Debian(tmp_path / "output")


@pytest.fixture
def builder(tmp_path: Path, debian: Debian) -> Builder:
    """A builder whose debootstrap fails at first: what it does not find in the cache is an error."""
    for recipe in RECIPES:
        directory = tmp_path / ("qemu-patches" if recipe is QEMU else f"patches/{recipe.name}") / recipe.version
        directory.mkdir(parents=True)
        (directory / "series").write_text(
            f"# component: {recipe.name}\n# upstream: x\n# unpacked-by: x\n0001-new.patch\n"
        )
        (directory / "manifest").write_text("absent  new.c\n")
        (directory / "README.md").write_text("")
        (directory / "0001-new.patch").write_text(PATCH)
    output, cache = tmp_path / "output", tmp_path / "cache"
    return Builder(FakeSystem(debian), lambda text: None, output=output, cache=cache, patches=tmp_path)


def keep(builder: Builder, tmp_path: Path, content: bytes) -> Path:
    """Put a package into the cache, as an earlier build would."""
    inputs = builder.inputs(OVS)
    entry = tmp_path / "cache" / f"ovs-{inputs.key[:16]}"
    entry.mkdir()
    (entry / inputs.file_name).write_bytes(content)
    record = {"file": inputs.file_name, "sha256": hashlib.sha256(content).hexdigest(), "cpu_s": 1.5}
    (entry / "record.json").write_text(json.dumps(record))
    return entry / inputs.file_name


def test_what_is_in_the_cache_is_not_built(builder: Builder, tmp_path: Path) -> None:
    path = keep(builder, tmp_path, b"package")
    product = builder.build(OVS)
    assert (product.path, product.sha256) == (path, hashlib.sha256(b"package").hexdigest())
    assert builder.publish(product).read_bytes() == b"package"
    with pytest.raises(ReleaseError, match="debootstrap bookworm failed: E: no mirror"):
        builder.build(OVS, anew=True)


def test_what_is_damaged_in_the_cache_is_built_anew(builder: Builder, tmp_path: Path) -> None:
    keep(builder, tmp_path, b"package").write_bytes(b"packag")
    with pytest.raises(ReleaseError, match="debootstrap bookworm failed"):
        builder.build(OVS)


def test_another_state_of_a_series_is_another_product(builder: Builder, tmp_path: Path) -> None:
    keep(builder, tmp_path, b"package")
    with (tmp_path / "patches/dpdk/22.11/series").open("a") as series:
        series.write("0002-x.patch\n")
    (tmp_path / "patches/dpdk/22.11/0002-x.patch").write_text("Subject: x\n")
    with pytest.raises(ReleaseError, match="debootstrap bookworm failed"):
        builder.build(OVS)


def test_the_code_that_makes_packages_is_part_of_the_key(builder: Builder) -> None:
    common = {"recipe.sh", "pack.sh", "recipes.py", "build.py", "buildtree.py", "debian.py"}
    assert set(builder.inputs(OVS).scripts) == {"ovs.sh", *common}


def test_a_package_is_built_of_what_it_needs(builder: Builder, debian: Debian, tmp_path: Path) -> None:
    debian.mirror = True
    product = builder.build(OVS)
    assert debian.fetched == ["dpdk=22.11-1", "openvswitch-source=3.1.0-2"]
    assert product.path.name == builder.inputs(OVS).file_name
    text = product.path.read_text()
    assert "Depends: libc6 (>= 2.34)\n" in text
    assert "Built-Using: dpdk (= 22.11-1)\n" in text
    assert not debian.build.exists()
    assert builder.build(OVS) == replace(product, cpu_s=round(product.cpu_s, 1))


def test_a_source_that_was_damaged_is_fetched_anew(builder: Builder, debian: Debian, tmp_path: Path) -> None:
    debian.mirror = True
    first = builder.build(DPDK)
    assert builder.build(DPDK, anew=True).sha256 == first.sha256
    assert debian.fetched == ["dpdk=22.11-1"]
    kept = tmp_path / "cache/sources/dpdk_22.11-1/dpdk_22.11.orig.tar.xz"
    kept.write_bytes(b"trap")
    builder.build(DPDK, anew=True)
    assert debian.fetched == ["dpdk=22.11-1"] * 2
    assert kept.read_bytes() == b"tree"
    kept.unlink()
    builder.build(DPDK, anew=True)
    assert kept.read_bytes() == b"tree"


def test_a_source_that_is_not_what_the_lists_say_is_refused(builder: Builder, debian: Debian) -> None:
    debian.mirror = True
    debian.archive["dpdk=22.11-1"]["dpdk_22.11.orig.tar.xz"] = b"trap"
    with pytest.raises(ReleaseError, match=r"dpdk: what was fetched is not dpdk 22\.11-1 as apt's lists have it"):
        builder.build(DPDK)
