"""The database with which the distribution starts its switch after a boot, on a host that others program.

After a boot no instance of ovs-hotswap runs, and the distribution's units start their switch. Since it was retired, the
host's programs have written into the active instance's database. So the distribution's file becomes a symbolic link to
that one, which outlives a boot. ovsdb-server and ovsdb-tool work on the file behind a link (lib/util.c,
follow_symlinks, which ovsdb/log.c and ovsdb/ovsdb-tool.c call), and the distribution's start script converts it to the
installed schema (utilities/ovs-lib.in, upgrade_db).
"""

from __future__ import annotations

import os
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError
from ovs_hotswap.model import Side
from ovs_hotswap.system import files

_KEPT = ".before-ovs-hotswap"


def kept_database(config: Config) -> Path:
    """The name that the distribution's own file has while another one is in its place."""
    return config.stock.database.with_name(config.stock.database.name + _KEPT)


def lead_to(config: Config, side: Side) -> None:
    """Have the next boot start with the database of ``side``. May be repeated. Raises HostError; then the next boot
    starts with what it would have started with before."""
    place, target = config.stock.database, config.database_file(side)
    if not target.is_file():
        raise HostError(f"{target}: there is no database of instance {side}", hint="`ovs-hotswap instance list`")
    with files(place):
        if not place.is_symlink() and place.exists() and not kept_database(config).exists():
            os.link(place, kept_database(config))
        beside = place.with_name(f"{place.name}.new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        beside.replace(place)


def put_back(config: Config) -> None:
    """Have the next boot start with the distribution's own file again. May be repeated. Raises HostError."""
    with files(config.stock.database):
        if (kept := kept_database(config)).exists():
            kept.replace(config.stock.database)


def leads_to(config: Config) -> Path:
    """Return the file with which the next boot starts. Raises HostError."""
    with files(config.stock.database):
        return Path(os.path.realpath(config.stock.database))
