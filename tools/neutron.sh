#!/bin/sh
# Unpacks Neutron's server and Open vSwitch agent, RabbitMQ and all that they need into DIRECTORY. Nothing is installed,
# and no service is started. usage: tools/neutron.sh DIRECTORY
set -eu
directory=$1
[ -e "$directory/complete" ] && exit 0
rm -rf "$directory"
mkdir -p "$directory/packages/partial"
apt-get install --yes --no-install-recommends --download-only -o "Dir::Cache::archives=$directory/packages" \
    neutron-server neutron-openvswitch-agent rabbitmq-server
for package in "$directory"/packages/*.deb; do
    dpkg-deb --extract "$package" "$directory"
done
[ ! -d "$directory/lib" ] || cp -an "$directory/lib/." "$directory/usr/lib/"
/usr/bin/python3 -m compileall -q "$directory/usr/lib/python3/dist-packages" || true # some are of other Pythons
rm -rf "$directory/packages"
touch "$directory/complete"
