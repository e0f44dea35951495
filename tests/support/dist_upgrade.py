"""What a dist-upgrade of a Debian 12 to Debian 13 fetches, so that a machine without a network can carry it out."""

from __future__ import annotations

import shutil
from pathlib import Path

from ovs_hotswap.switch.release import packages
from ovs_hotswap.system import System

# Arguments: the tree of Debian 12, the mirror, the directory to which ``archives`` and ``lists`` are copied, and more
# packages.
_FETCH = r"""
set -e
mount -t tmpfs tmpfs /media
mkdir /media/upper /media/work /media/root
mount -t overlay -o "lowerdir=$1,upperdir=/media/upper,workdir=/media/work" overlay /media/root
cp /etc/resolv.conf /media/root/etc/resolv.conf
echo "deb $2 trixie main" >/media/root/etc/apt/sources.list
mount -t proc proc /media/root/proc
chroot /media/root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -ec '
    apt-get -q update
    apt-get -q -y --download-only --no-install-recommends dist-upgrade
    apt-get -q -y --download-only --no-install-recommends install '"$4"
cp -r /media/root/var/cache/apt/archives /media/root/var/lib/apt/lists "$3"
"""
# In the machine: needrestart restarts by itself what it may.
CARRY_OUT = r"""
set -e
cp -r /srv/shared/dist-upgrade/archives/. /var/cache/apt/archives/
cp -r /srv/shared/dist-upgrade/lists/. /var/lib/apt/lists/
cp /srv/shared/dist-upgrade/sources.list /etc/apt/sources.list
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
apt-get -q -y --no-download --no-install-recommends -o Dpkg::Options::=--force-confdef \
    -o Dpkg::Options::=--force-confold dist-upgrade
apt-get -q -y purge python3.11-minimal libpython3.11-minimal  # debootstrap has marked them as wanted
"""


def fetch(tree: Path, mirror: str, system: System, kept: Path) -> Path:
    """The directory with all that is needed, made once."""
    if not kept.is_dir():
        partial = kept.with_name(f"{kept.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        own_mounts = ["unshare", "--mount", "--propagation", "private", "--"]
        said: list[str] = []
        argv = [*own_mounts, "sh", "-c", _FETCH, "sh", str(tree), mirror, str(partial),
                " ".join(packages("trixie"))]  # fmt: skip
        assert system.run_lines(argv, said.append, timeout=600) == 0, "\n".join(said[-20:])
        (partial / "sources.list").write_text(f"deb {mirror} trixie main\n")
        partial.rename(kept)
    return kept
