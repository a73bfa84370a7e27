#!/bin/sh
# After an installation or an upgrade. Nothing is enabled or started; a service that runs goes on, and starts the new version
# by itself when no backup runs.
set -e
[ "$1" = configure ] || [ "$1" = 1 ] || [ "$1" = 2 ] || exit 0

if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers qbackup.conf
elif ! getent passwd qbackup >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/qbackup --no-create-home --shell /usr/sbin/nologin qbackup
fi
# To ask libvirt, and to share scratch files with QEMU; which of these groups there are depends on the distribution.
for group in libvirt kvm libvirt-qemu qemu; do
	if getent group "$group" >/dev/null; then
		usermod --append --groups "$group" qbackup
	fi
done
# QEMU passes through it to its scratch files.
install -d -m 0711 -o qbackup -g qbackup /var/lib/qbackup
chgrp qbackup /etc/qbackup
chmod 0750 /etc/qbackup
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ ! -e /etc/qbackup/qbackup.yaml ]; then
	echo "qbackup: write /etc/qbackup/qbackup.yaml (qbackup config sample), then: systemctl enable --now qbackup.service, or qbackup-run.timer"
fi
