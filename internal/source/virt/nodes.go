package virt

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
)

// node is one of QEMU's block nodes.
type node struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
	Image  struct {
		SizeBytes int64 `json:"virtual-size"`
		Format    struct {
			Data struct {
				Compat string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
	} `json:"image"`
	Bitmaps []nodeBitmap `json:"dirty-bitmaps"`
}

// nodeBitmap is a bitmap of a node. Those of block jobs have no name.
type nodeBitmap struct {
	Name             string `json:"name"`
	Recording        bool   `json:"recording"`
	Persistent       bool   `json:"persistent"`
	Busy             bool   `json:"busy"`
	Inconsistent     bool   `json:"inconsistent"`
	GranularityBytes int64  `json:"granularity"`
	DirtyBytes       int64  `json:"count"`
}

// alive tells whether libvirt lets a backup continue from this bitmap.
func (b nodeBitmap) alive() bool { return b.Recording && b.Persistent && !b.Inconsistent }

// version is that of the image's format: 2 or 3, 0 for raw.
func (n *node) version() int {
	switch {
	case n.Driver != formatQcow2:
		return 0
	case n.Image.Format.Data.Compat == "0.10":
		return 2
	}
	return 3
}

// nodes are all that QEMU has.
type nodes []node

// queries are all that QEMU's monitor is ever asked. None of them changes anything.
const (
	queryNodes    = `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`
	queryVersion  = `{"execute":"query-version"}`
	queryChardevs = `{"execute":"query-chardev"}`
)

// ask is the command that puts a query to QEMU's monitor.
func ask(uuid, query string) []string {
	return []string{"qemu-monitor-command", "--domain", uuid, "--cmd", query}
}

// parseAnswer reads what QEMU answers. libvirt passes errors on as they are.
func parseAnswer(text string, result any) error {
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Text string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return fmt.Errorf("read QEMU's answer: %w", err)
	}
	if answer.Error != nil {
		return &commandError{command: "qemu-monitor-command", text: answer.Error.Text}
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("read QEMU's answer: %w", err)
	}
	return nil
}

// top finds the node of a disk's own image: by libvirt's number, which is a part of
// the name, or else by the file.
func (n nodes) top(d *disk) *node {
	want := formatQcow2
	if d.raw() {
		want = formatRaw
	}
	for i := range n {
		if d.index > 0 && n[i].Name == fmt.Sprintf("libvirt-%d-format", d.index) && n[i].Driver == want {
			return &n[i]
		}
	}
	for i := range n {
		if n[i].File == d.path && n[i].Driver == want {
			return &n[i]
		}
	}
	if !d.raw() {
		return nil
	}
	// A raw disk may have no node above that of its file.
	for i := range n {
		if n[i].File == d.path && (n[i].Driver == "file" || n[i].Driver == "host_device") {
			return &n[i]
		}
	}
	return nil
}

// layers finds the nodes of a disk's qcow2 images, the top first.
func (n nodes) layers(d *disk) []*node {
	var list []*node
	if top := n.top(d); top != nil && top.Driver == formatQcow2 {
		list = append(list, top)
	}
	for _, path := range d.chain {
		for i := range n {
			if n[i].Driver == formatQcow2 && n[i].File == path {
				list = append(list, &n[i])
				break
			}
		}
	}
	return list
}

// family lists the bitmaps of a family in a node, by name.
func (n *node) family(family ident.FamilyID) []nodeBitmap {
	var list []nodeBitmap
	for _, b := range n.Bitmaps {
		if ours(b.Name, family) {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b nodeBitmap) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// ours tells whether a name is one that runs of this family give.
func ours(name string, family ident.FamilyID) bool {
	n, ok := ident.ParseBitmapName(name)
	return ok && n.Family == family
}

// monitorFolder finds the folder in which libvirt keeps this QEMU's sockets: QEMU may
// make one there whatever confines it.
func monitorFolder(chardevs []chardev) string {
	for _, c := range chardevs {
		path, ok := strings.CutPrefix(c.File, "unix:")
		if path, _, _ = strings.Cut(path, ",server"); ok && c.Label == "charmonitor" && strings.HasPrefix(path, "/") {
			return path[:strings.LastIndexByte(path, '/')]
		}
	}
	return ""
}

type chardev struct {
	Label string `json:"label"`
	File  string `json:"filename"`
}

// version is that of QEMU.
type version struct {
	QEMU struct {
		Major, Minor, Micro int
	} `json:"qemu"`
}

func (v version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
}
