#!/bin/busybox sh
# Process 1 of the guest. The console says what goes wrong; the second serial port carries one line for each file
# that is finished: the disk's name and the file's number.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
. /etc/settings # writes, agent
while read -r module; do insmod "$module"; done </etc/modules

fail() {
	echo "linuxguest: failed: $*"
	sync
	poweroff -f
	sleep 60
}

# Everything that may end the machine writes a word into this pipe.
mkfifo /run/power
for input in /sys/class/input/event*; do
	if [ "$(cat "$input/device/name")" = "Power Button" ]; then
		(dd if="/dev/input/${input##*/}" of=/dev/null bs=24 count=1 2>/dev/null; echo button >/run/power) &
		button=yes
	fi
done
[ -n "$button" ] || fail "there is no power button"

slots=40        # files per disk
remove_after=20 # CheckDisk counts on it: younger files are there

# write_files DISK: keeps writing in the current folder, until told to stop or until there are enough. A slot is a file and its
# record, FILE.sum with number, bytes and SHA-256. The record goes first and for good, before its file is touched, and comes last.
write_files() {
	number=0
	for record in *.sum; do
		[ -e "$record" ] || continue
		read -r last rest <"$record" && [ -n "$rest" ] || return 1
		[ "$last" -le "$number" ] || number=$last
	done
	left=$writes
	while [ ! -e /run/stop ] && [ "$left" != 0 ]; do
		number=$((number + 1))
		file=$((number % slots))
		case $((number % 10)) in
		0) most=2097152 ;;
		1 | 2) most=262144 ;;
		*) most=32768 ;;
		esac
		bytes=$(((RANDOM * 32768 + RANDOM) % most + 1))
		rm -f $file.sum || return 1
		if [ $((number % 3)) = 0 ]; then
			rm -f $file || return 1
		elif [ -e $file ]; then
			# It is overwritten in place, so the record must be gone on the disk, too.
			sync . && truncate -s $bytes $file || return 1
		fi
		dd if=/dev/urandom of=$file bs=$bytes count=1 iflag=fullblock conv=notrunc,fsync 2>/dev/null || return 1
		sum=$(sha256sum <$file) || return 1
		echo "$number $bytes ${sum%% *}" >$file.new || return 1
		sync $file.new && mv $file.new $file.sum && sync . || return 1
		echo "$1 $number" >/dev/ttyS1
		if [ $((number % 4)) = 0 ]; then
			old=$(((number - remove_after) % slots))
			[ $old -lt 0 ] || rm -f $old.sum $old || return 1
		fi
		case $((number % 64)) in
		32) fstrim -l 16777216 . || return 1 ;; # from the start of the disk, where most files are
		0) fstrim . || return 1 ;;
		esac
		left=$((left - 1))
	done
}

# Disks with a serial number d0, d1 and so on have a file system; others are not touched.
writers=
for device in /sys/block/vd*; do
	disk=$(cat "$device/serial" 2>/dev/null)
	case $disk in
	d[0-9]*) ;;
	*) continue ;;
	esac
	mkdir -p "/mnt/$disk"
	# An error of the disk ends the machine, so that no test can overlook it.
	mount -t ext4 -o errors=panic "/dev/${device##*/}" "/mnt/$disk" || fail "disk $disk cannot be mounted"
	mkdir -p "/mnt/$disk/files"
	sync "/mnt/$disk" # from here on every copy has the folder
	(cd "/mnt/$disk/files" && write_files "$disk" || echo "linuxguest: failed: the writer of $disk") &
	writers="$writers $!"
done

if [ "$agent" = yes ]; then
	for port in /sys/class/virtio-ports/*; do
		if [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ]; then
			qemu-ga -m virtio-serial -p "/dev/${port##*/}" -t /run &
			answering=yes
		fi
	done
	[ -n "$answering" ] || fail "there is no port for the agent"
fi
echo "linuxguest: ready"

read -r why </run/power
echo "linuxguest: going down: $why"
touch /run/stop
[ -z "$writers" ] || wait $writers
for folder in /mnt/*; do
	[ ! -d "$folder" ] || umount "$folder" || fail "disk ${folder##*/} cannot be unmounted"
done
echo "linuxguest: off"
poweroff -f
