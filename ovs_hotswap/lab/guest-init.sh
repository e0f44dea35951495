#!/bin/busybox sh
# Brings a lab guest's network up, starts its pings and obeys its console.
#
# From the kernel command line (the kernel hands unknown `name=value` words to init as its environment):
#   lab_address  address with prefix      lab_mtu       MTU of the interface
#   lab_targets  what to ping: address:bytes, separated by commas
#   lab_interval seconds between two pings of one target
#
# /dev/vport<bus>p<n> (virtio-serial) carries the report on the n-th target; guest-ping.pl says what is in it.
# /dev/ttyS0 gets "lab: ready" once per boot. /dev/hvc0 takes one command per line and answers with its output and
# "<status> <number>".

/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
    insmod "/modules/$module"
done </modules/order

# The devices appear when their drivers have bound, which the kernel does in the background.
until [ -e /sys/class/net/eth0 ] && [ -e /dev/vport*p1 ] && [ -e /dev/hvc0 ]; do
    usleep 10000
done

ip link set lo up
ip link set eth0 mtu "$lab_mtu" up
ip address add "$lab_address" dev eth0

echo "lab: ready" >/dev/ttyS0
echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range
set --
for target in $(echo "$lab_targets" | tr ',' ' '); do
    set -- "$@" "$target" "$(echo /dev/vport*p$(($# / 2 + 1)))"
done
/usr/bin/perl /guest-ping.pl "$lab_interval" "$@" 2>/dev/ttyS0 &

exec 4<>/dev/hvc0
stty raw -echo <&4
while read -r command <&4; do
    ( eval "$command" ) </dev/null >&4 2>&1
    echo "<status> $?" >&4
done
