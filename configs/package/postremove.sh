#!/bin/sh
# After a removal. The configuration, /var/lib/qbackup and the user stay.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
