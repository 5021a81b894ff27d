# SPDX-License-Identifier: Apache-2.0
# Of kemari and kemari-witness; $1 is how many of this package there will be. Files that rpm's own triggers would handle,
# too: not every distribution has those.
if [ -e /usr/lib/sysusers.d/kemari.conf ]; then
    systemd-sysusers kemari.conf || :
fi
systemd-tmpfiles --create kemari.conf || :
if [ "$1" -eq 1 ]; then
    # Whether it starts at boot is the distribution's policy: usually not before `systemctl enable`.
    systemctl --no-reload preset kemari-agent.service || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
