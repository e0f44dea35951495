#!/bin/sh
# Lay out the package of ovs-hotswap below /build/stage, in the build tree and without a network.
#
# The environment holds PREFIX (/opt/ovs-hotswap) and SOURCE_DATE_EPOCH. In /build: src, the sources; in/debs, the
# packages of Debian whose files become part of this one; in/wheels, the Python packages of wheels.lock; recipe, this
# directory.
set -eux
umask 022
export LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
cd /build
stage=/build/stage
home=$stage$PREFIX/python
library=$home/lib/python3.11
private=$home/lib/private
packages=$library/dist-packages

# ---- the interpreter and its library
for deb in in/debs/*.deb; do dpkg-deb --extract "$deb" debs; done
mkdir -p "$home/bin" "$private"
cp debs/usr/bin/python3.11 "$home/bin/"
cp -R debs/usr/lib/python3.11 "$home/lib/"
# What leads to files of the host, and modules that would need libraries for nothing that the program does.
rm -rf "$library/sitecustomize.py" "$library/EXTERNALLY-MANAGED" "$library/_sysconfigdata_d"* "$packages"
rm -rf "$library/curses" "$library/dbm" "$library/crypt.py" "$library/test" "$library/pydoc_data"
for module in _crypt _curses _curses_panel _dbm _tkinter nis ossaudiodev readline \
    _ctypes_test _testbuffer _testcapi _testclinic _testimportmultiple _testinternalcapi _testmultiphase \
    _xxsubinterpreters _xxtestfuzz xxlimited xxlimited_35; do
    rm -f "$library/lib-dynload/$module".*.so
done
# An executable's RPATH, unlike its RUNPATH, holds for the libraries of the modules that it loads, too. It is tried
# before LD_LIBRARY_PATH and the host's directories.
patchelf --force-rpath --set-rpath '$ORIGIN/../lib/private' "$home/bin/python3.11"

# ---- the program and the Python packages that it needs
pip() { python3 -m pip install --quiet --no-index --no-deps --no-compile --no-build-isolation --no-cache-dir "$@"; }
pip --find-links in/wheels --require-hashes --requirement recipe/wheels.lock --target "$packages"
pip --target "$packages" /build/src
mv "$packages/share" "$home/share"
# pbr names setuptools for what builds a package, which nothing here does.
rm -rf "$packages/bin" "$packages/setuptools"* "$packages/_distutils_hack" "$packages/distutils-precedence.pth"
find "$packages" -name direct_url.json -delete

# ---- the libraries of all of these, from Debian's packages and not from the tree
libraries=/build/debs/usr/lib/x86_64-linux-gnu:/build/debs/lib/x86_64-linux-gnu
find "$home" -type f \( -name '*.so' -o -name '*.so.*' -o -name python3.11 \) -exec \
    sh -ec 'for file; do LD_LIBRARY_PATH=$0 ldd "$file" || true; done' "$libraries" {} + |
    sed -n 's,^.* => \(/build/debs/[^ ]*\) .*,\1,p' | sort -u >needed
while read -r file; do cp -L "$file" "$private/"; done <needed

# ---- compiled modules, which are never compared with their sources: nothing is written at run time
"$home/bin/python3.11" -I -m compileall -q -f -j 1 --invalidation-mode unchecked-hash -s "$stage" -p / "$library"

# ---- the command, what it says of itself, and what runs it
mkdir -p "$stage$PREFIX/bin" "$stage/usr/bin"
cat >"$stage$PREFIX/bin/ovs-hotswap" <<PROGRAM
#!$PREFIX/python/bin/python3.11 -IXfaulthandler
import sys

from ovs_hotswap.cli.main import main

sys.exit(main())
PROGRAM
chmod 755 "$stage$PREFIX/bin/ovs-hotswap"
ln -s "$PREFIX/bin/ovs-hotswap" "$stage/usr/bin/ovs-hotswap"

put() { install -D -m 644 "$1" "$stage$2"; } # put FILE PATH
says() { "$home/bin/python3.11" -I "$stage$PREFIX/bin/ovs-hotswap" "$@"; }
complete() { # complete SHELL PATH
    _OVS_HOTSWAP_COMPLETE=$1_source says >completion
    put completion "$2"
}
complete bash /usr/share/bash-completion/completions/ovs-hotswap
complete zsh /usr/share/zsh/vendor-completions/_ovs-hotswap
complete fish /usr/share/fish/vendor_completions.d/ovs-hotswap.fish
(cd src && PYTHONDONTWRITEBYTECODE=1 "$home/bin/python3.11" -m tools.manpage /build/ovs-hotswap.8)
gzip -9n ovs-hotswap.8
put ovs-hotswap.8.gz /usr/share/man/man8/ovs-hotswap.8.gz
for unit in src/systemd/*.service src/systemd/*.timer; do put "$unit" "/usr/lib/systemd/system/${unit##*/}"; done
put src/systemd/sysusers.conf /usr/lib/sysusers.d/ovs-hotswap.conf
put src/systemd/tmpfiles.conf /usr/lib/tmpfiles.d/ovs-hotswap.conf
put src/systemd/needrestart.conf /etc/needrestart/conf.d/ovs-hotswap.conf
mkdir -p "$stage/etc/ovs-hotswap"

# ---- documentation
documentation=/usr/share/doc/ovs-hotswap
put src/README.md $documentation/README.md
for page in src/docs/*.md; do put "$page" "$documentation/docs/${page##*/}"; done
for page in src/docs/json/*; do put "$page" "$documentation/docs/json/${page##*/}"; done
for file in src/docs/monitoring/*; do put "$file" "$documentation/docs/monitoring/${file##*/}"; done
gzip -9nc src/CHANGELOG.md >changelog.gz
put changelog.gz $documentation/changelog.gz
gzip -9nc changelog.Debian >changelog.Debian.gz
put changelog.Debian.gz $documentation/changelog.Debian.gz
{
    cat recipe/copyright
    for deb in in/debs/*.deb; do
        package=$(dpkg-deb --field "$deb" Package)
        printf '\n\n==== %s\n\n' "$package"
        cat "debs/usr/share/doc/$package/copyright"
    done
} >copyright
put copyright $documentation/copyright

"$home/bin/python3.11" -I recipe/check.py "$stage$PREFIX"
