# SPDX-License-Identifier: Apache-2.0
# Fills the layer above the shared root: $1 the root, $2 the layer's directory, $3 the fence agent, then the packages.
# Runs in mount and pid namespaces of its own, so its mounts end with it.
set -eu
rootfs=$1 layer=$2 agent=$3
shift 3
root=$layer/merged
mkdir "$layer/upper" "$layer/work" "$root"
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$layer/upper,workdir=$layer/work" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do cp -a "/dev/$device" "$root/dev/$device"; done
mount -t tmpfs -o mode=1777 tmp "$root/tmp"

install -m 755 "$agent" "$root/usr/sbin/fence_bed"

# What has no business in a test node, or would act at a time nobody expects.
mask() { for unit in "$@"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done; }
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer apt-daily.service \
  apt-daily-upgrade.service e2scrub_reap.service getty@tty1.service console-getty.service systemd-pstore.service
# A cluster that is installed starts when the scenario says so. Where a person installs it, it starts as it does there.
if [ -e "$root/usr/sbin/corosync" ]; then
  mask corosync-notifyd.service logd.service pcsd.service pcsd-ruby.service
  for unit in corosync pacemaker pcsd corosync-qdevice corosync-qnetd; do
    rm -f "$root/etc/systemd/system/multi-user.target.wants/$unit.service"
  done
  # Nor does libvirt, which one scenario is measured against.
  rm -f "$root"/etc/systemd/system/*.wants/*virt*
fi
# The journal must outlive a power cut and must not drop what a test wants to read.
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/var/log/journal"
cat >"$root/etc/systemd/journald.conf.d/test-bed.conf" <<'CONF'
[Journal]
Storage=persistent
SyncIntervalSec=5s
RateLimitIntervalSec=0
SystemMaxUse=64M
CONF

if [ $# -gt 0 ]; then
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # maintainer scripts start nothing
  chmod 755 "$root/usr/sbin/policy-rc.d"
  mkdir "$root/tmp/packages"
  cp -- "$@" "$root/tmp/packages"
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
    chroot "$root" sh -c 'exec dpkg -i /tmp/packages/*' >&2
  rm -f "$root/usr/sbin/policy-rc.d"
fi
umount "$root/tmp" "$root/dev" "$root/proc" "$root"
rm -rf "$layer/work" "$root"
