"""``ovs-hotswap patches``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.errors import PatchError
from ovs_hotswap.patches.rules import State
from ovs_hotswap.patches.series import Patch, Series
from ovs_hotswap.patches.store import Store, default_root
from ovs_hotswap.patches.tree import Outcome, Tree

Decorated = Callable[..., Any]


@click.group(cls=Group)
def patches() -> None:
    """List the patch series for QEMU, DPDK and Open vSwitch, verify that one fits a source tree, apply it."""


def _patches_option(command: Decorated) -> Decorated:
    return click.option(
        "--patches", "root", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Where patches/ and qemu-patches/ are, if not in this program's own checkout or installation.",
    )(command)  # fmt: skip


def _series_option(required: bool) -> Callable[[Decorated], Decorated]:
    text = "The series, such as ovs/3.1.0." + ("" if required else " All, if not given.")
    return click.option("--series", "name", metavar="COMPONENT/VERSION", required=required, help=text)


def _tree_argument(command: Decorated) -> Decorated:
    return click.argument("tree", type=click.Path(exists=True, file_okay=False, path_type=Path))(command)


def _store(root: Path | None) -> Store:
    return Store(root if root is not None else default_root())


@patches.command(name="list")
@_series_option(required=False)
@_patches_option
@pass_app
def list_series(app: App, name: str | None, root: Path | None) -> None:
    """List the patches of each series, with their purpose, upstream status and test.

    "own" counts the lines that a patch adds, "upstream" those that it repeats of the upstream's text: context and
    removed lines.

    With --json: {"series": [{"series", "component", "version", "upstream", "unpacked_by", "files", "added",
    "upstream_lines", "patches": [{"name", "purpose", "status", "tests", "added", "upstream_lines"}]}]}.

    \b
    Example:
      ovs-hotswap patches list
      ovs-hotswap patches list --series ovs/3.1.0 --json
    """
    store = _store(root)
    names = [name] if name else store.names()
    if not names:
        raise PatchError(f"{store.root}: no series here", hint="name a directory that has series with --patches")
    found = [store.load(each).series for each in names]
    app.output.document({"series": [_document(series) for series in found]})
    for series in found:
        app.output.table(
            ("patch", "purpose", "upstream status", "test", "own", "upstream"),
            [
                (patch.name, patch.purpose, patch.status, ", ".join(patch.tests), patch.added, patch.upstream_lines)
                for patch in series.patches
            ],
            title=f"{series.name}: for {series.upstream}; {len(series.manifest)} files, "
            f"{series.added} lines of its own, {series.upstream_lines} of the upstream's",
        )
        app.output.line()


def _document(series: Series) -> dict[str, object]:
    return {
        "series": series.name,
        "component": series.component,
        "version": series.version,
        "upstream": series.upstream,
        "unpacked_by": series.unpacked_by,
        "files": sorted(series.manifest),
        "added": series.added,
        "upstream_lines": series.upstream_lines,
        "patches": [_patch_document(patch) for patch in series.patches],
    }


def _patch_document(patch: Patch) -> dict[str, object]:
    return {
        "name": patch.name,
        "purpose": patch.purpose,
        "status": patch.status,
        "tests": patch.tests,
        "added": patch.added,
        "upstream_lines": patch.upstream_lines,
    }


@patches.command()
@_tree_argument
@_series_option(required=True)
@_patches_option
@pass_app
def verify(app: App, tree: Path, name: str, root: Path | None) -> None:
    """Check that TREE is what the series is for and that every patch applies to it exactly. Nothing is changed.

    Each file of the series' manifest is compared, then the patches are applied to copies. A tree that the series was
    applied to is compared with what that left.

    With --json: {"series", "tree", "state", "files"}; "state" is "pristine" or "applied", "files" are the ones that the
    series changes.

    \b
    Example:
      ovs-hotswap patches verify openvswitch-3.1.0 --series ovs/3.1.0
    """
    outcome = Tree(tree, app.system).verify(_store(root).load(name), app.output.line)
    app.output.document(_outcome(outcome, tree, name))


@patches.command()
@_tree_argument
@_series_option(required=True)
@_patches_option
@click.option("--dry-run", is_flag=True, help="Verify only: nothing is changed.")
@pass_app
def apply(app: App, tree: Path, name: str, root: Path | None, dry_run: bool) -> None:
    """Verify TREE, then apply the series to it: all of it, or nothing. A series that is applied already is left alone.

    What was applied is noted in TREE/.ovs-hotswap-series. An apply that was interrupted is put back by the next one.

    With --json: what `patches verify` prints, and "applied": whether the tree was changed.

    \b
    Example:
      ovs-hotswap patches apply openvswitch-3.1.0 --series ovs/3.1.0 --dry-run
      ovs-hotswap patches apply openvswitch-3.1.0 --series ovs/3.1.0
    """
    stored, source = _store(root).load(name), Tree(tree, app.system)
    outcome = (source.verify if dry_run else source.apply)(stored, app.output.line)
    applied = not dry_run and outcome.state is State.PRISTINE
    app.output.done = not dry_run
    app.output.document({**_outcome(outcome, tree, name), "applied": applied})


def _outcome(outcome: Outcome, tree: Path, name: str) -> dict[str, object]:
    return {"series": name, "tree": str(tree), "state": outcome.state, "files": outcome.changed}
