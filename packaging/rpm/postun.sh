# SPDX-License-Identifier: Apache-2.0
# Of kemari and kemari-witness. After an upgrade, or where the other package took the place of this one, the new agent
# takes over. Running VMs are never touched. Records, key and descriptions stay: rpm knows no purge.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ -e /usr/sbin/kemari-agent ]; then
        systemctl try-restart kemari-agent.service || :
    fi
fi
