# SPDX-License-Identifier: Apache-2.0
# Runs a script in a clean root: $1 the shared root, $2 the place of this one's layers, $3 who runs it, $4 the script.
# In mount and pid namespaces of its own, so its mounts end with it.
set -eu
lower=$1 place=$2
ROOT=$place/merged
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=755 dev "$ROOT/dev"
mkdir "$ROOT/dev/net"
for device in null zero full random urandom kvm net/tun; do
  if [ -e "/dev/$device" ]; then cp -a "/dev/$device" "$ROOT/dev/$device"; fi
done
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount -t tmpfs -o mode=1777 tmp "$ROOT/tmp"
mount --bind "$place/share" "$ROOT/mnt"
export ROOT LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
case $3 in
inside)
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  exec chroot "$ROOT" sh -euc "$4" </dev/null
  ;;
host) exec sh -euc "$4" </dev/null ;;
esac
