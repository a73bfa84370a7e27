package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
)

func (p *program) pointsCommand() *cobra.Command {
	var machine string
	var forgotten bool
	c := &cobra.Command{
		Use:     "points",
		Aliases: []string{"list", "snapshots"},
		Short:   "List restore points",
		Long: `List restore points, the oldest first. Times are local. STORED is what the point added to the repository; every
point is complete, whatever it added. A disk that a point could not take is called MISSING.

With --forgotten, those are listed that were forgotten and can still be brought back, or whose data was not yet deleted.`,
		Example: `  qbackup points
  qbackup points --machine web1 --json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.points(c.Context(), machine, forgotten) },
	}
	c.Flags().StringVar(&machine, "machine", "", "one machine; default: all")
	c.Flags().BoolVar(&forgotten, "forgotten", false, "list forgotten points instead")
	return c
}

// listedPoint is one point of points --json.
type listedPoint struct {
	Machine     ident.MachineName `json:"machine"`
	Point       ident.RunID       `json:"point"`
	Time        time.Time         `json:"time"`
	Complete    bool              `json:"complete"` // false: a disk is missing
	Consistency string            `json:"consistency,omitempty"`
	Host        string            `json:"host,omitempty"`
	Pinned      bool              `json:"pinned"`
	BackUntil   *time.Time        `json:"back_until,omitempty"` // of a forgotten one: when it can be brought back at the latest
	Disks       []listedDisk      `json:"disks"`
	Error       string            `json:"error,omitempty"` // why the record cannot be read
}

type listedDisk struct {
	Name      string `json:"name"`
	Mode      string `json:"mode"`
	Reason    string `json:"reason,omitempty"`
	Error     string `json:"error,omitempty"`
	SizeBytes int64  `json:"size_bytes"`
	Stored    int64  `json:"stored_bytes"`
}

func (p *program) points(ctx context.Context, machine string, forgotten bool) error {
	repository, err := p.openRepository(ctx)
	if err != nil {
		return err
	}
	machines, err := chosenMachines(ctx, repository, machine)
	if err != nil {
		return err
	}
	list := []listedPoint{}
	for _, m := range machines {
		some, err := listPoints(ctx, repository, m, forgotten)
		if err != nil {
			return err
		}
		list = append(list, some...)
	}
	if p.json {
		return p.printJSON(list)
	}
	if len(list) == 0 && forgotten {
		p.say("no forgotten points")
		return nil
	}
	return p.printPoints(list)
}

// listPoints lists the points of a machine that stand, or those that are forgotten.
func listPoints(ctx context.Context, repository *repo.Repository, m ident.MachineName, forgotten bool) (list []listedPoint, err error) {
	if forgotten {
		points, err := repository.ForgottenPoints(ctx, m)
		for _, f := range points {
			p, until := listPoint(m, f.PointInfo), backUntil(f.Since)
			p.BackUntil = &until
			list = append(list, p)
		}
		return list, err
	}
	points, err := repository.Points(ctx, m)
	if err != nil {
		return nil, err
	}
	pinned, err := repository.Pinned(ctx, m)
	for _, info := range points {
		p := listPoint(m, info)
		p.Pinned = slices.Contains(pinned, info.Run)
		list = append(list, p)
	}
	return list, err
}

func chosenMachines(ctx context.Context, repository *repo.Repository, flag string) ([]ident.MachineName, error) {
	if flag == "" {
		return repository.Machines(ctx)
	}
	name, err := ident.ParseMachineName(flag)
	if err != nil {
		return nil, usagef("%v", err)
	}
	points, err := repository.Points(ctx, name)
	if err == nil && len(points) == 0 {
		err = noPoints(ctx, repository, name)
	}
	if err != nil && !errors.Is(err, errNoPoints) {
		return nil, err
	}
	return []ident.MachineName{name}, nil
}

// errNoPoints: the machine is known, and has no points.
var errNoPoints = errors.New("no points")

// noPoints says why a machine has no points: the repository does not know it, and which it knows, or there are none. The
// machine's own document is asked last, since its points can be read without it.
func noPoints(ctx context.Context, repository *repo.Repository, name ident.MachineName) error {
	if _, found, err := repository.Machine(ctx, name); err != nil || found {
		return cmp.Or(err, fmt.Errorf("machine %s: %w", name, errNoPoints))
	}
	all, err := repository.Machines(ctx)
	if err != nil {
		return err
	}
	const enough = 10
	var names []string
	for i, m := range all {
		if i == enough {
			names = append(names, "...")
			break
		}
		names = append(names, string(m))
	}
	if len(names) == 0 {
		return fmt.Errorf("no machine %s in the repository, which has none yet", name)
	}
	return fmt.Errorf("no machine %s in the repository; it has %s", name, strings.Join(names, ", "))
}

func listPoint(machine ident.MachineName, info repo.PointInfo) listedPoint {
	p := listedPoint{Machine: machine, Point: info.Run, Time: info.Run.Time(), Disks: []listedDisk{}}
	if info.Err != nil {
		p.Error = info.Err.Error()
		return p
	}
	r := info.Record
	p.Time, p.Complete, p.Consistency, p.Host = r.Time, r.Complete(), r.Consistency, r.Host
	for i := range r.Disks {
		d := &r.Disks[i]
		p.Disks = append(p.Disks, listedDisk{d.Name, d.Mode, d.Reason, d.Error, d.SizeBytes, d.StoredBytes})
	}
	return p
}

func (p *program) printPoints(list []listedPoint) error {
	if len(list) == 0 {
		p.say("no points yet")
		return nil
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tPOINT\tTIME\tDISKS\tSIZE\tSTORED\t")
	for _, point := range list {
		if point.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t%s\tdamaged: %s\t\t\t\n", point.Machine, point.Point, localTime(point.Time), point.Error)
			continue
		}
		var names []string
		var total, stored int64
		for _, d := range point.Disks {
			text := d.Name + " " + d.Mode
			if d.Mode == format.ModeMissing {
				text = d.Name + " MISSING"
			}
			names = append(names, text)
			total += d.SizeBytes
			stored += d.Stored
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", point.Machine, point.Point, localTime(point.Time), strings.Join(names, ", "), size(total), size(stored), point.remark())
	}
	return w.Flush()
}

// remark is what else is to be known of a point.
func (p listedPoint) remark() string {
	switch {
	case p.Pinned:
		return "pinned"
	case p.BackUntil == nil:
		return ""
	case time.Now().Before(*p.BackUntil):
		return "can be brought back until " + localTime(*p.BackUntil)
	}
	return "cannot be brought back"
}

func localTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// findPoint finds the point that a word names: latest, an id, a prefix of one, or a time.
func findPoint(ctx context.Context, repository *repo.Repository, machine ident.MachineName, word string) (ident.RunID, error) {
	points, err := repository.Points(ctx, machine)
	if err != nil {
		return ident.RunID{}, err
	}
	if len(points) == 0 {
		return ident.RunID{}, noPoints(ctx, repository, machine)
	}
	if word == "latest" {
		return points[len(points)-1].Run, nil
	}
	var matches []ident.RunID
	for _, info := range points {
		if strings.HasPrefix(info.Run.String(), strings.ToLower(word)) {
			matches = append(matches, info.Run)
		}
	}
	switch {
	case len(matches) == 1:
		return matches[0], nil
	case len(matches) > 1:
		return ident.RunID{}, fmt.Errorf("%d points of machine %s begin with %q, such as %s and %s; give more of the id", len(matches), machine, word, matches[0], matches[1])
	}
	if at, ok := parseTime(word); ok {
		return pointAt(points, machine, at)
	}
	return ident.RunID{}, fmt.Errorf("machine %s has no point %q; name one of `qbackup points`, a time such as 2026-01-31T12:00, or latest", machine, word)
}

// pointAt is the last point at or before a time.
func pointAt(points []repo.PointInfo, machine ident.MachineName, at time.Time) (ident.RunID, error) {
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Err == nil && !points[i].Record.Time.After(at) {
			return points[i].Run, nil
		}
	}
	return ident.RunID{}, fmt.Errorf("machine %s has no point at or before %s; its first is of %s", machine, localTime(at), localTime(points[0].Run.Time()))
}

// parseTime reads local times; a day or a minute means its end.
func parseTime(word string) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339, word); err == nil {
		return t, true
	}
	for _, f := range []struct {
		layout string
		length time.Duration
	}{
		{"2006-01-02T15:04:05", time.Second}, {"2006-01-02 15:04:05", time.Second},
		{"2006-01-02T15:04", time.Minute}, {"2006-01-02 15:04", time.Minute}, {"2006-01-02", 24 * time.Hour},
	} {
		if t, err := time.ParseInLocation(f.layout, word, time.Local); err == nil {
			return t.Add(f.length - 1), true
		}
	}
	return time.Time{}, false
}
