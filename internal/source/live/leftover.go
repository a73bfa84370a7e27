package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source/exported"
	"github.com/qbackup/qbackup/internal/state"
)

// Recover takes down what a dead run has left in the QEMU behind a monitor. Bitmaps
// stay: the next run knows from the repository which of them are needed.
func Recover(ctx context.Context, monitor string) error {
	s, err := open(ctx, monitor, &qemu{})
	if errors.Is(err, qmp.ErrNobody) {
		return nil // what was in it ended with it
	}
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.lock(ctx, lockTime); errors.Is(err, state.ErrBusy) {
		return nil // a run that lives has taken it down when it began
	} else if err != nil {
		return err
	}
	return s.recover(ctx)
}

// recover takes down whatever has a name of ours. The caller has locked the machine.
func (s *session) recover(ctx context.Context) error {
	left, err := s.leftovers(ctx)
	if err != nil || left.none() {
		return err
	}
	// The NBD server was started after our jobs and is stopped before them. With an
	// export of somebody else's on it, it is not ours.
	return s.takeDown(ctx, !left.foreignServer)
}

// leftovers is what of ours is in a QEMU.
type leftovers struct {
	exports, jobs, nodes []string
	foreignServer        bool // somebody else exports over NBD
}

func (l leftovers) none() bool {
	return len(l.exports)+len(l.jobs)+len(l.nodes) == 0
}

func (s *session) leftovers(ctx context.Context) (leftovers, error) {
	var l leftovers
	exports, err := s.exports(ctx)
	if err != nil {
		return l, err
	}
	for _, x := range exports {
		switch {
		case ours(x.ID):
			l.exports = append(l.exports, x.ID)
		case x.Type == "nbd":
			l.foreignServer = true
		}
	}
	jobs, err := s.jobs(ctx)
	if err != nil {
		return l, err
	}
	for _, j := range jobs {
		if ours(j.ID) {
			l.jobs = append(l.jobs, j.ID)
		}
	}
	nodes, err := s.nodes(ctx)
	if err != nil {
		return l, err
	}
	for _, n := range nodes {
		if ours(n.Name) && n.Driver == driverQcow2 { // those below go with it
			l.nodes = append(l.nodes, n.Name)
		}
	}
	return l, nil
}

// takeDown ends exports, server, jobs and scratch images, in this order.
// What fails does not keep the rest from being tried.
func (s *session) takeDown(ctx context.Context, serving bool) error {
	left, err := s.leftovers(ctx)
	if err != nil {
		return err
	}
	var all error
	try := func(what string, err error) {
		if err != nil {
			all = errors.Join(all, fmt.Errorf("%s: %w", what, err))
		}
	}
	for _, id := range left.exports {
		try("end the export "+id, s.hangUp(ctx, id))
	}
	if !s.features.blockExports {
		s.removeExports(ctx, left.jobs)
	}
	if all != nil {
		return all // what follows would meet clients
	}
	// Only now: QEMU may be waiting to get rid of an answer that nobody reads any more,
	// and has let go of the clients.
	try("close the ends of connections", s.closeEnds(ctx))
	for _, id := range left.exports {
		try("end the export "+id, s.awaitEnd(ctx, id))
	}
	if all != nil {
		return all
	}
	if serving {
		// It may not have been started, or be stopped already.
		err := s.do(ctx, "nbd-server-stop", nil, nil)
		if err != nil && s.monitor.Err() != nil {
			try("stop the NBD server", err)
		}
	}
	for _, id := range left.jobs {
		try("end the job "+id, s.endJob(ctx, id))
	}
	for _, node := range left.nodes {
		try("remove "+node, s.do(ctx, "blockdev-del", args{"node-name": node}, nil))
	}
	return all
}

// hangUp makes QEMU end an export and drop its clients. That an earlier try has
// already done so is as good.
func (s *session) hangUp(ctx context.Context, id string) error {
	err := s.do(ctx, "block-export-del", args{"id": id, "mode": "hard"}, nil)
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		return err
	}
	list, listErr := s.exports(ctx)
	at := slices.IndexFunc(list, func(x exportInfo) bool { return x.ID == id })
	if listErr == nil && (at < 0 || list[at].Ending) {
		return nil
	}
	return err
}

// awaitEnd waits until an export is gone.
func (s *session) awaitEnd(ctx context.Context, id string) error {
	return exported.Until(ctx, func() (bool, error) {
		list, err := s.exports(ctx)
		return !slices.ContainsFunc(list, func(x exportInfo) bool { return x.ID == id }), err
	})
}

// removeExports ends exports where QEMU cannot list them, by the jobs that they
// belong to. Those that are not there are refused, which is as good.
func (s *session) removeExports(ctx context.Context, jobs []string) {
	for _, job := range jobs {
		name := exportName + strings.TrimPrefix(job, jobPrefix)
		_ = s.do(ctx, "nbd-server-remove", args{"name": name, "mode": "hard"}, nil)
	}
}

// endJob cancels a job, which lets the guest's writes under way come to an end, and
// dismisses it.
func (s *session) endJob(ctx context.Context, id string) error {
	status := func() (string, error) {
		jobs, err := s.jobs(ctx)
		at := slices.IndexFunc(jobs, func(j jobInfo) bool { return j.ID == id })
		if err != nil || at < 0 {
			return jobNull, err
		}
		return jobs[at].Status, nil
	}
	now, err := status()
	if err != nil {
		return err
	}
	if now != jobConcluded && now != jobNull {
		if err := s.do(ctx, "job-cancel", args{"id": id}, nil); err != nil {
			return err
		}
	}
	if err := exported.Until(ctx, func() (bool, error) {
		now, err = status()
		return now == jobConcluded || now == jobNull, err
	}); err != nil || now == jobNull {
		return err
	}
	return s.do(ctx, "job-dismiss", args{"id": id}, nil)
}
