#!/bin/sh
# Make /build/out/$1 of /build/stage, in two calls:  pack.sh depends;  pack.sh FILE, once Python wrote DEBIAN/control.
set -eux
cd /build
if [ "$1" = depends ]; then
    mkdir -p pack/debian
    printf 'Source: x\n\nPackage: x\nArchitecture: amd64\n' >pack/debian/control
    cd pack
    find /build/stage -type f -perm -100 -print0 | sort -z | xargs -0 dpkg-shlibdeps -O >/build/depends
    exit
fi
find stage -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p out
# One thread: the blocks that xz makes depend on their number.
dpkg-deb --root-owner-group --threads-max=1 -Zxz --build stage "out/$1"
