# SPDX-License-Identifier: Apache-2.0
# Runs a client in its own root: $1 the root, $2 a key for ssh, then the command. In a mount namespace of its own, which
# ends with it. The root is read-only in here; clients find a /tmp, a /run and a /proc.
set -eu
root=$1 key=$2
shift 2
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t proc proc "$root/proc"
install -m 600 "$key" "$root/run/key"
exec chroot "$root" "$@"
