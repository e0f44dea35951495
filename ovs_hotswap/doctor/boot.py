"""The kernel's command line of the next boot, as GRUB is configured on Debian."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ovs_hotswap.doctor.facts import Root

REBOOT = "when no VM runs here: `systemctl reboot`"
_ASSIGNED = re.compile(r"^\s*(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)=(?:\"([^\"\n]*)\"|'([^'\n]*)'|(\S*))", re.MULTILINE)


def with_words(name: str, words: str) -> str:
    """Return the commands that put words on the command line. Their file is called after ``name``, so that a repetition
    replaces it. They come first: of two lists of isolated cores the kernel takes the first one."""
    place = "/etc/default/grub.d"
    line = f'GRUB_CMDLINE_LINUX="{words} $GRUB_CMDLINE_LINUX"'
    return f"`mkdir -p {place} && echo '{line}' > {place}/ovs-hotswap-{name}.cfg && update-grub`, then {REBOOT}"


def configured(root: Root) -> frozenset[str]:
    """Return the words that the boot loader's configuration has for the next boot."""
    values = {"GRUB_CMDLINE_LINUX": "", "GRUB_CMDLINE_LINUX_DEFAULT": ""}
    for text in _grub(root):
        for name, *parts in _ASSIGNED.findall(text):
            values[name] = re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), "".join(parts))
    words = [*values.values(), root.text("etc/kernel/cmdline") or ""]  # the latter is of kernel-install(8)
    return frozenset(word for line in words for word in line.split())


def _grub(root: Root) -> Iterator[str]:
    yield root.text("etc/default/grub") or ""
    for name in root.names("etc/default/grub.d"):
        if name.endswith(".cfg"):
            yield root.text(f"etc/default/grub.d/{name}") or ""
