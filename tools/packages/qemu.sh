# QEMU: the x86_64 system emulator with KVM, TCG and vhost-user.
#
# Run by recipe.sh in the build tree, in /build/src. Debian's source has no firmware: the package depends on those that do
# (qemu-system-data, seabios, ipxe-qemu), as Debian's own QEMU does, and finds them where that one does.
mkdir /build/work
cd /build/work
/build/src/configure --prefix="$PREFIX" --target-list=x86_64-softmmu --without-default-features \
    --enable-kvm --enable-tcg --enable-vhost-user --enable-vhost-kernel --enable-vhost-net --enable-fdt=system \
    --enable-numa --enable-pie --enable-coroutine-pool --disable-docs --disable-tools --disable-debug-info \
    --disable-install-blobs --meson=/usr/bin/meson --with-pkgversion="ovs-hotswap $VERSION" \
    --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu \
    --extra-cflags="$CFLAGS $CPPFLAGS" --extra-ldflags="$LDFLAGS"
ninja -j"$JOBS" qemu-system-x86_64
install -D -m 755 qemu-system-x86_64 "/build/stage$PREFIX/bin/qemu-system-x86_64"
strip --strip-unneeded "/build/stage$PREFIX"/bin/*
