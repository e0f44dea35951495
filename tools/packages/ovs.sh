# Open vSwitch, with DPDK linked in.
#
# Run by recipe.sh in the build tree, in /build/src. The series may change lib/automake.mk: so ./boot.sh.
./boot.sh
mkdir /build/work
cd /build/work
export PKG_CONFIG_PATH=/build/dpdk/lib/pkgconfig
/build/src/configure --prefix="$PREFIX" --localstatedir=/var --sysconfdir=/etc --disable-shared --enable-ssl \
    --disable-afxdp --disable-dependency-tracking --with-dpdk=static
make -j"$JOBS" noinst_PROGRAMS= # which are those of the tests
make noinst_PROGRAMS= DESTDIR=/build/full install

keep() { # keep MODE FILE...
    mode=$1
    shift
    for file in "$@"; do install -D -m "$mode" "/build/full$PREFIX/$file" "/build/stage$PREFIX/$file"; done
}
keep 755 sbin/ovs-vswitchd sbin/ovsdb-server bin/ovs-appctl bin/ovs-ofctl bin/ovs-vsctl bin/ovsdb-client bin/ovsdb-tool
keep 644 share/openvswitch/vswitch.ovsschema share/man/man8/ovs-vswitchd.8 share/man/man5/ovs-vswitchd.conf.db.5
strip --strip-unneeded "/build/stage$PREFIX"/bin/* "/build/stage$PREFIX"/sbin/*
