package virt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/state"
)

// What is done to the guest for the point in time, as a guard calls it.
const (
	actionFreeze  = "freeze"
	actionSuspend = "suspend"
)

// StartGuard starts a guard that can do and undo these things, and that hands cleanup
// to Cleanup when this process ends without a word. The id is a word of its own.
type StartGuard func(ctx context.Context, id string, actions map[string]guard.Action, cleanup json.RawMessage) (*guard.Guard, error)

// undoing is a command of virsh that succeeds also where there is nothing to undo: the
// domain is not paused, or has ended meanwhile, and with it what was done to it. What
// runs has an id of its own.
const undoing = `command=$1 uuid=$2 id=$3
shift 3
"$@" "$command" --domain "$uuid" && exit
if [ "$command" = resume ] && state=$("$@" domstate --domain "$uuid") && [ "$state" != paused ]; then exit 0; fi
list=$("$@" list --id) || exit
for one in $list; do [ "$one" != "$id" ] || exit 1; done`

// actions are those things, by programs.
func (v virsh) actions(d *domain) map[string]guard.Action {
	// Not --quiet: the number of file systems is not said then.
	program := []string{v.program, "--connect", v.uri}
	do := func(command string) []string { return append(slices.Clone(program), command, "--domain", d.uuid) }
	undo := func(command string) []string {
		return append([]string{"/bin/sh", "-c", undoing, "sh", command, d.uuid, strconv.Itoa(d.id)}, program...)
	}
	return map[string]guard.Action{
		actionFreeze:  {Exec: &guard.Exec{Do: do("domfsfreeze"), Undo: undo("domfsthaw"), Counts: true}},
		actionSuspend: {Exec: &guard.Exec{Do: do("suspend"), Undo: undo("resume")}},
	}
}

// leftover is what a guard needs to know to end the job of a run whose process has
// died.
type leftover struct {
	Virsh      string `json:"virsh"`
	URI        string `json:"uri"`
	UUID       string `json:"uuid"`
	Name       string `json:"name"`
	ScratchDir string `json:"scratch_dir"`
}

// Cleanup ends the backup job of a run whose process has died, so that what the guest
// overwrites does not fill the host's disk. The bitmaps stay as they are: the next run
// finds out what became of this one. It is what guard.Hooks.Cleanup is for.
func Cleanup(ctx context.Context, text json.RawMessage) error {
	var l leftover
	if err := json.Unmarshal(text, &l); err != nil {
		return fmt.Errorf("read what is to be cleaned up: %w", err)
	}
	name, ok := ident.ParseBitmapName(l.Name)
	if !ok {
		return fmt.Errorf("read what is to be cleaned up: %q is no name of a run", l.Name)
	}
	m := &Machine{o: Options{Domain: l.UUID}, virsh: virsh{program: l.Virsh, uri: l.URI}}
	err := m.lock(ctx, l.UUID)
	own := func(other ident.BitmapName) bool { return other == name }
	if errors.Is(err, state.ErrBusy) {
		// A run that lives has taken over and cleaned up, or a command of the dead one goes on.
		if files, jobErr := m.backupJob(ctx, l.UUID); jobErr == nil && !belongs(files, own) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	defer m.unlock()
	if err := m.endJob(ctx, l.UUID, own); err != nil && !says(err, saysNoDomain, saysNoDomain2) {
		return fmt.Errorf("end the backup job: %w", err)
	}
	return removeScratch(l.ScratchDir, own)
}

// startGuard starts the guard of a cut.
func (c *cut) startGuard(ctx context.Context) error {
	m := c.machine
	if m.o.StartGuard == nil {
		return nil
	}
	cleanup, err := json.Marshal(leftover{Virsh: m.virsh.program, URI: m.virsh.uri, UUID: c.domain.uuid, Name: c.name.String(), ScratchDir: m.o.ScratchDir})
	if err != nil {
		return err
	}
	c.guard, err = m.o.StartGuard(ctx, c.name.Stamp.String(), m.virsh.actions(c.domain), cleanup)
	return err
}

// suspended lets the guest stand still for what work does. What did not keep it still
// to the end makes the point in time worthless.
func (c *cut) suspended(ctx context.Context, work func() error) func() error {
	return func() error {
		if c.guard == nil {
			return errors.New("the guest must be suspended, and nobody would resume it if this process died")
		}
		if _, err := c.guard.Hold(ctx, actionSuspend, c.machine.o.Budget); err != nil {
			return fmt.Errorf("suspend the guest: %w", err)
		}
		err := work()
		how, resumeErr := c.guard.Release(context.WithoutCancel(ctx), actionSuspend)
		switch {
		case resumeErr != nil:
			err = errors.Join(err, fmt.Errorf("resume the guest: %w", resumeErr))
		case err == nil && how.Broken() != "":
			err = fmt.Errorf("the guest did not stand still until the point in time was set: %s", how.Broken())
		}
		return err
	}
}

// frozenFor freezes the guest's file systems for what work does.
func (c *cut) frozenFor(ctx context.Context, r *running, work func() error) error {
	o := &c.machine.o
	if !o.Freeze {
		return work()
	}
	err := errPaused
	if c.guard == nil {
		err = errors.New("nobody would thaw them if this process died")
	} else if !r.state.paused() {
		_, err = c.guard.Hold(ctx, actionFreeze, o.Budget)
	}
	if err != nil {
		if o.FreezeRequired || ctx.Err() != nil {
			return unusable(c.machine.what(), fmt.Errorf("%w: %w", ErrNotFrozen, err), hintAgent)
		}
		o.note("the guest's file systems are not frozen, the point is what a power cut leaves: %v", err)
		return work()
	}
	err = work()
	how, thawErr := c.guard.Release(context.WithoutCancel(ctx), actionFreeze)
	if thawErr != nil {
		return errors.Join(err, fmt.Errorf("thaw the guest's file systems: %w", thawErr))
	}
	broken := how.Broken()
	c.freezeSeconds, c.frozen = how.For.Seconds(), broken == ""
	if c.frozen {
		return err
	}
	if o.FreezeRequired {
		return errors.Join(err, unusable(c.machine.what(), fmt.Errorf("%w to the end: %s", ErrNotFrozen, broken), hintAgent))
	}
	o.note("the guest's file systems did not stay frozen, the point is what a power cut leaves: %s", broken)
	return err
}

// errPaused is why a guest that stands still cannot be asked to freeze anything.
var errPaused = errors.New("the guest is paused")

func (o *Options) note(format string, args ...any) {
	if o.Note != nil {
		o.Note(fmt.Sprintf(format, args...))
	}
}

const (
	// hintAgent says what a freeze needs.
	hintAgent = "a freeze needs qemu-guest-agent in the guest, and its channel in the domain"
	// lockTime is how long another run's cleaning up is waited for. One command of it may
	// take the 30 s that libvirt waits for a domain on which it has still to do what the
	// dead run had asked for.
	lockTime = 75 * time.Second
)

// lock makes sure that this is the only process that makes or ends backup jobs of ours in a domain. Each command of virsh
// has the lock, too: one that goes on after the death of its run is not disturbed.
func (m *Machine) lock(ctx context.Context, uuid string) error {
	l, err := state.LockName(ctx, "libvirt/"+strings.ToLower(uuid), "domain "+uuid, lockTime)
	m.virsh.lock = l
	return err
}

func (m *Machine) unlock() {
	m.virsh.lock.Unlock()
	m.virsh.lock = nil
}
