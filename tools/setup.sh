#!/bin/sh
# Set up a Debian 12 machine for the demo and the tests:  tools/setup.sh packages venv pages
#
# packages  installs what apt-packages.txt lists and is missing (root). Nothing else is upgraded on purpose. While it
#           installs Open vSwitch for the first time, a policy-rc.d file keeps the package from starting its own
#           switch; it is enabled for the next boot as the package wants it. A switch that is already installed is
#           left alone: neither stopped nor disabled. The same file keeps what only tests need (OpenSSH's server, OVN,
#           libvirt, Prometheus and nfdump) from being started when it is installed for the first time; then its services are disabled, too.
# venv      makes .venv with this package (editable) and its tools, anew when setup.cfg changed.
# test-packages, test-venv  add what the tests need besides: test-packages.txt, and Ansible and a browser's driver in
#           .venv.
# pages     raises vm.nr_hugepages if fewer than 256 pages of 2 MiB are free, and mounts /dev/hugepages if
#           it is not (root). tools/clean.sh puts both back.
#
# At the end it waits, a minute at most, until what it installed is on the disk: guests of a demo would notice that.
#
# What is in place is left alone, so a second run takes no time.
set -eu
cd "$(dirname "$0")/.."

HUGE_PAGES=256 # two instances of the demo take 66; a test that needs more adds them itself
POOL=/sys/kernel/mm/hugepages/hugepages-2048kB
STATE=.cache/setup
installed=
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# ovs-hotswap: tools/setup.sh'

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }
boot_id() { cat /proc/sys/kernel/random/boot_id; }
need_root() { [ "$(id -u)" = 0 ] || fail "$1 needs root: run it with sudo"; }

# missing_packages FILE
missing_packages() {
    listed=$(sed -e 's/#.*//' "$1")
    # shellcheck disable=SC2086  # a list of words
    present=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' $listed 2>/dev/null | sed -n 's/^.i  *//p')
    for package in $listed; do
        echo "$present" | grep -qxF "$package" || echo "$package"
    done
}

remove_policy() {
    if [ -f "$POLICY" ] && grep -qxF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

packages() { install_packages apt-packages.txt; }

# install_packages FILE
install_packages() {
    command -v dpkg-query >/dev/null || fail "this needs Debian 12 (no dpkg-query here)"
    remove_policy # of a run that was killed
    missing=$(missing_packages "$1")
    [ -n "$missing" ] || return 0
    need_root "installing $(echo "$missing" | tr '\n' ' ')"
    # shellcheck disable=SC2086
    say "installing" $missing
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    no_sshd= no_ovn= no_libvirt= no_prometheus= no_nfdump=
    [ -e /usr/sbin/sshd ] || no_sshd=yes
    [ -e /usr/bin/ovn-controller ] || no_ovn=yes
    [ -e /usr/sbin/libvirtd ] || no_libvirt=yes
    [ -e /usr/bin/prometheus ] || no_prometheus=yes
    [ -e /usr/bin/nfcapd ] || no_nfdump=yes
    if [ ! -e "$POLICY" ] && { [ ! -e /usr/sbin/ovs-vswitchd ] || [ -n "$no_sshd$no_ovn$no_libvirt$no_prometheus$no_nfdump" ]; }; then
        trap remove_policy EXIT
        trap 'exit 130' HUP INT TERM
        # invoke-rc.d(8): 101 means "not allowed"; the first argument is the service.
        printf '#!/bin/sh\n%s\ncase "$1" in openvswitch*|ovs-*|ovsdb-*|ovn-*|libvirt*|virtlo*|ssh*|prometheus*|nfdump*) exit 101 ;; esac\nexit 0\n' "$POLICY_MARK" \
            >"$POLICY"
        chmod 755 "$POLICY"
    fi
    # shellcheck disable=SC2086
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing 9>&-
    remove_policy
    if [ -n "$no_sshd" ] && [ -e /usr/sbin/sshd ]; then # the tests need the program; nobody asked for the service
        systemctl --quiet disable ssh.service ssh.socket 2>/dev/null || true
    fi
    if [ -n "$no_ovn" ] && [ -e /usr/bin/ovn-controller ]; then
        systemctl --quiet disable ovn-central.service ovn-host.service ovn-controller.service \
            ovn-northd.service ovn-ovsdb-server-nb.service ovn-ovsdb-server-sb.service 2>/dev/null || true
    fi
    if [ -n "$no_libvirt" ] && [ -e /usr/sbin/libvirtd ]; then
        systemctl --quiet disable libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket \
            libvirt-guests.service virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket \
            2>/dev/null || true
    fi
    if [ -n "$no_prometheus" ] && [ -e /usr/bin/prometheus ]; then
        systemctl --quiet disable prometheus.service 2>/dev/null || true
    fi
    if [ -n "$no_nfdump" ] && [ -e /usr/bin/nfcapd ]; then
        systemctl --quiet disable nfdump.service 2>/dev/null || true
    fi
    installed=yes
}

# The first Python of at least 3.11 that can make a virtual environment; Debian's own comes first.
find_python() {
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        path=$(command -v "$candidate") || continue
        if "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$path"
            return
        fi
    done
    fail "no Python >= 3.11 with venv: install python3-venv"
}

venv() {
    stamp=$({ pwd; cat setup.cfg pyproject.toml; } | sha256sum)
    if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ]; then return 0; fi
    python=$(find_python)
    say "making .venv with $python"
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action ignore -e '.[dev]'
    echo "$stamp" >.venv/stamp
    installed=yes
}

test_venv() {
    venv
    stamp=$(cat .venv/stamp)
    [ "$(cat .venv/tests-stamp 2>/dev/null)" != "$stamp" ] || return 0
    say "adding what the tests need to .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action ignore -e '.[ansible,browser]'
    echo "$stamp" >.venv/tests-stamp
    installed=yes
}

# remembered NAME: the value remembered in this boot, if any.
remembered() {
    [ -f "$STATE/$1" ] && [ "$(sed -n 1p "$STATE/$1")" = "$(boot_id)" ] && sed -n 2p "$STATE/$1"
}

pages() {
    if ! grep -q ' /dev/hugepages hugetlbfs ' /proc/mounts; then
        need_root "mounting /dev/hugepages"
        mkdir -p /dev/hugepages "$STATE"
        mount -t hugetlbfs -o pagesize=2M none /dev/hugepages || fail "/dev/hugepages cannot be mounted"
        boot_id >"$STATE/mounted"
        say "mounted /dev/hugepages"
    fi
    [ -d $POOL ] || fail "this machine has no huge pages of 2 MiB"
    free=$(cat $POOL/free_hugepages)
    [ "$free" -lt $HUGE_PAGES ] || return 0
    need_root "raising the number of huge pages"
    before=$(cat $POOL/nr_hugepages)
    wanted=$((before + HUGE_PAGES - free))
    mkdir -p "$STATE"
    original=$(remembered hugepages) || original=$before
    echo "$wanted" >$POOL/nr_hugepages
    after=$(cat $POOL/nr_hugepages)
    if [ "$after" -lt "$wanted" ]; then # memory is fragmented: make room once
        echo 1 >/proc/sys/vm/compact_memory
        echo "$wanted" >$POOL/nr_hugepages
        after=$(cat $POOL/nr_hugepages)
    fi
    { boot_id; echo "$original"; echo "$after"; } >"$STATE/hugepages"
    [ "$after" -ge "$wanted" ] || fail "only $after of $wanted huge pages of 2 MiB: free memory, or reboot"
    say "raised the huge pages of 2 MiB from $before to $after"
}

# What of files is in memory and not on the disk.
unwritten_kib() { awk '/^(Dirty|Writeback):/ { sum += $2 } END { print sum + 0 }' /proc/meminfo; }

wait_written() {
    say "waiting until what was installed is on the disk: $(($(unwritten_kib) / 1024)) MiB"
    sync >/dev/null 2>&1 9>&- & # it may take longer than anybody waits
    syncing=$!
    for _ in $(seq 300); do
        kill -0 $syncing 2>/dev/null || return 0
        sleep 0.2
    done
    say "$(($(unwritten_kib) / 1024)) MiB are still not on the disk"
}

mkdir -p "$STATE"
[ -e "$STATE/lock" ] || : >"$STATE/lock"
exec 9<"$STATE/lock" # for reading: it may be root's
flock 9
for part in "$@"; do
    case "$part" in
        packages | venv | pages) "$part" ;;
        test-packages) install_packages test-packages.txt ;;
        test-venv) test_venv ;;
        *) fail "unknown part: $part (packages, venv, pages, test-packages, test-venv)" ;;
    esac
done
[ -z "$installed" ] || wait_written
