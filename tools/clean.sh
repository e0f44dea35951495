#!/bin/sh
# Remove what the set-up, the lab and the tools left, and put the huge pages back. Debian packages stay.
set -eu
cd "$(dirname "$0")/.."

POOL=/sys/kernel/mm/hugepages/hugepages-2048kB
STATE=.cache/setup
RELEASES=/var/cache/ovs-hotswap # the trees that the lab's instances run (ovs_hotswap/lab/lab.py)

say() { echo "clean: $*"; }
fail() { echo "clean: error: $*" >&2; exit 1; }
same_boot() { [ -f "$1" ] && [ "$(sed -n 1p "$1")" = "$(cat /proc/sys/kernel/random/boot_id)" ]; }

# A release tree in use has the host's /dev and the like mounted in it: never remove those.
if awk '{ print $2 }' /proc/mounts | grep -qF "$(pwd)/.cache/"; then
    fail "something is mounted below .cache: end it first (ovs-hotswap lab down)"
fi

if [ -d $RELEASES ]; then
    [ "$(id -u)" = 0 ] || fail "removing $RELEASES needs root: run it with sudo"
    for process in /proc/[0-9]*; do
        case "$(readlink "$process/root" 2>/dev/null)" in
            $RELEASES/*) fail "process ${process#/proc/} runs in $RELEASES: end it first (ovs-hotswap lab down)" ;;
        esac
    done
    rm -rf --one-file-system $RELEASES
    say "removed $RELEASES"
fi

if same_boot "$STATE/hugepages"; then
    before=$(sed -n 2p "$STATE/hugepages")
    after=$(sed -n 3p "$STATE/hugepages")
    if [ "$(cat $POOL/nr_hugepages)" != "$after" ]; then
        say "the number of huge pages was changed since the set-up: left as it is"
    else
        [ "$(id -u)" = 0 ] || fail "putting the huge pages back needs root: run it with sudo"
        echo "$before" >$POOL/nr_hugepages
        say "huge pages of 2 MiB: $after -> $(cat $POOL/nr_hugepages)"
    fi
fi
if same_boot "$STATE/mounted" && grep -q ' /dev/hugepages hugetlbfs ' /proc/mounts; then
    if umount /dev/hugepages 2>/dev/null; then
        say "unmounted /dev/hugepages"
    else
        say "/dev/hugepages is in use: left mounted"
    fi
fi

rm -rf --one-file-system .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist ./*.egg-info \
    ./*-report.json
find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
