package live

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
)

// Disk gives the disk whose image lies at Path a name.
type Disk struct {
	Name, Path string
}

// Options are the choices for a machine.
type Options struct {
	// Family is the machine's family of bitmaps.
	Family ident.FamilyID
	// Monitor is the path of a QMP socket of the machine.
	Monitor string
	// Disks selects and names disks; none: all that the guest may write to, each
	// called after its file.
	Disks []Disk
	// ScratchDir is where QEMU keeps what the guest overwrites while the backup
	// runs, and ScratchFloorBytes what must stay free there; see package scratch.
	ScratchDir        string
	ScratchFloorBytes int64
	// RuntimeDir is where QEMU makes its NBD socket.
	RuntimeDir string
	// Freezer freezes the guest's file systems for the point in time; nil: they are
	// not. With FreezeRequired there is no point without.
	Freezer        source.Freezer
	FreezeRequired bool
	// Note is told why the file systems were not frozen; nil: nobody is.
	Note func(string)

	// forget takes features away, so that a test sees what is done with an older QEMU.
	forget func(*features)
}

// Machine is a machine that runs. It keeps no connection between calls.
type Machine struct {
	options Options
	// seen is what the last Inspect found, in that QEMU.
	seen map[string]found
	qemu qemu
	left bool
}

var _ source.Machine = (*Machine)(nil)

// New makes a machine. Nothing is asked yet.
func New(o Options) *Machine { return &Machine{options: o} }

// Inspect asks QEMU for its disks and their bitmaps.
func (m *Machine) Inspect(ctx context.Context) (source.Evidence, error) {
	s, err := m.connect(ctx)
	if err != nil {
		return source.Evidence{}, err
	}
	defer s.close()
	disks, err := s.survey(ctx, m.options)
	if err != nil {
		return source.Evidence{}, s.explain(err)
	}
	m.seen = map[string]found{}
	e := source.Evidence{QEMU: s.monitor.Version().String()}
	for _, d := range disks {
		e.Disks = append(e.Disks, d.evidence)
		if d.evidence.Err == nil {
			m.seen[d.evidence.Name] = d
		}
	}
	return e, nil
}

func (m *Machine) connect(ctx context.Context) (*session, error) {
	s, err := open(ctx, m.options.Monitor, &m.qemu)
	if err == nil && m.options.forget != nil {
		m.options.forget(&s.features)
	}
	return s, err
}

// Left tells whether a cut has ended without being able to take down in QEMU what it had
// made there. Recover does it, when QEMU answers again.
func (m *Machine) Left() bool { return m.left }

// Answers tells whether somebody listens at a QMP socket: a machine that is off has
// none, or one that refuses.
func Answers(monitor string) bool {
	conn, err := net.Dial("unix", monitor)
	if err == nil {
		_ = conn.Close()
	}
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED)
}
