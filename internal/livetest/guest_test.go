package livetest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/testtool"
)

const (
	sector = 512
	// discards is the kind of zeros before which a discard goes.
	discards = 0
)

// operation is one write of a guest, as its log has it.
type operation struct {
	disk     int
	off, len int64
	zero     bool
	seed     uint64
	plain    bool // one byte all over, which is what an emulator's monitor can write
	issued   time.Time
	done     time.Time // zero: it had not ended when the log was read
}

// fill gives what the operation leaves in its range.
func (o *operation) fill() []byte {
	if o.plain && !o.zero {
		return bytes.Repeat([]byte{o.pattern()}, int(o.len))
	}
	b := make([]byte, o.len)
	if o.zero {
		return b
	}
	random := rand.NewPCG(o.seed, 1)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	return b
}

func (o *operation) pattern() byte { return byte(o.seed%255) + 1 }

// writer writes to its own part of every disk, one operation after the other. What is
// checked forgets what is long past.
type writer struct {
	first, last int64 // of every disk, in bytes

	mu  sync.Mutex
	log []*operation

	// state is the part of each disk as of the start of the log.
	state [][]byte
}

// guest is the writers of a machine.
type guest struct {
	t       testing.TB
	sizes   []int64
	writers []*writer
	seed    uint64

	stop  chan struct{}
	group sync.WaitGroup
}

// newGuest makes writers that share the disks of a machine among them.
func newGuest(t testing.TB, seed uint64, writers int, sizes ...int64) *guest {
	g := &guest{t: t, sizes: sizes, seed: seed}
	smallest := sizes[0]
	for _, s := range sizes {
		smallest = min(smallest, s)
	}
	part := smallest / int64(writers) / sector * sector
	for i := range writers {
		w := &writer{first: int64(i) * part, last: int64(i+1) * part}
		for range sizes {
			w.state = append(w.state, make([]byte, part))
		}
		g.writers = append(g.writers, w)
	}
	return g
}

// run lets all writers write to the machine until halt.
func (g *guest) run(m *machine) {
	g.stop = make(chan struct{})
	for i, w := range g.writers {
		g.seed++
		random := rand.New(rand.NewPCG(g.seed, uint64(i)))
		g.group.Add(1)
		go func() {
			defer g.group.Done()
			for {
				select {
				case <-g.stop:
					return
				default:
				}
				time.Sleep(time.Duration(random.Int64N(int64(4 * time.Millisecond))))
				if err := w.step(random, m); err != nil {
					select {
					case <-g.stop: // the machine is being ended
					default:
						g.t.Errorf("the guest got an error: %v", err)
					}
					return
				}
			}
		}()
	}
}

// expectEnd lets writers fail from now on: the machine is about to be killed.
func (g *guest) expectEnd() { close(g.stop) }

// wait waits for the writers to end.
func (g *guest) wait() { g.group.Wait() }

func (g *guest) halt() {
	g.expectEnd()
	g.wait()
}

// step does one operation.
func (w *writer) step(random *rand.Rand, m *machine) error {
	o := &operation{disk: random.IntN(len(w.state)), seed: random.Uint64(), plain: m.emulated}
	longest := min(w.last-w.first, 4<<20)
	// Mostly small, sometimes up to 4 MiB.
	o.len = min(sector<<random.IntN(14), longest)
	o.off = w.first + random.Int64N((w.last-w.first-o.len)/sector+1)*sector
	kind := random.IntN(20)
	o.zero = kind < 3
	o.issued = time.Now()
	w.mu.Lock()
	w.log = append(w.log, o)
	w.mu.Unlock()
	err := m.apply(o, kind)
	w.mu.Lock()
	if err == nil {
		o.done = time.Now()
	}
	w.mu.Unlock()
	if err == nil && kind == 19 {
		err = m.flush(o.disk)
	}
	return err
}

// apply does an operation on a disk of a running machine.
func (m *machine) apply(o *operation, kind int) error {
	if m.emulated {
		return m.emulate(o, kind)
	}
	f := m.files[o.disk]
	if !o.zero {
		_, err := f.WriteAt(o.fill(), o.off)
		return err
	}
	// A hole is a discard. While a backup runs QEMU ignores those, and it leaves out what is
	// no whole cluster; so zeros follow, and the two together are one operation.
	if kind == discards {
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.off, o.len); err != nil {
			return err
		}
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, o.off, o.len)
}

func (m *machine) flush(disk int) error {
	if m.emulated {
		return m.qemuIO(disk, "flush")
	}
	return m.files[disk].Sync()
}

// adopt takes what the machine's disks hold now for what the writers have written.
func (g *guest) adopt(m *machine) {
	g.t.Helper()
	for d := range m.disks {
		content := m.read(d)
		for _, w := range g.writers {
			w.mu.Lock()
			copy(w.state[d], content[w.first:w.last])
			w.log = nil
			w.mu.Unlock()
		}
	}
}

// read gives what a disk of a machine whose guest does not write holds.
func (m *machine) read(disk int) []byte {
	t := m.h.t
	t.Helper()
	path := m.h.path("read.raw")
	if !m.emulated {
		path = m.mounts[disk]
	} else {
		testtool.Run(t, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", m.images[disk], path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
