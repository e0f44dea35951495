#!/bin/sh
# Return this machine to the state in which a newcomer's is: what earlier runs of labs and tests left makes a run pass
# that fails elsewhere.  tools/bare.sh [keep-caches]
#
# Ends processes, network namespaces, mounts and files of labs and tests (those of a host's own instances have other
# names and are left alone), takes all huge pages back, and moves the caches of releases and packages aside, to
# /var/cache/ovs-hotswap.aside, unless told to keep them. Debian packages stay.
set -eu

CACHE=/var/cache/ovs-hotswap
PATHS='/tmp/ovsh-|/run/ovs-hotswap-lab'

say() { echo "bare: $*"; }
fail() { echo "bare: error: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "this needs root"

# Processes whose command line names a directory of a lab or test, or that live in a namespace of one: a network
# namespace with a name, or a mount namespace that has directories of it in the places of the host's.
leftovers() {
    own=$(readlink /proc/self/ns/mnt)
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" != $$ ] || continue
        if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -qE "$PATHS"; then echo "$pid"; fi
        [ "$(readlink "$process/ns/mnt" 2>/dev/null || echo "$own")" != "$own" ] || continue
        if grep -qE " ($PATHS)" "$process/mountinfo" 2>/dev/null; then echo "$pid"; fi
    done
    for name in $(namespaces); do ip netns pids "$name" 2>/dev/null || true; done
}

# Of labs (lab/layout.py) and of configurations whose run_dir is not the default one (Config.namespace).
namespaces() {
    ls /run/netns 2>/dev/null | grep -E '^(ovsl-[0-9a-f]{8}-(host|remote)|ovsh-[0-9a-f]{8}-[ab])$' || true
}

for _ in 1 2 3 4 5; do
    pids=$(leftovers | sort -un)
    [ -n "$pids" ] || break
    say "ending" $pids
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null || true
    sleep 0.5
done
[ -z "$(leftovers)" ] || fail "still there:" $(leftovers)
for name in $(namespaces); do say "removing namespace $name" && ip netns delete "$name"; done
awk '{ print $2 }' /proc/mounts | grep -E "^($PATHS)" | sort -r | while read -r point; do
    say "unmounting $point"
    umount -- "$point"
done
rm -rf --one-file-system /tmp/ovsh-* /run/ovs-hotswap-lab

if [ "${1:-}" != keep-caches ] && [ -d $CACHE ]; then
    rm -rf --one-file-system $CACHE.aside
    mv $CACHE $CACHE.aside
    say "moved $CACHE aside"
fi
for pool in /sys/kernel/mm/hugepages/hugepages-*kB; do
    [ -d "$pool" ] || continue
    echo 0 >"$pool/nr_hugepages"
    left=$(cat "$pool/nr_hugepages")
    [ "$left" = 0 ] || say "${pool##*/}: $left pages are in use by others"
done
echo 3 >/proc/sys/vm/drop_caches
