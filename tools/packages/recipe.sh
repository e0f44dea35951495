#!/bin/sh
# Build one component in the build tree:  recipe.sh NAME
#
# The environment holds VERSION (of the package), PREFIX (where it will be), JOBS, SOURCE_DATE_EPOCH. The patched
# source is in /build/src, what it needs in /build/dpdk. NAME.sh leaves what is installed in /build/stage.
set -eux
export DEB_BUILD_MAINT_OPTIONS=hardening=+all,-lto
export DEB_CFLAGS_MAINT_STRIP=-g
export DEB_CFLAGS_MAINT_APPEND="-g0 -ffile-prefix-map=/build=."
cd /build/src
eval "$(dpkg-buildflags --export=sh)"
. "/build/recipe/$1.sh"
