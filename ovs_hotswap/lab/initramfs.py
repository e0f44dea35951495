"""Builds the guests' initramfs: busybox, perl's binary, ethtool, our scripts, and the cloud kernel's virtio modules."""

from __future__ import annotations

import gzip
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System

INIT = Path(__file__).with_name("guest-init.sh")
PINGER = Path(__file__).with_name("guest-ping.pl")
BUSYBOX, PERL, ETHTOOL = Path("/bin/busybox"), Path("/usr/bin/perl"), Path("/sbin/ethtool")
MODULES = ("virtio_pci", "virtio_net", "virtio_console")
PACKAGES = "apt-get install linux-image-cloud-amd64 busybox-static perl-base ethtool"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of the archive. ``device`` is the number of a character device."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An installed kernel: its image and its directory of modules."""

    image: Path
    modules: Path


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """The installed cloud kernel that has its modules; of several, the last by name. Raises LabError if there is
    none."""
    for image in sorted(boot.glob("vmlinuz-*-cloud-amd64"), reverse=True):
        directory = modules / image.name.removeprefix("vmlinuz-")
        if (directory / "modules.dep").exists():
            return Kernel(image, directory)
    raise LabError(f"no cloud kernel with modules in {boot}", hint=PACKAGES)


def load_order(dependencies: Mapping[str, Iterable[str]], wanted: Iterable[str]) -> list[str]:
    """The paths of the modules and of all modules that they need, each after the modules that it needs.

    ``dependencies`` has the content of modules.dep (modules.dep(5)), which maps a path to the paths that it needs.
    Raises LabError for a module that it does not list.
    """
    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in dependencies}
    order: list[str] = []

    def add(path: str) -> None:
        if path not in order:
            for needed in dependencies[path]:
                add(needed)
            order.append(path)

    for name in wanted:
        if name not in by_name:
            raise LabError(f"the kernel has no module {name}", hint=PACKAGES)
        add(by_name[name])
    return order


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Parse the text of a modules.dep: the paths that each path needs."""
    lines = (line.partition(":") for line in text.splitlines())
    return {path: needed.split() for path, _, needed in lines}


def archive(entries: Iterable[Entry]) -> bytes:
    """Make a cpio archive in the "newc" format (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), 1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        out += b"\0" * (-len(out) % 4)
        out += entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def parse_libraries(text: str) -> list[Path]:
    """The files that the output ``text`` of ldd(1) lists. The kernel's vdso is not a file."""
    return [Path(path) for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", text, re.MULTILINE)]


def build(kernel: Kernel, system: System) -> bytes:
    """Build the compressed initramfs. Raises LabError if a part is not installed."""
    try:
        dependencies = parse_dependencies((kernel.modules / "modules.dep").read_text())
        order = load_order(dependencies, MODULES)
        libraries = parse_libraries(system.run(["ldd", str(PERL), str(ETHTOOL)]).stdout)
        rest = dict.fromkeys((PERL, ETHTOOL, *libraries))
        programs = [_program(BUSYBOX, "bin/busybox"), *(_program(path, str(path)[1:]) for path in rest)]
        modules = [
            Entry(f"modules/{Path(path).name}", stat.S_IFREG | 0o644, (kernel.modules / path).read_bytes())
            for path in order
        ]
    except FileNotFoundError as error:
        raise LabError(f"{error.filename}: no such file", hint=PACKAGES) from error
    names = "".join(f"{Path(path).name}\n" for path in order)
    files = [
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        _program(INIT, "init"),
        _program(PINGER, PINGER.name),
        Entry("modules/order", stat.S_IFREG | 0o644, names.encode()),
        *programs,
        *modules,
    ]
    folders = {str(parent) for entry in files for parent in PurePath(entry.name).parents} | {"proc", "sys"}
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in sorted(folders - {"."})]
    return gzip.compress(archive([*directories, *files]), compresslevel=6, mtime=0)


def _program(path: Path, name: str) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, path.read_bytes())
