"""``ovs-hotswap patches``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ovs_hotswap import patches as series_of_patches
from ovs_hotswap.cli.app import App, Group, pass_app, unless_dry_run
from ovs_hotswap.errors import PatchError
from ovs_hotswap.patches import Patch, Series, State, default_root, directories, load

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


@patches.command(name="list", short_help="List the patches of each series, and their purpose.", changes=False)
@_series_option(required=False)
@_patches_option
@pass_app
def list_series(app: App, name: str | None, root: Path | None) -> None:
    """List the patches of each series, with their purpose, upstream status and test.

    "own" counts the lines that a patch adds. "upstream" counts the lines of upstream text that it repeats, which are
    context and removed lines.

    With --json: {"series": [{"series", "component", "version", "upstream", "unpacked_by", "files", "added",
    "upstream_lines", "patches": [{"name", "purpose", "status", "tests", "added", "upstream_lines"}]}]}.

    \b
    Example:
      ovs-hotswap patches list
      ovs-hotswap patches list --series ovs/3.1.0 --json
    """
    root = root or default_root()
    names = [name] if name else list(directories(root))
    if not names:
        raise PatchError(f"{root}: no series here", hint="name a directory that has series with --patches")
    found = [load(root, each) for each in names]
    app.output.document({"series": [_document(series) for series in found]})
    for series in found:
        app.output.table(
            ("patch", "purpose", "upstream status", "test", "own", "upstream"),
            [
                (patch.name, patch.purpose, patch.status, ", ".join(patch.tests), patch.added, patch.upstream_lines)
                for patch in series.patches
            ],
            title=f"{series.name}: for {series.upstream}; {len(series.after)} files, "
            f"{_added(series)} lines of its own, {_upstream_lines(series)} of the upstream's",
        )
        app.output.line()


def _added(series: Series) -> int:
    return sum(patch.added for patch in series.patches)


def _upstream_lines(series: Series) -> int:
    return sum(patch.upstream_lines for patch in series.patches)


def _document(series: Series) -> dict[str, object]:
    component, _, version = series.name.partition("/")
    return {
        "series": series.name,
        "component": component,
        "version": version,
        "upstream": series.upstream,
        "unpacked_by": series.unpacked_by,
        "files": sorted(series.after),
        "added": _added(series),
        "upstream_lines": _upstream_lines(series),
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


@patches.command(short_help="Check that every patch applies to TREE exactly.", changes=False)
@_tree_argument
@_series_option(required=True)
@_patches_option
@pass_app
def verify(app: App, tree: Path, name: str, root: Path | None) -> None:
    """Check that TREE is what the series is for and that every patch applies to it exactly. Nothing is changed.

    Each file of the series' manifest is compared, then the patches are applied to copies. If the series is applied
    already, each file is compared with what the series makes of it.

    With --json: {"series", "tree", "state", "files"}; "state" is "pristine" or "applied", "files" are the files that
    the series changes.

    \b
    Example:
      ovs-hotswap patches verify openvswitch-3.1.0 --series ovs/3.1.0
    """
    series = load(root or default_root(), name)
    state = series_of_patches.verify(tree, series, app.system, app.output.line)
    app.output.document(_outcome(state, series, tree))


@patches.command(changes=unless_dry_run)
@_tree_argument
@_series_option(required=True)
@_patches_option
@click.option("--dry-run", is_flag=True, help="Verify only: nothing is changed.")
@pass_app
def apply(app: App, tree: Path, name: str, root: Path | None, dry_run: bool) -> None:
    """Verify TREE, then apply the whole series to it. Nothing is done if the series is applied already.

    No file of TREE is replaced before all patches have been applied to copies of the files.

    With --json: what `patches verify` prints, and "applied": whether the tree was changed.

    \b
    Example:
      ovs-hotswap patches apply openvswitch-3.1.0 --series ovs/3.1.0 --dry-run
      ovs-hotswap patches apply openvswitch-3.1.0 --series ovs/3.1.0
    """
    series = load(root or default_root(), name)
    act = series_of_patches.verify if dry_run else series_of_patches.apply
    state = act(tree, series, app.system, app.output.line)
    app.output.done = not dry_run
    app.output.document({**_outcome(state, series, tree), "applied": not dry_run and state is State.PRISTINE})


def _outcome(state: State, series: Series, tree: Path) -> dict[str, object]:
    return {"series": series.name, "tree": str(tree), "state": state, "files": sorted(series.after)}
