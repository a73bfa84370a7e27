package linuxguest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Boot makes what a machine needs that is not started by Start, such as a domain of
// libvirt, to run this Linux: a kernel, an initramfs in a folder, and the kernel's
// arguments. Of config only Writes and NoAgent count. The machine has to have the
// disks, with the serial numbers d0, d1 and so on, two serial ports for the console
// and what is announced, and the agent's port.
func Boot(t testing.TB, folder string, config Config) (kernel, initramfs, arguments string) {
	t.Helper()
	image := buildImage(t, config)
	initramfs = filepath.Join(folder, "initramfs")
	if err := os.WriteFile(initramfs, image.initramfs, 0o600); err != nil {
		t.Fatal(err)
	}
	return image.kernel, initramfs, kernelSettings
}

// Ready tells whether a console says that all disks are mounted, their writers run,
// and the guest agent was started, and which trouble it tells of.
func Ready(console string) (ready bool, troubles []string) {
	return strings.Contains(console, "linuxguest: ready"), trouble.FindAllString(console, -1)
}
