package virt

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/source"
)

// definition is what libvirt 9 says of a domain that runs, shortened.
const definition = `<domain type='kvm' id='3'>
  <name>Web 01</name>
  <uuid>1b00a07e-7827-4b0c-a714-45ab3b98f5a6</uuid>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/Web 01_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' iothread='1'/>
      <source file='/vm/top.qcow2' index='5'/>
      <backingStore type='file' index='6'>
        <format type='qcow2'/>
        <source file='/vm/middle.qcow2'/>
        <backingStore type='block' index='7'>
          <format type='raw'/>
          <source dev='/dev/vg0/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg0/data' index='4'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='disk'><source file='/vm/untold'/><target dev='hda' bus='ide'/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='default' volume='a b'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/sdb'/><target dev='sdb' bus='scsi'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='/vm/x.vmdk'/><target dev='vdd' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm/ro'/><target dev='vde' bus='virtio'/><readonly/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm/t'/><target dev='vdf' bus='virtio'/><transient/></disk>
    <disk type='file' device='cdrom'><target dev='hdb' bus='ide'/></disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <controller type='scsi' index='0' model='virtio-scsi'><driver iothread='2'/></controller>
    <controller type='ide' index='0'/>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1b00</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>
</domain>`

func TestADefinitionIsRead(t *testing.T) {
	d, err := parseDomain(definition)
	if err != nil {
		t.Fatal(err)
	}
	if d.name != "Web 01" || d.uuid != "1b00a07e-7827-4b0c-a714-45ab3b98f5a6" || d.id != 3 || d.owner != 64055 || d.nvram != "/var/lib/libvirt/qemu/nvram/Web 01_VARS.fd" {
		t.Errorf("%+v", d)
	}
	want := []disk{
		{target: "vda", path: "/vm/top.qcow2", format: "qcow2", index: 5, iothread: true, chain: []string{"/vm/middle.qcow2", "/dev/vg0/base"}},
		{target: "sda", path: "/dev/vg0/data", format: "raw", index: 4, iothread: true},
		{target: "hda", path: "/vm/untold"},
		{target: "vdb", format: "qcow2", pool: "default", volume: "a b"},
	}
	if got := d.disks[:len(want)]; !reflect.DeepEqual(got, want) {
		t.Errorf("disks\n%+v, want\n%+v", got, want)
	}
	for i, text := range []string{"has no file on this host", "inside the guest", "format is vmdk"} {
		if err := d.disks[len(want)+i].err; !errors.Is(err, ErrDisk) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", d.disks[len(want)+i].target, err)
		}
	}
	if len(d.disks) != len(want)+3 {
		t.Errorf("%d disks", len(d.disks))
	}
}

func TestADefinitionOfADomainThatIsOffHasNoID(t *testing.T) {
	text := strings.Replace(definition, " id='3'", "", 1)
	text = strings.Replace(text, "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/Web 01_VARS.fd</nvram>", "<nvram type='file'><source file='/n.fd'/></nvram>", 1)
	d, err := parseDomain(text)
	if err != nil || d.id != 0 || d.nvram != "/n.fd" {
		t.Errorf("%+v, %v", d, err)
	}
	for _, bad := range []string{"", "<domain/>", "<network><name>x</name><uuid>y</uuid></network>", strings.Replace(definition, "id='3'", "id='x'", 1),
		"<domain><name>x</name><uuid>y</uuid><devices>" + strings.Repeat("<disk/>", maxDisks+1) + "</devices></domain>"} {
		if d, err := parseDomain(bad); err == nil {
			t.Errorf("%.80q gave %+v", bad, d)
		}
	}
}

func FuzzParseDomain(f *testing.F) {
	f.Add(definition)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDomain(text)
		if err != nil {
			return
		}
		for _, one := range d.disks {
			if len(one.chain) > maxDisks || one.err == nil && one.path == "" && one.volume == "" {
				t.Fatalf("disk %+v", one)
			}
		}
	})
}

func TestStatesThatCannotBeBackedUpSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		text      string
		runs      bool
		wantError string
	}{
		{"running (booted)\n\n", true, ""}, {"paused (user)", true, ""}, {"pmsuspended (unknown)", true, ""}, {"paused (I/O error)", true, ""},
		{"shut off (shutdown)", false, ""}, {"shut off (crashed)", false, ""}, {"shut off (saved)", false, ""},
		{"shut off (migrated)", false, "another host"}, {"paused (migrating)", true, ""}, {"paused (starting up)", true, "again"},
		{"crashed (panicked)", true, "virsh destroy"}, {"in shutdown (user)", true, "when it is off"}, {"no state", true, "no state"},
	} {
		s := parseState(c.text)
		err := s.check("domain x")
		if s.runs() != c.runs || (err == nil) != (c.wantError == "") {
			t.Errorf("%q: runs %v, %v", c.text, s.runs(), err)
		}
		if err != nil && (!errors.Is(err, ErrDomain) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), c.wantError)) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func TestWhatLibvirtSaysIsExplained(t *testing.T) {
	for text, want := range map[string]error{
		"failed to connect to the hypervisor: Failed to connect socket to '/run/libvirt/libvirt-sock': No such file or directory": source.ErrMonitor,
		"failed to get domain 'web'":                                                                                                    ErrDomain,
		"unknown command: 'backup-begin'":                                                                                               ErrTooOld,
		"Operation not supported: incremental backup is not supported yet":                                                              ErrTooOld,
		"Timed out during operation: cannot acquire state change lock (held by monitor=x)":                                              ErrBusy,
		"block copy still active: disk 'vda' already in active block job":                                                               ErrBusy,
		"internal error: unable to execute QEMU command 'nbd-server-start': NBD server already running":                                 ErrBusy,
		"Requested operation is not valid: domain is not running":                                                                       source.ErrGone,
		"internal error: process exited while connecting to monitor: Could not write to '/scratch/x.qcow2': No space left on device":    source.ErrScratch,
		"internal error: unable to execute QEMU command 'nbd-server-start': Failed to bind socket to /run/q/qb1.nbd: Permission denied": source.ErrUnusable,
		"something else": source.ErrUnusable,
	} {
		err := explain("domain web", fmt.Errorf("set the point in time: %w", &commandError{"backup-begin", text}))
		if !errors.Is(err, want) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q became %v", text, err)
		}
	}
	other := errors.New("other")
	if err := explain("domain web", other); err != other {
		t.Errorf("%v", err)
	}
}
