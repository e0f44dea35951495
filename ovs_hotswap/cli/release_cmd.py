"""``ovs-hotswap release``."""

from __future__ import annotations

from pathlib import Path

import click

from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.model import Release
from ovs_hotswap.switch.release import ABI, Releases


@click.group(cls=Group)
def release() -> None:
    """Manage the releases that an instance can run."""


def _document(found: Release) -> dict[str, object]:
    return {"name": found.name, "root": found.root, "ovs": found.ovs_version, "dpdk": found.dpdk_version}


@release.command(name="list", short_help="List the releases, and how each one was made.", changes=False)
@pass_app
def list_releases(app: App) -> None:
    """List the releases: "host" is the installed package, every other one a directory of its own.

    With --json: {"releases": [{"name", "root", "ovs", "dpdk", "source", "error"}]}. If a release cannot be used,
    "root", "ovs" and "dpdk" are null and "error" says why.

    \b
    Example:
      ovs-hotswap release list
    """
    rows, documents = [], []
    for entry in Releases(app.config, app.system).list():
        known = entry.release
        versions = (known.ovs_version, known.dpdk_version) if known else (None, None)
        rows.append((entry.name, *versions, entry.source, entry.error or "usable"))
        fields = _document(known) if known else {"name": entry.name, "root": None, "ovs": None, "dpdk": None}
        documents.append({**fields, "source": entry.source, "error": entry.error})
    app.output.document({"releases": documents})
    app.output.table(("name", "OVS", "DPDK", "made from", "state"), rows)


@release.command(changes=True)
@click.argument("name")
@click.option("--suite", type=click.Choice(sorted(ABI)), help="Make it from this Debian suite with debootstrap.")
@click.option(
    "--from-directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Adopt this directory tree or install prefix; it stays where it is.",
)  # fmt: skip
@click.option("--package", "packages", multiple=True, help="A further Debian package, such as a driver. Repeatable.")
@pass_app
def add(app: App, name: str, suite: str | None, from_directory: Path | None, packages: tuple[str, ...]) -> None:
    """Add release NAME, from a Debian suite or a directory. An existing identical release is verified and reused.

    With --json: {"name", "root", "ovs", "dpdk"}.

    \b
    Example:
      ovs-hotswap release add trixie --suite trixie
      ovs-hotswap release add custom --from-directory /srv/ovs-3.6
      ovs-hotswap release add patched --from-directory /opt/ovs-hotswap/ovs-3.1.0+hotswap2
    """
    if (suite is None) == (from_directory is None):
        raise click.UsageError("give either --suite or --from-directory")
    added = Releases(app.config, app.system).add(
        name, suite, app.output.note, from_directory=from_directory, extra_packages=packages
    )
    app.output.done = True
    app.output.document(_document(added))


@release.command(changes=True)
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Remove release NAME. If it is an adopted directory, only the entry is removed. A release that an instance runs is
    not removed.

    With --json: {"removed"}.

    \b
    Example:
      ovs-hotswap release remove trixie
    """
    Releases(app.config, app.system).remove(name)
    app.output.done = True
    app.output.document({"removed": name})
    app.output.line(f"release {name} is removed")
