package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// trial is what is done with one state after a power failure.
type trial struct {
	keepState bool // the host still has its state directory
	guest     bool // the guest writes before the next backup, else before the one after it
	lost      bool // the repository went back in time too: it has not got the new point any more
	look      bool // no more backups, only a look
	qemu      bool // QEMU looks at the images as well
	seed      uint64
}

func (c trial) String() string {
	text := "state directory lost"
	if c.keepState {
		text = "state directory kept"
	}
	if c.lost {
		text += ", new point lost"
	}
	if c.guest {
		text += ", guest wrote"
	}
	return text
}

// judge returns an error when a state after a power failure harms anybody, and
// what the next backup was.
func (r *recorded) judge(t testing.TB, s sim.State, c trial) (agent.Summary, error) {
	h := r.host.fork(c.seed)
	if c.lost {
		s = r.withoutPoint(s)
	}
	if err := h.put(s, c.keepState); err != nil {
		return agent.Summary{}, err
	}
	if err := h.judgeImages(t, c.qemu); err != nil {
		return agent.Summary{}, err
	}
	points, err := h.checkPoints(t.Context())
	if err != nil {
		return agent.Summary{}, fmt.Errorf("after the power cut: %w", err)
	}
	if err := r.judgeOrder(s, c, points); err != nil || c.look {
		return agent.Summary{}, err
	}
	next, err := r.judgeNext(t, h, s, c, points)
	if err != nil {
		return next, fmt.Errorf("next backup: %w", err)
	}
	if err := r.judgeThird(t, h, c); err != nil {
		return next, fmt.Errorf("third backup: %w", err)
	}
	if c.qemu {
		if err := h.judgeImages(t, true); err != nil {
			return next, fmt.Errorf("after two more backups: %w", err)
		}
	}
	return next, nil
}

// withoutPoint is a state in which the record of the point that was being made is
// lost, and nothing else: as after a mistake, or when it was forgotten and removed.
func (r *recorded) withoutPoint(s sim.State) sim.State {
	v := sim.State{Images: s.Images, Folders: maps.Clone(s.Folders)}
	v.Folders[repoDevice] = maps.Clone(s.Folders[repoDevice])
	delete(v.Folders[repoDevice], format.PointKey(machine, r.point))
	return v
}

// judgeImages: they can be opened, by QEMU too.
func (h *host) judgeImages(t testing.TB, qemu bool) error {
	for _, d := range h.disks {
		err := openable(d.path)
		if err == nil && qemu {
			err = judgeByQEMU(t, d.path)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.name, err)
		}
	}
	return nil
}

// judgeByQEMU: QEMU opens the image, and finds leaked clusters at most.
func judgeByQEMU(t testing.TB, path string) error {
	if out, code := testtool.Try(t, "qemu-img", "check", "-f", "qcow2", path); code != 0 && code != 3 {
		return fmt.Errorf("qemu-img check exits with %d: %s", code, out)
	}
	if out, code := testtool.Try(t, "qemu-img", "info", "-f", "qcow2", path); code != 0 {
		return fmt.Errorf("qemu-img info exits with %d: %s", code, out)
	}
	return nil
}

// judgeOrder: no point that was there is lost, and no image has changed before the
// new one was durable (I2).
func (r *recorded) judgeOrder(s sim.State, c trial, points []ident.RunID) error {
	for _, run := range r.older {
		if !slices.Contains(points, run) {
			return fmt.Errorf("point %s is lost", run)
		}
	}
	if c.lost || slices.Contains(points, r.point) {
		return nil
	}
	for name, was := range r.before {
		if !bytes.Equal(was, s.Images[name]) {
			return fmt.Errorf("image %s has changed, and the repository has no point of that run", name)
		}
	}
	return nil
}

// acceptable tells whether a backup after a power cut may read everything for a
// reason. Others, such as a sample that shows changes without bits, mean that a
// bitmap lied.
func (r *recorded) acceptable(reason agent.Reason, c trial) bool {
	switch reason {
	case r.reason, agent.ReasonFirst, agent.ReasonUnknownStamp, agent.ReasonLinkMissing, agent.ReasonAutoclear, agent.ReasonUnreadable, agent.ReasonNoBitmap:
		return true
	}
	return c.lost && reason == agent.ReasonFailedRun
}

// judgeNext: the next backup needs no help and makes a right point.
func (r *recorded) judgeNext(t testing.TB, h *host, s sim.State, c trial, points []ident.RunID) (agent.Summary, error) {
	if c.guest {
		for i := range h.disks {
			if err := r.writeAs(t, h, c, i, r.guestChanges(h)...); err != nil {
				return agent.Summary{}, err
			}
		}
	}
	next, err := h.backup(t.Context(), how{boot: "boot-2"})
	if errors.Is(err, agent.ErrOtherMachine) && c.lost && !c.keepState {
		// Power, state directory and newest point are lost at once, and the image's
		// bitmaps were hidden just then: what is left to know the machine by is what
		// its disks have in common with an old point. It is right to ask.
		next, err = h.backup(t.Context(), how{boot: "boot-2", adopt: true})
	}
	if err != nil {
		return next, err
	}
	if err := h.judgePoint(t, next, append(slices.Clone(points), next.Point)); err != nil {
		return next, err
	}
	final := r.log.After(sim.PowerCut{Done: len(r.log.Effects())})
	for _, d := range next.Disks {
		// Needless reading is no harm, but would be a mistake.
		must := r.mode == format.ModeIncremental && bytes.Equal(s.Images[d.Name], r.before[d.Name]) ||
			!c.lost && bytes.Equal(s.Images[d.Name], final.Images[d.Name])
		switch {
		case d.Mode == format.ModeIncremental && d.Reason == agent.ReasonNone:
		case must:
			return next, fmt.Errorf("disk %s: %s (%s: %s), could be incremental", d.Name, d.Mode, d.Reason, d.Detail)
		case d.Mode == format.ModeIncremental || !r.acceptable(d.Reason, c):
			return next, fmt.Errorf("disk %s: %s because of %q: %s", d.Name, d.Mode, d.Reason, d.Detail)
		}
	}
	for _, a := range next.Alarms {
		// A torn stamp is an unknown one. And a host that does not remember its last
		// run cannot tell bits that were not reset from those of an older image.
		if a.Kind != agent.AlarmRepositoryRolledBack && (c.keepState || a.Kind != agent.AlarmImageRolledBack) {
			return next, fmt.Errorf("alarm %s: %s", a.Kind, a.Text)
		}
	}
	return next, nil
}

// writeAs writes through QEMU in trials by QEMU, and where nothing else can.
func (r *recorded) writeAs(t testing.TB, h *host, c trial, disk int, changes ...change) error {
	if c.qemu || len(r.options) > 0 {
		return h.write(t, disk, changes...)
	}
	return h.play(disk, changes...)
}

// guestChanges dirties some blocks that were dirty before the power cut and some
// that were not.
func (r *recorded) guestChanges(h *host) []change {
	return []change{
		{off: int64(h.random.Uint64()%16) << 16, n: 4096}, {off: 1<<20 + int64(h.random.Uint64()%8)<<16, n: 70 << 10},
		{off: 3<<20 + int64(h.random.Uint64()%16)<<16, n: 512},
	}
}

// judgeThird: one more backup is an increment of what the guest wrote, and no more.
func (r *recorded) judgeThird(t testing.TB, h *host, c trial) error {
	const written = 3 // blocks
	off := int64(h.random.Uint64()%30) * blockBytes
	for i := range h.disks {
		if c.guest {
			break // it wrote before, when there was more to be got wrong
		}
		if err := r.writeAs(t, h, c, i, change{off: off, n: blockBytes}, change{off: 2<<20 + off/2 + 700, n: blockBytes}); err != nil {
			return err
		}
	}
	s, err := h.backup(t.Context(), how{boot: "boot-2"})
	if err != nil {
		return err
	}
	if err := h.judgePoint(t, s, nil); err != nil {
		return err
	}
	for _, d := range s.Disks {
		if d.Mode != format.ModeIncremental || d.Reason != agent.ReasonNone || d.DirtyBytes > written*blockBytes || c.guest && d.DirtyBytes > 0 {
			return fmt.Errorf("disk %s: %s (%s: %s), %d bytes dirty", d.Name, d.Mode, d.Reason, d.Detail, d.DirtyBytes)
		}
	}
	if len(s.Alarms) > 0 {
		return fmt.Errorf("alarms %+v", s.Alarms)
	}
	return nil
}

// judgePoint: a backup made a point that is right, reset the bits, and lost no
// other point.
func (h *host) judgePoint(t testing.TB, s agent.Summary, want []ident.RunID) error {
	switch {
	case s.Point.IsZero() || len(s.Disks) != len(h.disks):
		return fmt.Errorf("no complete point: %+v", s)
	case len(s.NotReset) > 0:
		return fmt.Errorf("bits stayed: %+v", s.NotReset)
	}
	points, err := h.checkPoints(t.Context(), s.Point)
	if err != nil {
		return err
	}
	if !slices.Contains(points, s.Point) || want != nil && !slices.Equal(points, want) {
		return fmt.Errorf("the points are %v, want %v", points, want)
	}
	return nil
}
