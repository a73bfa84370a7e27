#!/bin/sh
# Before a removal, not before an upgrade. A backup that runs is waited for, for some minutes, and then cut short, which loses nothing.
set -e
[ "$1" = remove ] || [ "$1" = 0 ] || exit 0
if [ -d /run/systemd/system ]; then
	systemctl disable --now qbackup.service qbackup-run.timer || true
	systemctl stop 'qbackup@*.timer' qbackup-run.service 'qbackup@*.service' || true
fi
