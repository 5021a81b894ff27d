#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of an emulated machine: loads modules, puts the root together, starts the network, then systemd.
# Disks, by their place on the PCI bus: vda the shared root, vdb the kernel's modules, vdc the packages under test,
# all three read-only and shared by all nodes; vdd this node's own, an ext4 that survives a power cut.
b=/bin/busybox
fail() { echo "init: $1" >/dev/console; $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module"; done </modules/order
if $b grep -qw vmx /proc/cpuinfo; then kvm=intel; else kvm=amd; fi
while read -r module; do $b insmod "/modules/$module"; done <"/modules/$kvm"
for word in $($b cat /proc/cmdline); do
  case $word in
    bed.address=*) address=${word#*=} ;;
    bed.bridge=*) bridge=${word#*=} ;;
  esac
done
for disk in a b c; do
  $b mount -t ext4 -o ro,noload "/dev/vd$disk" "/disk/$disk" || fail "no disk $disk"
done
$b mount -t ext4 -o noatime /dev/vdd /disk/d || fail "no disk d"
$b mount -t overlay \
  -o lowerdir=/disk/c:/disk/b:/disk/a,upperdir=/disk/d/upper,workdir=/disk/d/work overlay /new || fail "no root"
$b ip link set lo up
card=eth0
if [ -n "$bridge" ]; then
  # With an address of its own, the bridge does not take that of a guest's port.
  $b ip link add "$bridge" address "$($b cat /sys/class/net/eth0/address)" type bridge || fail "no bridge"
  echo 0 >"/sys/class/net/$bridge/bridge/multicast_snooping"
  $b ip link set eth0 master "$bridge"
  $b ip link set eth0 up
  card=$bridge
fi
$b ip addr add "$address" brd + dev "$card"
$b ip link set "$card" up
for tree in proc sys dev; do $b mount --move "/$tree" "/new/$tree"; done
exec $b switch_root /new /sbin/init
