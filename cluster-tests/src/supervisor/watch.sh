# SPDX-License-Identifier: Apache-2.0
# Starts a supervisor's namespaces and removes what they leave in the host when they have ended, whoever ended
# them. $1: the run's directory, $2: its cgroup's name, $3: the first process's program (empty: only remove).
run=$1 group=$2 program=$3
# The clock, modules and raw i/o are not part of any namespace: nobody in there may have them.
[ -z "$program" ] || unshare --mount --net --pid --fork --propagation private -- \
  setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio -- \
  sh -c "$program" supervisor "$run" "$group"
exec </dev/null >/dev/null
mkdir -p "$run/disks"
unshare --mount --propagation private -- sh -c '
  mount -t cgroup2 cgroup2 "$1/disks" && [ -d "$1/disks/$2" ] &&
  find "$1/disks/$2" -depth -type d -exec rmdir {} ";"' remove "$run" "$group"
rm -rf "$run"
