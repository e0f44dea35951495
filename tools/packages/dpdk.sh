# DPDK as static libraries with the drivers in use, for ovs.sh; no package is made of it.
#
# Run by recipe.sh in the build tree, in /build/src. The libraries are linked into ovs-vswitchd: so a switch is one
# program, which cannot meet the DPDK or the plug-ins of another version.
meson setup /build/work --prefix="$PREFIX" --libdir=lib --buildtype=plain --default-library=static \
    -Dplatform=generic -Dtests=false -Denable_docs=false -Ddisable_apps='*' \
    -Ddisable_libs=bitratestats,cfgfile,flow_classify,gpudev,gro,gso,jobstats,kni,latencystats,metrics,node,pipeline,port,power,table \
    -Denable_drivers=bus/pci,bus/vdev,mempool/ring,common/iavf,net/af_packet,net/i40e,net/iavf,net/memif,net/vhost,net/virtio
ninja -C /build/work -j"$JOBS"
DESTDIR=/build/stage ninja -C /build/work install
# Meson makes shared libraries and plug-ins too, whatever it is told.
find "/build/stage$PREFIX" \( -name '*.so' -o -name '*.so.*' \) -delete
rm -rf "/build/stage$PREFIX/bin" "/build/stage$PREFIX/share"
