#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A fault-tolerant VM with pcs. Run it on one node, with /etc/kemari/vm.toml on both nodes.
#
# usage: cluster-pcs.sh [NODE1 NODE2]   the two nodes that hold the replicas; others are witnesses
set -eu

pcs resource create vm ocf:kemari:vm config=/etc/kemari/vm.toml \
    op start timeout=60s stop timeout=60s promote timeout=60s demote timeout=60s \
    notify timeout=20s \
    monitor interval=10s role=Promoted timeout=20s \
    monitor interval=11s role=Unpromoted timeout=20s \
    promotable vm-pair \
    notify=true interleave=true \
    clone-max=2 clone-node-max=1 promoted-max=1 promoted-node-max=1

# With more than two nodes, the others only vote.
if [ $# -eq 2 ]; then
    pcs constraint location vm-pair rule resource-discovery=exclusive score=0 \
        "#uname" eq "$1" or "#uname" eq "$2"
fi
