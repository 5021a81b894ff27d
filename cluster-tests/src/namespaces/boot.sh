# SPDX-License-Identifier: Apache-2.0
# The first process of a node, from its fresh namespaces (and the supervisor's view of files) to systemd.
# $1 the node's directory, $2 its name, $3 its address with prefix length, $4 lower layers, $5 the share, $6 its
# cgroup, $7 "inside" once this process is in that cgroup. It writes its pid as the supervisor sees it, waits for a
# line (the cable is there), and writes "entered" once nothing of the host can be reached any more.
set -eu
dir=$1 name=$2 address=$3 lower=$4 share=$5 group=$6
if [ "${7:-}" != inside ]; then
  # Only pids that the node can see may be in its cgroup, so this process moves, not the unshare around it.
  echo 0 >"$group/cgroup.procs"
  exec unshare --cgroup -- sh -c "$BOOT" boot "$@" inside
fi
read -r pid _ </proc/self/stat # /proc is still the supervisor's
echo "$pid"
read -r _
ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up

root=$dir/root
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net" # the node's own, so it stays writable
mount -o remount,bind,ro "$root/proc/sys"
# Pacemaker's panic writes here: it would restart the host.
[ ! -e "$root/proc/sysrq-trigger" ] || mount --bind /dev/null "$root/proc/sysrq-trigger"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -o remount,bind,ro "$root/sys"

mount -t tmpfs -o nosuid,mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net" "$root/dev/mqueue"
for device in null zero full random urandom tty kvm net/tun vhost-net fuse; do
  [ ! -e "/dev/$device" ] || cp -a "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=755 run "$root/run"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp "$root/tmp"
mkdir -p "$root/harness"
mount --bind "$share" "$root/harness"

exec 4>>"$dir/console"
cd "$root"
mkdir -p .outside
pivot_root . .outside
cd /
umount -l /.outside
rmdir /.outside
echo entered
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb container=kemari-tests \
  NOTIFY_SOCKET="/harness/notify.$name" /sbin/init </dev/null >&4 2>&4 4>&-
