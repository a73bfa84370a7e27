package virt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
)

// checkpoint is what libvirt remembers of a bitmap: which disks have it, and after
// which other checkpoint it was made. Neither makes a bitmap.
type checkpoint struct {
	parent string
	disks  []string // ascending
}

// checkpointXML is the definition of a checkpoint, as far as it is read and written.
type checkpointXML struct {
	XMLName xml.Name `xml:"domaincheckpoint"`
	Name    string   `xml:"name"`
	Parent  *struct {
		Name string `xml:"name"`
	} `xml:"parent"`
	// Created is needed where a checkpoint is defined that exists already.
	Created int64               `xml:"creationTime,omitempty"`
	Disks   []checkpointDiskXML `xml:"disks>disk"`
}

type checkpointDiskXML struct {
	Name       string `xml:"name,attr"`
	Checkpoint string `xml:"checkpoint,attr"`
	Bitmap     string `xml:"bitmap,attr,omitempty"`
}

// has says in a definition that a disk has a bitmap.
const has = "bitmap"

func parseCheckpoint(text string) (checkpoint, error) {
	var x checkpointXML
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return checkpoint{}, fmt.Errorf("read the definition of a checkpoint: %w", err)
	}
	var c checkpoint
	if x.Parent != nil {
		c.parent = x.Parent.Name
	}
	for _, d := range x.Disks {
		if d.Checkpoint == has || d.Checkpoint == "" {
			c.disks = append(c.disks, d.Name)
		}
	}
	slices.Sort(c.disks)
	return c, nil
}

// define writes the definition of a checkpoint of these disks.
func define(name ident.BitmapName, c checkpoint, existing bool) string {
	x := checkpointXML{Name: name.String()}
	if existing {
		x.Created = max(name.Stamp.Time().Unix(), 1)
	}
	if c.parent != "" {
		x.Parent = &struct {
			Name string `xml:"name"`
		}{c.parent}
	}
	for _, target := range c.disks {
		x.Disks = append(x.Disks, checkpointDiskXML{Name: target, Checkpoint: has, Bitmap: x.Name})
	}
	return marshal(x)
}

// marshal writes XML of types that are known to have one.
func marshal(x any) string {
	text, err := xml.Marshal(x)
	if err != nil {
		panic(fmt.Sprintf("virt: %T has no XML: %v", x, err))
	}
	return string(text)
}

// checkpoints are those of one family.
type checkpoints map[ident.BitmapName]checkpoint

// sorted lists the names, so that what is done is done in the same order each time.
func (c checkpoints) sorted() []ident.BitmapName {
	return slices.SortedFunc(maps.Keys(c), func(a, b ident.BitmapName) int { return strings.Compare(a.String(), b.String()) })
}

// listCheckpoints is the command that names the checkpoints of a domain.
func listCheckpoints(uuid string) []string {
	return []string{"checkpoint-list", "--domain", uuid, "--name"}
}

// checkpoints asks libvirt what it remembers of those of ours in its list.
func (m *Machine) checkpoints(ctx context.Context, uuid, list string) (checkpoints, error) {
	var names []ident.BitmapName
	var commands [][]string
	for line := range strings.Lines(list) {
		name, ok := ident.ParseBitmapName(strings.TrimSpace(line))
		if ok && name.Family == m.o.Family {
			names = append(names, name)
			commands = append(commands, []string{"checkpoint-dumpxml", "--domain", uuid, "--checkpointname", name.String(), "--no-domain"})
		}
	}
	found := checkpoints{}
	if len(names) == 0 {
		return found, nil
	}
	definitions, err := m.virsh.all(ctx, commands...)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if found[name], err = parseCheckpoint(definitions[i]); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// held says which checkpoints there should be: one for each of our bitmaps, whatever
// its state, of the disks whose chain has it.
func (r *running) held(family ident.FamilyID) checkpoints {
	all := checkpoints{}
	for i := range r.disks {
		d := &r.disks[i]
		for _, layer := range r.nodes.layers(d) {
			for _, b := range layer.family(family) {
				name, _ := ident.ParseBitmapName(b.Name)
				all.add(name, d.target)
			}
		}
	}
	return all
}

func (c checkpoints) add(name ident.BitmapName, target string) {
	one := c[name]
	if !slices.Contains(one.disks, target) {
		one.disks = append(one.disks, target)
		slices.Sort(one.disks)
	}
	c[name] = one
}

// derive makes libvirt, which remembers the checkpoints of a list, remember those whose
// bitmaps the images hold, and nothing else of the family. No bitmap is touched.
func (m *Machine) derive(ctx context.Context, uuid, list string, held checkpoints) error {
	known, err := m.checkpoints(ctx, uuid, list)
	if err != nil {
		return fmt.Errorf("read the checkpoints: %w", err)
	}
	for _, name := range known.sorted() {
		if _, ok := held[name]; !ok {
			if err := m.forget(ctx, uuid, name); err != nil {
				return fmt.Errorf("forget checkpoint %s, of which no image has a bitmap: %w", name, err)
			}
		}
	}
	for _, name := range held.sorted() {
		was, ok := known[name]
		if ok && slices.Equal(was.disks, held[name].disks) {
			continue
		}
		if err := m.redefine(ctx, uuid, name, checkpoint{parent: was.parent, disks: held[name].disks}); err != nil {
			return fmt.Errorf("define checkpoint %s, of which images have a bitmap: %w", name, err)
		}
	}
	return nil
}

// forget takes a checkpoint out of libvirt's memory and leaves the bitmaps alone.
func (m *Machine) forget(ctx context.Context, uuid string, name ident.BitmapName) error {
	_, err := m.virsh.do(ctx, []string{"checkpoint-delete", "--domain", uuid, "--checkpointname", name.String(), "--metadata"})
	return err
}

// redefine makes libvirt remember a checkpoint with these disks. That the bitmaps are
// sound is not asked for: an unsound one has to be a checkpoint to be deleted.
func (m *Machine) redefine(ctx context.Context, uuid string, name ident.BitmapName, c checkpoint) error {
	_, err := m.virsh.do(ctx, []string{"checkpoint-create", "--domain", uuid, "--xmlfile", fileArg(0), "--redefine"}, define(name, c, true))
	return err
}

// remove deletes the bitmaps of a checkpoint on some disks of a domain that runs. On
// others they stay, and libvirt goes on to remember them.
func (m *Machine) remove(ctx context.Context, uuid string, name ident.BitmapName, is checkpoint, from func(target string) bool) error {
	var gone, stay []string
	for _, target := range is.disks {
		if from(target) {
			gone = append(gone, target)
		} else {
			stay = append(stay, target)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if len(stay) > 0 {
		if err := m.redefine(ctx, uuid, name, checkpoint{parent: is.parent, disks: gone}); err != nil {
			return err
		}
	}
	_, err := m.virsh.do(ctx, []string{"checkpoint-delete", "--domain", uuid, "--checkpointname", name.String()})
	if len(stay) > 0 {
		err = errors.Join(err, m.redefine(ctx, uuid, name, checkpoint{parent: is.parent, disks: stay}))
	}
	if err != nil {
		return fmt.Errorf("delete checkpoint %s: %w", name, err)
	}
	return nil
}
