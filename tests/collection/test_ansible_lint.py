"""The Ansible collection is clean for ansible-lint's production profile and for all of ansible-test sanity.

They are not in tests/unit because ansible-test makes a virtual environment for each of its tests, and gets what it
needs from PyPI, as `make setup` does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.collection import ROOT

BIN = Path(sys.executable).parent
_TEST_S = 600.0
pytestmark = pytest.mark.timeout(900)
# ansible-test downloads pip from a server that need not be within reach. Python has the same on the disk.
_GET_PIP = "import ensurepip\nensurepip.bootstrap()\n"

pytest.importorskip("ansiblelint", reason="the extra `ansible` is not installed")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the collection, at a path at which ansible-test takes it for one. It looks for git otherwise."""
    place = tmp_path_factory.mktemp("collections") / "ansible_collections" / "ovs_hotswap" / "ovs_hotswap"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns("__pycache__", ".ansible", "output"))
    return place


def run(tree: Path, home: Path, *argv: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "HOME": str(home), "LC_ALL": "C.UTF-8", "NO_COLOR": "1",
                    "ANSIBLE_COLLECTIONS_PATH": str(tree.parents[2])}  # fmt: skip
    done = subprocess.run(argv, cwd=tree, env=environment, capture_output=True, text=True, timeout=_TEST_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ansible_lint_finds_nothing(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path, "ansible-lint", "--offline", "--strict", "--profile", "production")


def test_ansible_test_sanity_finds_nothing(tree: Path, tmp_path: Path) -> None:
    """All of its tests but those that have no file to look at: there is no PowerShell and no shell script."""
    spec = importlib.util.find_spec("ansible_test._internal.python_requirements")
    assert spec is not None
    assert spec.origin is not None
    cache = tmp_path / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True)
    for version in re.findall(r"pip='([\d.]+)'", Path(spec.origin).read_text()):
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(_GET_PIP)
    run(tree, tmp_path, "ansible-test", "sanity", "--python", f"{sys.version_info.major}.{sys.version_info.minor}")


def test_the_types_are_right(tree: Path, tmp_path: Path) -> None:
    """mypy finds the collection by its own name only in a tree as Ansible has it."""
    options = ["--config-file=/dev/null", f"--cache-dir={tmp_path}/cache", "--strict", "--ignore-missing-imports",
               "--namespace-packages", "--explicit-package-bases", "--allow-subclassing-any",
               "--allow-untyped-calls", "--no-warn-return-any"]  # fmt: skip
    package = "ansible_collections.ovs_hotswap.ovs_hotswap.plugins"
    run(tree, tmp_path, "env", f"MYPYPATH={tree.parents[2]}", "mypy", *options, "-p", package)


def test_the_changelog_is_well_formed(tree: Path, tmp_path: Path) -> None:
    """It asks git which files there are."""
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    run(tree, tmp_path, "antsibull-changelog", "lint")
    shutil.rmtree(tree / ".git")


def test_the_collection_can_be_built(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path, "ansible-galaxy", "collection", "build", "--output-path", str(tmp_path))
    [archive] = tmp_path.glob("ovs_hotswap-ovs_hotswap-*.tar.gz")
    names = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert "plugins/modules/upgrade.py" in names
    assert not [name for name in names if name.startswith((".ansible", "ruff.toml"))]
