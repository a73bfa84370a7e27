package sim

import (
	"fmt"
	"slices"
	"sync"
)

// Verb says what an effect does.
type Verb string

// The verbs. Write and Sync happen to images and to new files of folders, the
// others to folders only.
const (
	Write   Verb = "write"
	Sync    Verb = "sync"
	Mkdir   Verb = "mkdir"
	Create  Verb = "create"
	Close   Verb = "close"
	Link    Verb = "link"
	Remove  Verb = "remove"
	SyncDir Verb = "syncdir"
	// Replace is a change of a watched folder, all of it at once and durable.
	Replace Verb = "replace"
)

// Effect is one thing that a program did to a device.
type Effect struct {
	Device string
	Verb   Verb
	Path   string // below the folder; "" for an image
	To     string // the new name of a Link
	Offset int64  // of a Write to an image; new files of folders are appended to
	Data   []byte // of a Write
	Tree   Tree   // of a Replace
}

// String shows the effect on one line.
func (e Effect) String() string {
	text := e.Device + ": " + string(e.Verb)
	switch {
	case e.Verb == Write && e.Path == "":
		text += fmt.Sprintf(" %d bytes at %#x", len(e.Data), e.Offset)
	case e.Verb == Write:
		text += fmt.Sprintf(" %d bytes to %s", len(e.Data), e.Path)
	case e.Path != "":
		text += " " + e.Path
	}
	if e.To != "" {
		text += " to " + e.To
	}
	return text
}

// kind of a device.
type kind uint8

const (
	imageDevice kind = iota
	folderDevice
	watchedDevice
)

// device is one thing that keeps or loses its effects independently of others.
type device struct {
	name  string
	kind  kind
	image []byte // what it held at first, durable
	tree  Tree
	root  string // of a watched folder
}

// Log is the effects of a program on several devices, in the order in which they
// happened. Each effect is done before the next one begins.
type Log struct {
	// Fail, when set, is asked before each effect; its error takes the effect's
	// place. Set it before the devices are used.
	Fail func(Effect) error

	mu      sync.Mutex
	devices []*device
	effects []Effect
	seen    map[string]Tree // what was found last in watched folders
}

// NewLog returns an empty log.
func NewLog() *Log { return &Log{seen: map[string]Tree{}} }

// Effects returns what was recorded.
func (l *Log) Effects() []Effect {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.effects)
}

// With returns the log of another program that works on the same devices: one
// that has the effects given. It serves to break an order on purpose.
func (l *Log) With(effects []Effect) *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Log{devices: slices.Clone(l.devices), effects: slices.Clone(effects), seen: map[string]Tree{}}
}

// Devices returns the names of the devices in the order in which they were added,
// without those that lose nothing.
func (l *Log) Devices() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, d := range l.devices {
		if d.kind != watchedDevice {
			names = append(names, d.name)
		}
	}
	return names
}

// Watch adds a folder that is written to without going through the log, and whose
// writer makes every change durable before it goes on. What it holds is looked at
// before each effect, and when Look is called.
func (l *Log) Watch(name, root string) error {
	tree, err := ReadTree(root)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices = append(l.devices, &device{name: name, kind: watchedDevice, tree: tree, root: root})
	l.seen[name] = tree
	return nil
}

// Look notes what has changed in watched folders.
func (l *Log) Look() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.look()
}

func (l *Log) look() error {
	for _, d := range l.devices {
		if d.kind != watchedDevice {
			continue
		}
		tree, err := ReadTree(d.root)
		if err != nil {
			return err
		}
		if !tree.Equal(l.seen[d.name]) {
			l.seen[d.name] = tree
			l.effects = append(l.effects, Effect{Device: d.name, Verb: Replace, Tree: tree})
		}
	}
	return nil
}

func (l *Log) add(d *device) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices = append(l.devices, d)
}

// do records an effect and has it happen. One that fails has not happened.
func (l *Log) do(e Effect, act func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Fail != nil {
		if err := l.Fail(e); err != nil {
			return err
		}
	}
	if err := l.look(); err != nil {
		return err
	}
	if err := act(); err != nil {
		return err
	}
	l.effects = append(l.effects, e)
	return nil
}
