#!/bin/busybox sh
# The only program of a lab guest: brings the network up, pings its targets for ever and obeys the console.
#
# From the kernel command line (the kernel hands unknown `name=value` words to init as its environment):
#   lab_address  address with prefix      lab_mtu       MTU of the interface
#   lab_targets  addresses to ping, separated by commas; may be missing
#   lab_interval seconds between two pings of one target
#
# /dev/vport0p1 (virtio-serial) carries the report that ovs_hotswap/lab/pings.py reads:
#   <seconds since the epoch> ready           the guest is up
#   <seconds since the epoch> run <target>    a new ping of this target starts counting at 0
#   <seconds since the epoch> 64 bytes from <target>: seq=<n> ttl=<n> time=<n> ms
# /dev/hvc0 takes one command per line and answers with its output and `<status> <number>`.

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
until [ -e /sys/class/net/eth0 ] && [ -e /dev/vport0p1 ] && [ -e /dev/hvc0 ]; do
    usleep 10000
done
exec 3>/dev/vport0p1

ip link set lo up
ip link set eth0 mtu "$lab_mtu" up
ip address add "$lab_address" dev eth0

# A raw socket's send fails when the interface is taken down (driver unbound): then the ping ends and is begun anew.
ping_for_ever() {
    while :; do
        echo "run $1"
        ping -i "$lab_interval" "$1" 2>/dev/null
        usleep 100000
    done
}

echo "ready" | ts '%.s' >&3
for target in $(echo "$lab_targets" | tr ',' ' '); do
    ping_for_ever "$target" | ts '%.s' >&3 &
done

stty raw -echo </dev/hvc0
exec 4<>/dev/hvc0
while read -r command <&4; do
    ( eval "$command" ) </dev/null >&4 2>&1
    echo "<status> $?" >&4
done
