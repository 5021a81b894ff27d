# SPDX-License-Identifier: Apache-2.0
# Of kemari and kemari-witness; $1 is how many of this package will be left. As deb/prerm: not while a VM runs here.
if [ "$1" -eq 0 ] && [ -d /run/systemd/system ]; then
    running=$(systemctl list-units --plain --no-legend --state=active 'kemari-vm@*.service')
    if [ -n "$running" ]; then
        echo "kemari: replicas run on this node; stop them or put the node into standby first:" >&2
        echo "$running" >&2
        exit 1
    fi
fi
# Both are here while one takes the place of the other; then the agent stays.
if [ "$1" -eq 0 ] && ! { [ -d /usr/share/licenses/kemari ] && [ -d /usr/share/licenses/kemari-witness ]; }; then
    systemctl --no-reload disable --now kemari-agent.service || :
fi
