package agent

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/upload"
)

// Job is one machine to be backed up into one repository.
type Job struct {
	Machine    ident.MachineName
	Repository *repo.Repository
	State      *state.Repository // what this host remembers of that repository
	// Open makes the machine's source. The family is known only after the
	// repository was asked who the machine is.
	Open func(ident.FamilyID) source.Machine

	Rescan bool // read everything, whatever the bitmaps say
	Adopt  bool // take over a machine name without evidence
	DryRun bool // inspect and choose; write nothing anywhere
}

// Options are the seams and bounds of a backup. The zero value is usable.
type Options struct {
	Clock       func() time.Time // nil: time.Now
	Random      io.Reader        // nil: crypto/rand
	Host        string           // "": the host's name
	BootID      string           // "": the kernel's
	Tool        string           // name and version for the record
	RenewEvery  time.Duration    // 0: one hour; how often a long upload says that it lives
	MemoryBytes int64            // 0: upload's default
	Workers     int              // 0: one per core
	Stats       *Stats           // nil: nobody watches
}

// withDefaults fills in what was left open.
func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Host == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		o.Host = host
	}
	if o.BootID == "" {
		o.BootID = state.BootID()
	}
	if o.Tool == "" {
		o.Tool = "qbackup"
	}
	if o.RenewEvery == 0 {
		o.RenewEvery = renewEvery
	}
	if o.Stats == nil {
		o.Stats = &Stats{}
	}
	return o
}

// Phase is a step of a backup, in the words of this package's comment.
type Phase string

// The phases, in their order.
const (
	PhaseInspect Phase = "inspect"
	PhaseChoose  Phase = "choose bases"
	PhaseFreeze  Phase = "freeze"
	PhaseUpload  Phase = "upload"
	PhaseSample  Phase = "sample"
	PhaseConfirm Phase = "confirm"
	PhasePublish Phase = "publish"
	PhaseCommit  Phase = "commit"
	PhaseDone    Phase = "done"
)

// Stats shows how far a backup is. The caller owns it and may read it at any
// time from any goroutine.
type Stats struct {
	pipeline upload.PipelineStats

	mu      sync.Mutex
	phase   Phase
	disks   []DiskProgress
	scratch source.Scratched // nil: the cut needs no space
	// entered counts phases, each as much as no disk has bytes: a run that starts over
	// has new disks.
	entered uint64
}

// DiskProgress is one disk that is being uploaded.
type DiskProgress struct {
	Name  string
	Mode  string
	Stats *upload.DiskStats
}

// Pipeline shows how busy the stages of the upload are.
func (s *Stats) Pipeline() *upload.PipelineStats { return &s.pipeline }

// Phase tells the current step.
func (s *Stats) Phase() Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}

// Disks lists the disks of the current upload. Their counters go on moving. A
// run that starts over has new ones.
func (s *Stats) Disks() []DiskProgress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]DiskProgress(nil), s.disks...)
}

// ScratchBytes is how much space is taken by what the guest overwrites.
func (s *Stats) ScratchBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.scratch == nil {
		return 0
	}
	return s.scratch.ScratchBytes()
}

func (s *Stats) hold(c source.Cut) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scratch, _ = c.(source.Scratched)
}

// Progress is a number that changes as long as the backup gets on.
func (s *Stats) Progress() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.entered
	for _, d := range s.disks {
		sum += uint64(d.Stats.Passed.Load()) + uint64(d.Stats.Read.Load()) + uint64(d.Stats.Stored.Load())
	}
	return sum
}

func (s *Stats) enter(p Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
	s.entered += 1 << 56
}

func (s *Stats) watch(disks []DiskProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = disks
}

// Bounds of a backup.
const (
	renewEvery = time.Hour
	// silence is how long a run of another host must have stored nothing before
	// it counts as dead: two renewals that did not come.
	silence = 2 * renewEvery
	// abandonBudget bounds what is spent on saying that a failed run is dead.
	abandonBudget = 10 * time.Second
	// rewriteAfter is the number of runs after which a map is written anew, so
	// that no point depends on many.
	rewriteAfter = 64
	// liveWorkers is how many windows of a running machine are read at once: they
	// wait for its QEMU, one small request after the other.
	liveWorkers = 8
	// attemptsMax bounds how often one call starts over with what it learned.
	attemptsMax = 8
)

func (j Job) check() error {
	switch {
	case j.Machine == "":
		return fmt.Errorf("%w: no machine name", ErrJob)
	case j.Repository == nil || j.State == nil || j.Open == nil:
		return fmt.Errorf("%w: repository, state or source is missing", ErrJob)
	}
	return nil
}
