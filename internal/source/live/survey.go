package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// found is one disk as QEMU has it.
type found struct {
	evidence source.DiskEvidence
	node     string // that the point in time is taken of
	// mergeable are those of our bitmaps whose bits can be copied now.
	mergeable []string
	// family are all of ours, and recording those that the guest's writes go to.
	family, recording []string
}

// survey describes the disks of the machine.
func (s *session) survey(ctx context.Context, o Options) ([]found, error) {
	if err := s.checkState(ctx); err != nil {
		return nil, err
	}
	g, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	var disks []found
	for _, r := range g.roots() {
		d, ours := s.describe(g, r, o)
		if ours {
			disks = append(disks, d)
		}
	}
	slices.SortStableFunc(disks, func(a, b found) int { return strings.Compare(a.evidence.Name, b.evidence.Name) })
	if err := checkNames(disks); err != nil {
		return nil, err
	}
	for _, want := range o.Disks {
		if !slices.ContainsFunc(disks, func(d found) bool { return d.evidence.Name == want.Name }) {
			disks = append(disks, found{evidence: source.DiskEvidence{Name: want.Name, Path: want.Path, Err: &source.UsableError{Path: want.Path,
				Err: errors.New("the machine has no disk with this file that its guest may write to"), Hint: "it has: " + paths(g)}}})
		}
	}
	return disks, nil
}

func paths(g *graph) string {
	var list []string
	for _, r := range g.roots() {
		if file := g.file(r.node); file != "" {
			list = append(list, file)
		}
	}
	if len(list) == 0 {
		return "none in a file"
	}
	return strings.Join(list, ", ")
}

// checkState refuses machines whose disks belong to another QEMU, or soon will.
func (s *session) checkState(ctx context.Context) error {
	moving := func(what string) error {
		return &source.UsableError{Path: s.path, Err: fmt.Errorf("the machine is migrating (%s)", what), Hint: "back it up when the migration is done, on the host where it runs then"}
	}
	if s.features.migrate {
		var m struct{ Status string }
		if err := s.do(ctx, "query-migrate", nil, &m); err != nil {
			return err
		}
		if m.Status != "" && m.Status != "none" && m.Status != "completed" && m.Status != "failed" && m.Status != "cancelled" {
			return moving(m.Status)
		}
	}
	if s.features.status {
		var v struct{ Status string }
		if err := s.do(ctx, "query-status", nil, &v); err != nil {
			return err
		}
		switch v.Status {
		case "inmigrate", "finish-migrate", "postmigrate", "restore-vm", "save-vm", "colo":
			return moving(v.Status)
		}
	}
	return nil
}

// describe makes the evidence of one disk, false when it was not asked for.
func (s *session) describe(g *graph, r root, o Options) (found, bool) {
	n := g.nodes[r.node]
	path := s.localPath(g.file(r.node))
	name := s.diskName(g, r, o)
	if name == "" {
		return found{}, false
	}
	d := found{node: r.node}
	e := &d.evidence
	e.Name, e.Path, e.SizeBytes = name, path, n.Image.SizeBytes
	if path == "" {
		e.Path = r.label
	}
	if err := refuse(n, e.Path); err != nil {
		e.Err = err
		return d, true
	}
	if n.Driver == driverQcow2 {
		e.Version = 2
		if n.Image.Specific.Data.Compat != "0.10" {
			e.Version = 3
		}
	}
	e.BitmapsUsable = e.Version == 3
	e.BitmapsPossible = e.Version == 3 && e.SizeBytes > 0
	e.Facts = imageFacts(path, n)
	e.FamilyInLayers = familyLayers(g.chain(r.node), o.Family)
	d.addBitmaps(n, o.Family)
	return d, true
}

// refuse says why a node cannot be backed up at all.
func refuse(n nodeInfo, path string) error {
	switch {
	case n.Encrypted:
		return &source.UsableError{Path: path, Err: errors.New("the image is encrypted, and would be stored in the clear"), Hint: "leave the disk out by naming the others"}
	case n.Image.SizeBytes%512 != 0:
		return &source.UsableError{Path: path, Err: fmt.Errorf("its size of %d bytes is no multiple of 512", n.Image.SizeBytes), Hint: "resize it"}
	case n.Driver == driverQcow2 || n.Driver == driverRaw || n.Image.Specific.Type == "" || n.Image.Specific.Type == "file":
		return nil
	}
	return &source.UsableError{Path: path, Err: fmt.Errorf("its format %s is not supported", n.Driver), Hint: "convert it to qcow2 with qemu-img"}
}

// diskName is what the operator calls the disk, or what its file suggests; empty:
// the operator named others. An external snapshot puts another file on top of a disk,
// and it is the same disk: it may be named by any file of its chain, and is called
// after the lowest that has bitmaps of the machine.
func (s *session) diskName(g *graph, r root, o Options) string {
	var files []string
	named := ""
	for _, n := range g.chain(r.node) {
		path := s.localPath(g.file(n.Name))
		if path == "" {
			continue
		}
		files = append(files, path)
		if hasFamily(n, o.Family) {
			named = path
		}
	}
	for _, path := range files {
		for _, d := range o.Disks {
			if sameFile(d.Path, path) {
				return d.Name
			}
		}
	}
	if len(o.Disks) > 0 {
		return ""
	}
	if named == "" && len(files) > 0 {
		named = files[0]
	}
	name := strings.TrimSuffix(filepath.Base(named), filepath.Ext(named))
	if named == "" || ident.CheckDiskName(name) != nil {
		return printable(r.label)
	}
	return name
}

// printable makes a name of what a machine calls a disk.
func printable(label string) string {
	return strings.Map(func(r rune) rune {
		if ident.CheckDiskName("a"+string(r)) != nil {
			return '-'
		}
		return r
	}, strings.Trim(label, "/#"))
}

func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// checkNames makes sure that every disk has a name and a file of its own.
func checkNames(disks []found) error {
	for i, d := range disks {
		if err := ident.CheckDiskName(d.evidence.Name); err != nil {
			return &source.UsableError{Path: d.evidence.Path, Err: err, Hint: "give the disk a name: NAME=IMAGE"}
		}
		for _, other := range disks[:i] {
			if other.evidence.Name == d.evidence.Name {
				return &source.UsableError{Path: d.evidence.Path, Err: fmt.Errorf("two disks are called %s; the other is %s", d.evidence.Name, other.evidence.Path),
					Hint: "name them: NAME=IMAGE"}
			}
			if sameFile(other.evidence.Path, d.evidence.Path) {
				return &source.UsableError{Path: d.evidence.Path, Err: errors.New("the machine has two disks on this file"), Hint: "take one of them out of the machine"}
			}
		}
	}
	return nil
}

// localPath makes a file name of QEMU's absolute.
func (s *session) localPath(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	folder, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", s.monitor.PeerPID()))
	if err != nil {
		return ""
	}
	return folder + "/" + name
}

// imageFacts is what the files show, or, where they cannot be seen from here, what
// QEMU says.
func imageFacts(path string, n nodeInfo) format.ImageFacts {
	raw := n.Driver != driverQcow2
	if path != "" {
		if f, err := facts.Running(path, raw); err == nil {
			return f
		}
	}
	f := format.ImageFacts{Path: path, Format: facts.FormatRaw, ClusterBytes: n.Image.Cluster}
	if !raw {
		f.Format = facts.FormatQcow2
	}
	f.Chain = []format.LayerFacts{{Role: facts.RoleTop, Path: path, Format: f.Format, DiskBytes: n.Image.SizeBytes}}
	return f
}

func familyLayers(chain []nodeInfo, family ident.FamilyID) int {
	layers := 0
	for _, n := range chain {
		if hasFamily(n, family) {
			layers++
		}
	}
	return layers
}

func hasFamily(n nodeInfo, family ident.FamilyID) bool {
	return slices.ContainsFunc(n.Bitmaps, func(b bitmapInfo) bool {
		name, ok := ident.ParseBitmapName(b.Name)
		return ok && name.Family == family
	})
}

// addBitmaps tells of the bitmaps of a disk. Those without a name are QEMU's own.
func (d *found) addBitmaps(n nodeInfo, family ident.FamilyID) {
	e := &d.evidence
	for _, b := range n.Bitmaps {
		if b.Name == "" {
			continue
		}
		one := source.BitmapEvidence{Name: b.Name, Recording: b.Recording && !b.Inconsistent, InUse: b.Inconsistent, GranularityBytes: b.Granularity, DirtyBytes: -1}
		name, ok := ident.ParseBitmapName(b.Name)
		if ok && name.Family == family {
			one.Family, one.Ours = name, true
			d.family = append(d.family, b.Name)
			if b.Busy {
				one.Problem = "busy: an export or a job of somebody else uses it"
			}
			if one.Usable() {
				one.DirtyBytes = b.DirtyBytes
				d.mergeable = append(d.mergeable, b.Name)
			}
			if one.Recording {
				d.recording = append(d.recording, b.Name)
			}
			if e.Facts.GranularityBytes == 0 {
				e.Facts.GranularityBytes = b.Granularity
			}
		}
		e.Bitmaps = append(e.Bitmaps, one)
	}
	if e.Facts.GranularityBytes == 0 && e.BitmapsPossible {
		e.Facts.GranularityBytes = newGranularityBytes
	}
}

// among finds the disk in a later survey, in which it must be as it was.
func (d found) among(now []found) (found, error) {
	what := "the machine has it no longer"
	at := slices.IndexFunc(now, func(f found) bool { return f.evidence.Name == d.evidence.Name })
	if at >= 0 {
		what = d.difference(now[at])
	}
	if what != "" {
		return found{}, &source.UsableError{Path: d.evidence.Path, Err: fmt.Errorf("%w: %s", source.ErrChanged, what), Hint: "run the backup again"}
	}
	return now[at], nil
}

// difference says in a few words what is no longer as it was; empty: nothing that
// the choice of a base rests on. That bits are added is what a guest does.
func (d found) difference(now found) string {
	was, is := d.evidence, now.evidence
	switch {
	case is.Err != nil:
		return is.Err.Error()
	case was.SizeBytes != is.SizeBytes:
		return fmt.Sprintf("it has %d bytes instead of %d", is.SizeBytes, was.SizeBytes)
	case was.Path != is.Path || d.node != now.node:
		return "another image lies on top of it"
	case !slices.Equal(d.family, now.family) || !slices.Equal(d.mergeable, now.mergeable) || !slices.Equal(d.recording, now.recording):
		return "its bitmaps have changed"
	case len(was.Facts.Chain) != len(is.Facts.Chain):
		return "its chain of backing files has changed"
	}
	return ""
}
