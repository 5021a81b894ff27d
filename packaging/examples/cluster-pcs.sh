#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A fault-tolerant VM with pcs. Run it on one node, with /etc/kemari/vm.toml on every host.
#
# usage: cluster-pcs.sh [HOST HOST...]   the nodes that may hold a replica, two or more; others are witnesses
set -eu

if [ $# -eq 1 ]; then
    echo "cluster-pcs.sh: '$1' alone is no pair: name two hosts or more;" \
        "usage: cluster-pcs.sh [HOST HOST...]" >&2
    exit 2
fi
# An instance for each host.
instances=$#
[ "$instances" -ne 0 ] || instances=2

pcs resource create vm ocf:kemari:vm config=/etc/kemari/vm.toml \
    op start timeout=60s stop timeout=60s promote timeout=60s demote timeout=60s \
    notify timeout=20s \
    monitor interval=10s role=Promoted timeout=20s \
    monitor interval=11s role=Unpromoted timeout=20s \
    promotable vm-pair \
    notify=true interleave=true \
    clone-max="$instances" clone-node-max=1 promoted-max=1 promoted-node-max=1

# With more nodes than hosts, the others only vote.
if [ $# -ne 0 ]; then
    rule=
    for host in "$@"; do
        rule="$rule${rule:+ or }#uname eq $host"
    done
    # The words of the rule are arguments of their own.
    set -f
    # shellcheck disable=SC2086
    pcs constraint location vm-pair rule resource-discovery=exclusive score=0 $rule
fi
