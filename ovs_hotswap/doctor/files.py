"""The configuration and the overlay intent: whether they can be read, and what they say by earlier names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.intent import Intent, load_intent

MISSING = Kind(Section.CONFIGURATION, "file", Severity.ERROR)
FAULTY = Kind(Section.CONFIGURATION, "values", Severity.ERROR)
EARLIER = Kind(Section.CONFIGURATION, "names", Severity.WARNING)
NO_INTENT = Kind(Section.OVERLAY, "file", Severity.ERROR)
WRONG_INTENT = Kind(Section.OVERLAY, "values", Severity.ERROR)

_CONFIG = "ovs-hotswap config example", "`ovs-hotswap config check`"
_OVERLAY = "ovs-hotswap overlay example", "`ovs-hotswap overlay check`"
DEFAULTS = Config.model_validate({
    "overlay": "/etc/ovs-hotswap/overlay.toml",
    "instances": {side: {"pmd_cores": [0], "uplink_devargs": f"not-configured-{side}"} for side in Side},
})  # fmt: skip
"""Where things are if nothing is configured. What it says of the instances means nothing."""


def read(path: Path) -> tuple[Config | None, list[Found]]:
    """Read the configuration, and return it with the findings about it."""
    earlier: list[str] = []
    try:
        config = load_config(path, earlier.append)
    except ConfigError as error:
        return None, list(_faults(error, path, MISSING, FAULTY, _CONFIG))
    found = [EARLIER(text, _renaming(text, path), str(path)) for text in earlier]
    return config, found or [ok(Section.CONFIGURATION, FAULTY.check, f"{path} is valid")]


def _renaming(text: str, path: Path) -> str:
    """Return the command that gives a key its present name. The text begins with ``PATH: OLD: the name of this key is
    NEW;``."""
    _, old, rest = text.removeprefix(f"{path}").split(": ", 2)
    new = rest.removeprefix("the name of this key is ").partition(";")[0]
    return f"sed -i 's/^{old} *=/{new} =/' {path}"


def intent(config: Config) -> tuple[Intent | None, list[Found]]:
    """Read the overlay intent, and return it with the findings about it."""
    try:
        found = load_intent(config.overlay, config)
    except ConfigError as error:
        return None, list(_faults(error, config.overlay, NO_INTENT, WRONG_INTENT, _OVERLAY))
    text = f"{config.overlay}: {len(found.vms)} VMs, {len(found.remotes)} remote hosts"
    return found, [ok(Section.OVERLAY, WRONG_INTENT.check, text)]


def _faults(error: ConfigError, path: Path, missing: Kind, faulty: Kind, commands: tuple[str, str]) -> Iterator[Found]:
    example, check = commands
    if not path.exists():
        yield missing(error.message, f"`mkdir -p {path.parent} && {example} > {path}`, and edit it", str(path))
        return
    for line in error.message.splitlines():
        yield faulty(line, f'"${{EDITOR:-editor}}" {path}, then {check}')
