#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of the Linux guest: no kernel message reaches the console after this, then only the ledger writes.
/bin/busybox mount -t proc proc /proc
/bin/busybox dmesg -n 1
/ledger
/bin/busybox reboot -f
