# SPDX-License-Identifier: Apache-2.0
# The first process of a supervisor's namespaces. $1: the run's directory, $2: its cgroup's name.
# Standard input is the lifeline: its other end is held by the process that owns the run and by nobody else.
# When it closes, this process ends, and the kernel ends every other process of the pid namespace with it.
set -eu
run=$1 group=$2
read -r outer _ </proc/self/stat # /proc is still the outer one: our pid as the owner sees it
mount -t proc -o nosuid,nodev,noexec proc /proc
mount --bind "$run" "$run"
mount -o remount,bind,ro / # the host's files are read-only for everything in here
mount -t tmpfs -o mode=755,size=75% disks "$run/disks"
mkdir "$run/disks/.cgroup"
mount -t cgroup2 cgroup2 "$run/disks/.cgroup"
mkdir "$run/disks/.cgroup/$group"
ip link set lo up
# A bridge without an address of its own takes that of a port, and another one when the port goes:
# connections to the outside would then stand still until the neighbours ask again.
ip link add br0 address 02:4b:4d:00:00:fe type bridge forward_delay 0 mcast_snooping 0
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
echo "$outer"
exec >/dev/null
# Not a builtin: while the shell waits for a child it also collects the processes orphaned to it.
cat
exit 0
