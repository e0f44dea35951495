"""What is built, and what a package is called: no file is read here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime

PREFIX = "/opt/ovs-hotswap"
_TRAILER = re.compile(r"^ -- .* <.*>  (?P<date>.*)$", re.MULTILINE)
_EPOCH = re.compile(r"^[0-9]+:")


@dataclass(frozen=True, slots=True)
class Recipe:
    """``name`` is the component, of the script and of the series ``name/version``.

    ``source``: Debian's source package; ``binary``: the binary package that holds its tree as ``tarball``, where the
    source package itself cannot be had. ``needs``: recipes whose stage it is built with. ``depends``: packages besides
    those whose libraries are linked. ``revision``: the N of ``+hotswapN``; it is raised with each release of a package
    that differs from the one before. ``summary``: empty for a part that is no package.
    """

    name: str
    version: str
    source: str
    binary: str = ""
    tarball: str = ""
    needs: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    revision: int = 1
    summary: str = ""
    text: tuple[str, ...] = ()

    @property
    def series(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def directory(self) -> str:
        """Each revision has its own, so that a new one can be installed beside the one in use."""
        return f"{self.name}-{self.version}+hotswap{self.revision}"

    @property
    def package(self) -> str:
        return f"ovs-hotswap-{self.directory}"

    @property
    def prefix(self) -> str:
        return f"{PREFIX}/{self.directory}" if self.summary else f"/build/{self.name}"


RECIPES = (
    Recipe("dpdk", "22.11", "dpdk"),
    Recipe(
        "ovs", "3.1.0", "openvswitch", "openvswitch-source", "usr/src/openvswitch/openvswitch.tar.gz", ("dpdk",),
        revision=2, summary="Open vSwitch with DPDK, with the patches of ovs-hotswap",
        text=(
            "ovs-vswitchd with DPDK linked in, ovsdb-server and their tools, patched so",
            "that the switch can be replaced under running VMs. It is installed beside",
            "Debian's own and beside other revisions of this package, and starts nothing.",
        ),
    ),
    Recipe(
        "qemu", "7.2", "qemu", depends=("ipxe-qemu", "qemu-system-data", "seabios"),
        revision=2, summary="QEMU with a standby vhost-user back end, with the patches of ovs-hotswap",
        text=(
            "qemu-system-x86_64 with KVM, TCG and vhost-user, patched so that a network",
            "device has a second switch to go to. It is installed beside Debian's own and",
            "beside other revisions of this package.",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that decides about the bytes of a product. ``patches``: the digest of the series; ``scripts``: SHA-256 of the
    scripts and of the code that makes packages; ``tools``: versions of the build packages; ``needs``: keys."""

    recipe: Recipe
    source_version: str
    patches: str
    scripts: Mapping[str, str]
    tools: Mapping[str, str]
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def package_version(self) -> str:
        return f"{self.source_version}+hotswap{self.recipe.revision}"

    @property
    def file_name(self) -> str:
        """The package's file, as dpkg-name(1) has it: without the epoch."""
        return f"{self.recipe.package}_{_EPOCH.sub('', self.package_version)}_amd64.deb"


def changelog_time(changelog: str) -> int:
    """Seconds since the epoch of the newest entry of a Debian changelog (deb-changelog(5)). Raises ValueError."""
    found = _TRAILER.search(changelog)
    if found is None:
        raise ValueError("a Debian changelog without a date")
    return int(parsedate_to_datetime(found["date"]).timestamp())


def control(inputs: Inputs, depends: str, built_using: str, installed_kib: int) -> str:
    """The control file of a package (deb-control(5)). ``depends``: what dpkg-shlibdeps(1) found."""
    recipe = inputs.recipe
    fields = {
        "Package": recipe.package,
        "Version": inputs.package_version,
        "Architecture": "amd64",
        "Maintainer": "ovs-hotswap maintainers <maintainers@ovs-hotswap.invalid>",
        "Installed-Size": str(installed_kib),
        "Depends": ", ".join(sorted({*filter(None, depends.split(", ")), *recipe.depends})),
        "Built-Using": built_using,
        "Section": "net",
        "Priority": "optional",
        "Description": recipe.summary,
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return "\n".join([*lines, *(f" {line}" for line in recipe.text)]) + "\n"
