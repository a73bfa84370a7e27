package virt

import (
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

const (
	ourBitmap  = "qb1-01020304-01h3g0000000000000000000g0-00000000000000000000000000"
	ourBitmap2 = "qb1-01020304-01h3g0000000000000000000h0-00000000000000000000000000"
)

// answer is what QEMU 7.2 says under libvirt 9, shortened: during a backup, with an
// overlay on top of one of the disks.
const answer = `{"return":[
{"node-name":"#block429","drv":"copy-before-write","file":"/vm/top.qcow2","image":{"virtual-size":67108864,"format":"copy-before-write"},"dirty-bitmaps":[{"recording":false,"persistent":false,"busy":false,"granularity":65536,"count":0}]},
{"node-name":"libvirt-5-format","drv":"qcow2","file":"/vm/top.qcow2","image":{"virtual-size":67108864,"format-specific":{"type":"qcow2","data":{"compat":"1.1"}}},"dirty-bitmaps":[
 {"name":"theirs","recording":true,"persistent":true,"busy":false,"granularity":65536,"count":65536},
 {"name":"` + ourBitmap2 + `","recording":true,"persistent":true,"busy":false,"granularity":65536,"count":131072},
 {"name":"` + ourBitmap + `","recording":false,"persistent":true,"busy":false,"inconsistent":true,"granularity":65536,"count":0}]},
{"node-name":"libvirt-6-format","drv":"qcow2","file":"/vm/middle.qcow2","image":{"virtual-size":67108864},"dirty-bitmaps":[{"name":"` + ourBitmap + `","recording":true,"persistent":true,"granularity":65536,"count":1}]},
{"node-name":"libvirt-4-storage","drv":"host_device","file":"/dev/vg0/data","image":{"virtual-size":1048576}},
{"node-name":"libvirt-9-format","drv":"raw","file":"/vm/untold","image":{"virtual-size":512}},
{"node-name":"libvirt-8-format","drv":"qcow2","file":"/vm/old.qcow2","image":{"virtual-size":512,"format-specific":{"data":{"compat":"0.10"}}}}
],"id":"libvirt-9"}`

func TestNodesOfDisksAreFound(t *testing.T) {
	var n nodes
	if err := parseAnswer(answer, &n); err != nil {
		t.Fatal(err)
	}
	d, err := parseDomain(definition)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"libvirt-5-format", "libvirt-4-storage", "libvirt-9-format"} {
		if top := n.top(&d.disks[i]); top == nil || top.Name != want {
			t.Errorf("disk %s: %+v", d.disks[i].target, top)
		}
	}
	// Without libvirt's number the file tells.
	if top := n.top(&disk{path: "/vm/top.qcow2", format: "qcow2"}); top == nil || top.Name != "libvirt-5-format" || top.version() != 3 {
		t.Errorf("by file: %+v", top)
	}
	if top := n.top(&disk{path: "/vm/old.qcow2", format: "qcow2"}); top == nil || top.version() != 2 {
		t.Errorf("version 2: %+v", top)
	}
	if top := n.top(&disk{path: "/vm/none", format: "qcow2", index: 77}); top != nil {
		t.Errorf("a disk that QEMU has not: %+v", top)
	}
	r := &running{domain: &domain{disks: d.disks[:1]}, nodes: n}
	held := r.held(ident.FamilyID{1, 2, 3, 4})
	if names := held.sorted(); len(names) != 2 || names[0].String() != ourBitmap || strings.Join(held[names[0]].disks, " ") != "vda" {
		t.Errorf("held %+v", held)
	}
}

func TestEvidenceSaysWhyABitmapCannotBeUsed(t *testing.T) {
	family := ident.FamilyID{1, 2, 3, 4}
	sound := nodeBitmap{Name: ourBitmap, Recording: true, Persistent: true, GranularityBytes: 65536, DirtyBytes: 7}
	if e := bitmapEvidence(sound, family); !e.Usable() || !e.Recording || e.DirtyBytes != 7 || e.Family.String() != ourBitmap {
		t.Errorf("%+v", e)
	}
	for problem, change := range map[string]func(*nodeBitmap){
		problemMemory: func(b *nodeBitmap) { b.Persistent = false },
		problemBusy:   func(b *nodeBitmap) { b.Busy = true },
		problemFrozen: func(b *nodeBitmap) { b.Recording = false },
	} {
		b := sound
		change(&b)
		if e := bitmapEvidence(b, family); e.Usable() || e.Problem != problem || e.DirtyBytes != -1 {
			t.Errorf("%+v", e)
		}
	}
	b := sound
	b.Inconsistent, b.Recording = true, false
	if e := bitmapEvidence(b, family); e.Usable() || !e.InUse || !e.Ours {
		t.Errorf("%+v", e)
	}
	if e := bitmapEvidence(sound, ident.FamilyID{9}); e.Ours || e.Usable() {
		t.Errorf("another family's: %+v", e)
	}
}

func TestQEMUsErrorsAreErrors(t *testing.T) {
	var n nodes
	if err := parseAnswer(`{"error":{"class":"GenericError","desc":"no such thing"}}`, &n); !says(err, "no such thing") {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"", "{}", "[]", `{"return":7}`} {
		if err := parseAnswer(bad, &n); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestTheFolderOfTheMonitorIsFound(t *testing.T) {
	var list []chardev
	if err := parseAnswer(`{"return":[{"filename":"pty:/dev/pts/1","label":"charserial0"},{"frontend-open":true,"filename":"unix:/var/lib/libvirt/qemu/domain-2-Web 01/monitor.sock,server=on","label":"charmonitor"}]}`, &list); err != nil {
		t.Fatal(err)
	}
	if got := monitorFolder(list); got != "/var/lib/libvirt/qemu/domain-2-Web 01" {
		t.Errorf("%q", got)
	}
	if got := monitorFolder(list[:1]); got != "" {
		t.Errorf("%q", got)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(answer)
	f.Fuzz(func(t *testing.T, text string) {
		var n nodes
		if parseAnswer(text, &n) != nil {
			return
		}
		r := &running{domain: &domain{disks: []disk{{target: "vda", path: "/vm/top.qcow2", format: "qcow2", chain: []string{"/vm/middle.qcow2"}}}}, nodes: n}
		for name := range r.held(ident.FamilyID{1, 2, 3, 4}) {
			if name.Family != (ident.FamilyID{1, 2, 3, 4}) {
				t.Fatalf("%v is not ours", name)
			}
		}
	})
}
