package virt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// domain is what a definition of libvirt says, as far as it matters here. Of a
// domain that runs it is what runs.
type domain struct {
	id    int // 0: it does not run
	state domainState
	uuid  string
	name  string
	owner int    // the user that QEMU runs as, -1 when that is not said
	nvram string // the file, empty: none
	disks []disk
	// definition is what would be defined to have this domain again, without secrets.
	definition string
}

// disk is a disk that the guest may write to.
type disk struct {
	target   string // its name in the domain, such as vda
	path     string
	format   string // of the image, as libvirt was told
	index    int    // libvirt's number of the top image, 0 when it does not run
	iothread bool
	// pool and volume name the image where libvirt keeps the path to itself.
	pool, volume string
	// chain are the files below the top image, as far as libvirt knows.
	chain []string
	err   error // why it cannot be backed up
}

// raw tells whether the image has no format of its own. libvirt takes an image of
// which it is told nothing for raw: it does not guess.
func (d *disk) raw() bool { return d.format == "" || d.format == formatRaw }

// Formats of images that can be backed up.
const (
	formatRaw   = "raw"
	formatQcow2 = "qcow2"
)

// The XML of a domain, of which only this is read.
type domainXML struct {
	XMLName xml.Name  `xml:"domain"`
	ID      string    `xml:"id,attr"`
	Name    string    `xml:"name"`
	UUID    string    `xml:"uuid"`
	NVRAM   sourceXML `xml:"os>nvram"`
	Disks   []diskXML `xml:"devices>disk"`
	// Controllers may have an I/O thread for all disks on them.
	Controllers []struct {
		Type   string    `xml:"type,attr"`
		Driver driverXML `xml:"driver"`
	} `xml:"devices>controller"`
	Labels []seclabelXML `xml:"seclabel"`
}

type seclabelXML struct {
	Model string `xml:"model,attr"`
	Label string `xml:"label"`
}

type diskXML struct {
	Type   string    `xml:"type,attr"`
	Device string    `xml:"device,attr"`
	Driver driverXML `xml:"driver"`
	Source sourceXML `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	ReadOnly  *struct{}   `xml:"readonly"`
	Transient *struct{}   `xml:"transient"`
	Backing   *backingXML `xml:"backingStore"`
}

type driverXML struct {
	Type      string    `xml:"type,attr"`
	IOThread  string    `xml:"iothread,attr"`
	IOThreads *struct{} `xml:"iothreads"`
}

// threaded tells whether the guest's requests are served beside QEMU's main loop.
func (d driverXML) threaded() bool { return d.IOThread != "" || d.IOThreads != nil }

type sourceXML struct {
	File   string `xml:"file,attr"`
	Dev    string `xml:"dev,attr"`
	Pool   string `xml:"pool,attr"`
	Volume string `xml:"volume,attr"`
	Index  string `xml:"index,attr"`
	Text   string `xml:",chardata"`
	// Nested is where NVRAM has its source when it has a type.
	Nested *sourceXML `xml:"source"`
}

func (s sourceXML) path() string {
	if s.File != "" {
		return s.File
	}
	return s.Dev
}

type backingXML struct {
	Source  sourceXML   `xml:"source"`
	Backing *backingXML `xml:"backingStore"`
}

// maxDisks bounds what a definition can ask for.
const maxDisks = 1000

// parseDomain reads a definition.
func parseDomain(text string) (*domain, error) {
	var x domainXML
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return nil, fmt.Errorf("read the domain's definition: %w", err)
	}
	if x.UUID == "" || x.Name == "" || len(x.Disks) > maxDisks {
		return nil, errors.New("read the domain's definition: it has no name, no UUID, or too many disks")
	}
	d := &domain{uuid: x.UUID, name: x.Name, owner: -1, nvram: x.NVRAM.nvramPath()}
	if x.ID != "" {
		id, err := strconv.Atoi(x.ID)
		if err != nil || id < 0 {
			return nil, fmt.Errorf("read the domain's definition: id %q is no number", x.ID)
		}
		d.id = id
	}
	for _, l := range x.Labels {
		if l.Model == "dac" {
			d.owner = ownerOf(l.Label)
		}
	}
	threaded := map[string]bool{}
	for _, c := range x.Controllers {
		threaded[c.Type] = threaded[c.Type] || c.Driver.threaded()
	}
	for _, one := range x.Disks {
		if !one.writable() {
			continue
		}
		disk := one.disk()
		disk.iothread = disk.iothread || threaded[one.Target.Bus]
		d.disks = append(d.disks, disk)
	}
	return d, nil
}

// nvramPath is the file of the firmware's variables: the element's text, or, where
// libvirt knows more kinds, in a source below it.
func (s sourceXML) nvramPath() string {
	if s.Nested != nil {
		return s.Nested.path()
	}
	return strings.TrimSpace(s.Text)
}

// ownerOf reads the user of a label such as "+64055:+64055".
func ownerOf(label string) int {
	user, _, _ := strings.Cut(strings.TrimSpace(label), ":")
	id, err := strconv.Atoi(strings.TrimPrefix(user, "+"))
	if err != nil || id < 0 {
		return -1
	}
	return id
}

// writable tells whether a device holds what the guest has written and keeps: no
// CD-ROM and no floppy, nothing that is read-only or thrown away at the end.
func (x *diskXML) writable() bool {
	switch {
	case x.Device != "" && x.Device != "disk" && x.Device != "lun":
		return false
	case x.ReadOnly != nil, x.Transient != nil:
		return false
	}
	return true
}

// disk says what can be done with it.
func (x *diskXML) disk() disk {
	d := disk{target: x.Target.Dev, path: x.Source.path(), format: x.Driver.Type, iothread: x.Driver.threaded()}
	d.index, _ = strconv.Atoi(x.Source.Index)
	for b := x.Backing; b != nil && len(d.chain) < maxDisks; b = b.Backing {
		if path := b.Source.path(); path != "" {
			d.chain = append(d.chain, path)
		}
	}
	switch {
	case x.Device == "lun":
		d.err = unusable("disk "+d.target, fmt.Errorf("%w: the guest talks to the device itself (device='lun')", ErrDisk), "back it up inside the guest")
	case x.Type == "volume" && x.Source.Pool != "" && x.Source.Volume != "":
		d.pool, d.volume = x.Source.Pool, x.Source.Volume
	case x.Type != "file" && x.Type != "block" || d.path == "":
		d.err = unusable("disk "+d.target, fmt.Errorf("%w: it is of type %q and has no file on this host", ErrDisk, x.Type), "back it up inside the guest, or where its data lies")
	}
	if d.err == nil && !d.raw() && d.format != formatQcow2 {
		d.err = unusable("disk "+d.target, fmt.Errorf("%w: its format is %s", ErrDisk, d.format), "convert it to qcow2 with qemu-img convert")
	}
	return d
}

// domainState is what libvirt calls the state of a domain, and why.
type domainState struct{ state, reason string }

// parseState reads "shut off (shutdown)".
func parseState(text string) domainState {
	text = strings.TrimSpace(text)
	state, reason, _ := strings.Cut(text, " (")
	return domainState{state: state, reason: strings.TrimSuffix(reason, ")")}
}

func (s domainState) String() string {
	if s.reason == "" {
		return s.state
	}
	return s.state + " (" + s.reason + ")"
}

// runs tells whether a QEMU has the disks open.
func (s domainState) runs() bool { return s.state != "shut off" }

// check refuses states in which the disks are no point in time that somebody could
// want, or belong to another host.
func (s domainState) check(what string) error {
	refuse := func(hint string) error {
		return unusable(what, fmt.Errorf("%w: it is %s", ErrDomain, s), hint)
	}
	switch s.state {
	case "running", "idle", "pmsuspended":
		return nil
	case "paused":
		// One that migrates shows by its job: libvirt also gives this reason for a
		// domain that was saved while it was paused.
		if s.reason == "starting up" {
			return refuse("run the backup again")
		}
		return nil
	case "shut off":
		if s.reason == "migrated" {
			return refuse("it runs on another host now: back it up there")
		}
		return nil
	case "crashed":
		return refuse("restart it, or end it with `virsh destroy`; then its files are backed up")
	case "in shutdown":
		return refuse("run the backup again when it is off")
	}
	return refuse("")
}

// paused tells whether the guest stands still already.
func (s domainState) paused() bool { return s.state == "paused" || s.state == "pmsuspended" }
