package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/upload"
)

// lessons is what failed attempts of this call found out. It only grows, so that
// starting over comes to an end.
type lessons struct {
	quarantine map[string]Reason     // by disk: its bitmaps are not believed
	unreadable map[string]error      // by disk: it is left out
	given      map[ident.RunID]Stamp // points that are not built on
	building   []ident.RunID         // what the attempt under way builds on
}

// learn takes from an error what the next attempt does otherwise; false means
// that there is nothing to be learned from it.
func (b *backup) learn(err error) bool {
	var sample *sampleError
	var forgotten *repo.BaseForgottenError
	var unread *upload.SourceError
	l := &b.lessons
	switch {
	case err == nil:
		return false
	case errors.As(err, &sample):
		if _, known := l.quarantine[sample.disk]; known {
			return false
		}
		l.quarantine[sample.disk] = sample.reason
		return true
	case errors.As(err, &forgotten):
		return l.giveUp(forgotten.Run, Stamp{State: StampForgotten, Detail: "while this run began"})
	case errors.As(err, &unread):
		return b.leaveOut(unread)
	case errors.Is(err, repo.ErrDamaged):
		b.alarm(Alarm{Kind: AlarmDamage, Text: err.Error()})
		learned := false
		for _, run := range l.building {
			learned = l.giveUp(run, Stamp{State: StampDamaged, Detail: err.Error()}) || learned
		}
		return learned
	}
	return false
}

func (l *lessons) giveUp(run ident.RunID, s Stamp) bool {
	if _, known := l.given[run]; known || run.IsZero() {
		return false
	}
	l.given[run] = s
	return true
}

// leaveOut marks a disk that cannot be read, unless the machine as a whole is
// concerned, or nothing would be left.
func (b *backup) leaveOut(e *upload.SourceError) bool {
	for _, whole := range []error{source.ErrHeld, source.ErrVMStarted, source.ErrChanged, source.ErrGone, source.ErrMonitor, source.ErrScratch, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(e, whole) {
			return false
		}
	}
	if _, known := b.lessons.unreadable[e.Disk]; known || len(b.lessons.unreadable)+1 >= len(b.summary.Disks) {
		return false
	}
	b.lessons.unreadable[e.Disk] = e
	return true
}

// giveUp is the end of a call that learned something each time.
func giveUp(err error) error {
	return fmt.Errorf("%w, %d times: %w", ErrGivingUp, attemptsMax, err)
}
