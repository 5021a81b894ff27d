#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A fault-tolerant VM with crmsh. Run it on one node, with /etc/kemari/vm.toml on both nodes.
#
# usage: cluster-crm.sh [NODE1 NODE2]   the two nodes that hold the replicas; others are witnesses
set -eu

# With more than two nodes, the others only vote.
hosts=
if [ $# -eq 2 ]; then
    hosts="location vm-pair-hosts vm-pair resource-discovery=exclusive \\
    rule 0: #uname eq $1 or #uname eq $2"
fi

# Everything in one commit: a primitive that is not cloned yet would be started alone.
crm configure <<CRM
primitive vm ocf:kemari:vm \
    params config=/etc/kemari/vm.toml \
    op start timeout=60s interval=0s \
    op stop timeout=60s interval=0s \
    op promote timeout=60s interval=0s \
    op demote timeout=60s interval=0s \
    op notify timeout=20s interval=0s \
    op monitor interval=10s role=Promoted timeout=20s \
    op monitor interval=11s role=Unpromoted timeout=20s
clone vm-pair vm \
    meta promotable=true notify=true interleave=true \
    clone-max=2 clone-node-max=1 promoted-max=1 promoted-node-max=1
$hosts
commit
CRM
