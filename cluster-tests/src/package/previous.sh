# SPDX-License-Identifier: Apache-2.0
# Makes the release before the package $1: $2 the result, $3 a directory to work in, $4 its version.
deb=$1 previous=$2 tree=$3 version=$4
dpkg-deb --raw-extract "$deb" "$tree"
sed -i "s/^Version: .*/Version: $version/" "$tree/DEBIAN/control"
sed -i 's/^WatchdogSec=.*/WatchdogSec=77/' "$tree/usr/lib/systemd/system/kemari-agent.service"
if [ -d "$tree/etc/needrestart" ]; then
  echo '# of the previous release' >>"$tree/etc/needrestart/conf.d/kemari.conf"
fi
mkdir "$tree/usr/share/kemari"
touch "$tree/usr/share/kemari/gone"
dpkg-deb --build --root-owner-group -Zgzip -z1 "$tree" "$previous"
