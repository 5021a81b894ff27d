#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A fault-tolerant VM with crmsh. Run it on one node, with /etc/kemari/vm.toml on every host.
#
# usage: cluster-crm.sh [HOST HOST...]   the nodes that may hold a replica, two or more; others are witnesses
set -eu

usage() {
    echo "cluster-crm.sh: $1; usage: cluster-crm.sh [HOST HOST...]" >&2
    exit 2
}

# An instance for each host; with more nodes than hosts, the others only vote.
instances=2
hosts=
case $# in
0) ;;
1) usage "'$1' alone is no pair: name two hosts or more" ;;
*)
    instances=$#
    for host in "$@"; do
        hosts="$hosts${hosts:+ or }#uname eq $host"
    done
    hosts="location vm-pair-hosts vm-pair resource-discovery=exclusive rule 0: $hosts"
    ;;
esac

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
    clone-max=$instances clone-node-max=1 promoted-max=1 promoted-node-max=1
$hosts
commit
CRM
