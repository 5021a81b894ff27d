# SPDX-License-Identifier: Apache-2.0
# What the administrator of this server did after installing it. $1: the root of the new system.
# Run by mmdebstrap when all packages are configured; no daemon runs.
set -eu
root=$1
etc=$root/etc

echo server >"$etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 server\n::1 localhost ip6-localhost ip6-loopback\n' >"$etc/hosts"
# A system that was booted before has one; without it every boot would be a first boot.
echo 5c5e1f0d2b6a4c8fa9d3e7b1c4f08a62 >"$etc/machine-id"
printf 'root:debian\n' | chroot "$root" chpasswd
echo 'LANG=C.UTF-8' >"$etc/default/locale"

# The network: whatever card there is, by DHCP. A server asks with its MAC address when leases are made by that.
cat >"$etc/systemd/network/lan.network" <<'CONF'
[Match]
Type=ether

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no

[DHCPv4]
ClientIdentifier=mac
CONF
chroot "$root" systemctl -q enable systemd-networkd.service
chroot "$root" systemctl -q disable systemd-networkd-wait-online.service

# Remote administration, by key.
mkdir -p -m 700 "$root/root/.ssh"
chroot "$root" ssh-keygen -q -t ed25519 -N '' -C administrator -f /root/.ssh/id_ed25519
mv "$root/root/.ssh/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
# No name server answers in a small network: do not wait for one before every login.
echo 'UseDNS no' >"$etc/ssh/sshd_config.d/lan.conf"

# PostgreSQL serves the local networks.
cluster=$(echo "$etc"/postgresql/*/main)
echo "listen_addresses = '*'" >"$cluster/conf.d/lan.conf"
echo 'host all all 10.0.0.0/8 trust' >>"$cluster/pg_hba.conf"

# Redis serves them too, and appends every write to its log.
sed -i -e 's/^bind .*/bind 0.0.0.0/' -e 's/^protected-mode .*/protected-mode no/' \
  -e 's/^appendonly .*/appendonly yes/' -e 's/^appendfsync .*/appendfsync always/' "$etc/redis/redis.conf"
grep -q '^bind 0.0.0.0$' "$etc/redis/redis.conf"
grep -q '^appendonly yes$' "$etc/redis/redis.conf"

# nginx has no IPv6 to listen on where the network has none.
sed -i '/listen \[::\]/d' "$etc/nginx/sites-available/default"

# A slow machine gets its time: 90 s for a device or a daemon are not much where many guests share a processor.
mkdir -p "$etc/systemd/system.conf.d"
printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n' >"$etc/systemd/system.conf.d/slow.conf"

# Jobs that run at their own times have no place in a measurement.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer logrotate.timer man-db.timer; do
  if [ -e "$root/lib/systemd/system/$unit" ]; then chroot "$root" systemctl -q mask "$unit"; fi
done
