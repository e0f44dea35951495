#!/bin/sh
# QEMU 2.9.0, which is $OVS_HOTSWAP_OLD_QEMU, for a guest of the lab: what the lab says in the words of later versions is
# said in its own. It has no memory-backend-memfd, and a machine takes its memory from a NUMA node.
for word do
    shift
    case $word in
    pc,*) set -- "$@" pc-i440fx-2.9,usb=off,vmport=off ;;
    memory-backend-memfd,*,hugetlb=off)
        word=${word#memory-backend-memfd}
        set -- "$@" "memory-backend-file${word%,hugetlb=off},mem-path=/dev/shm" -numa node,memdev=memory
        ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec "$OVS_HOTSWAP_OLD_QEMU" "$@"
