#!/bin/busybox sh
# The only program of a lab guest: brings the network up, pings its targets for ever and obeys the console.
#
# From the kernel command line (the kernel hands unknown `name=value` words to init as its environment):
#   lab_address  address with prefix      lab_mtu       MTU of the interface
#   lab_targets  addresses to ping, separated by commas
#   lab_interval seconds between two pings of one target
#
# /dev/vport<bus>p<n> (virtio-serial) carries what the ping of the n-th target prints, as ovs_hotswap/lab/pings.py reads it:
#   run                                                 a new ping starts counting at 0
#   64 bytes from <target>: seq=<n> ttl=<n> time=<n> ms
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

# Sending on a raw socket fails when the interface is gone (driver unbound): the ping ends and is begun anew.
ping_for_ever() {
    while :; do
        echo run
        ping -i "$lab_interval" "$1" 2>/dev/null
        usleep 100000
    done
}

echo "lab: ready" >/dev/ttyS0
number=0
for target in $(echo "$lab_targets" | tr ',' ' '); do
    number=$((number + 1))
    port=$(echo /dev/vport*p"$number") # a redirection does not expand it
    ping_for_ever "$target" >"$port" &
done

stty raw -echo </dev/hvc0
exec 4<>/dev/hvc0
while read -r command <&4; do
    ( eval "$command" ) </dev/null >&4 2>&1
    echo "<status> $?" >&4
done
