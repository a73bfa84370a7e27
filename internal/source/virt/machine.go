package virt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
)

// Options are the choices for a machine.
type Options struct {
	// Family is the machine's family of bitmaps.
	Family ident.FamilyID
	// Domain is the name of the domain, or its UUID.
	Domain string
	// URI says which libvirt is asked; qemu:///system when empty. It must be one of
	// this host, because the disks are read here.
	URI string
	// Virsh is libvirt's client; virsh from PATH when empty.
	Virsh string
	// ScratchDir is where QEMU keeps what the guest overwrites while the backup
	// runs, and ScratchFloorBytes what must stay free there; see package scratch.
	ScratchDir        string
	ScratchFloorBytes int64
	// RuntimeDir is where QEMU makes its NBD socket; the folder that libvirt has for
	// the domain's own sockets when empty.
	RuntimeDir string
	// Freeze asks the guest to hold its file systems still for the point in time, for
	// Budget at the most; 0: guard.BudgetDefault. With FreezeRequired there is no
	// point without.
	Freeze, FreezeRequired bool
	Budget                 time.Duration
	// StartGuard is needed for that, and for increments of disks with I/O threads,
	// for which the domain is suspended for a moment. Without it, a job whose run
	// dies goes on until the next run.
	StartGuard StartGuard
	// Note is told why the file systems were not frozen; nil: nobody is.
	Note func(string)
	// Offline is how the files are read while the domain is off. Its Family is
	// replaced by the one above.
	Offline offline.Options
}

// Machine is a domain of libvirt. It keeps nothing open between calls.
type Machine struct {
	o     Options
	virsh virsh
	// What the last Inspect found: a domain that runs, or one that is off.
	running *running
	off     *off
}

var _ source.Machine = (*Machine)(nil)

// New makes a machine. Nothing is asked yet.
func New(o Options) *Machine {
	if o.URI == "" {
		o.URI = defaultURI
	}
	if o.Virsh == "" {
		o.Virsh = programName
	}
	o.Offline.Family = o.Family
	return &Machine{o: o, virsh: virsh{program: o.Virsh, uri: o.URI}}
}

// what names the domain in errors.
func (m *Machine) what() string { return "domain " + m.o.Domain }

// running is a domain that runs, at one look.
type running struct {
	*domain
	nodes nodes
}

// off is a domain that is off.
type off struct {
	*domain
	files *offline.Machine
}

// Inspect looks at the domain and its disks: through libvirt and QEMU when it runs,
// in the files when it is off.
func (m *Machine) Inspect(ctx context.Context) (source.Evidence, error) {
	m.running, m.off = nil, nil
	e, err := m.inspect(ctx)
	if err != nil {
		return source.Evidence{}, fmt.Errorf("inspect %s: %w", m.what(), explain(m.what(), err))
	}
	return e, nil
}

func (m *Machine) inspect(ctx context.Context) (source.Evidence, error) {
	if err := checkLocal(m.o.URI); err != nil {
		return source.Evidence{}, err
	}
	uuid, err := m.lookUp(ctx)
	if err != nil {
		return source.Evidence{}, err
	}
	d, err := m.look(ctx, uuid)
	if err != nil {
		return source.Evidence{}, err
	}
	if !d.state.runs() {
		return m.inspectOff(ctx, d)
	}
	return m.inspectRunning(ctx, d)
}

func (m *Machine) inspectRunning(ctx context.Context, d *domain) (source.Evidence, error) {
	answers, err := m.virsh.all(ctx, []string{"domcapabilities"}, ask(d.uuid, queryNodes), ask(d.uuid, queryVersion))
	if err != nil {
		return source.Evidence{}, err
	}
	if !strings.Contains(answers[0], "<backup supported='yes'/>") {
		return source.Evidence{}, unusable(m.what(), fmt.Errorf("%w: libvirt says that they are not supported here", ErrTooOld), hintVersions)
	}
	r := &running{domain: d}
	if err := parseAnswer(answers[1], &r.nodes); err != nil {
		return source.Evidence{}, err
	}
	var v version
	if err := parseAnswer(answers[2], &v); err != nil {
		return source.Evidence{}, err
	}
	e := source.Evidence{QEMU: v.String()}
	if e.Disks, err = r.evidence(m.o.Family); err != nil {
		return source.Evidence{}, err
	}
	if e.Extras, err = d.extras(); err != nil {
		return source.Evidence{}, err
	}
	m.running = r
	return e, nil
}

// checkLocal refuses a libvirt of another host.
func checkLocal(uri string) error {
	u, err := url.Parse(uri)
	if err != nil {
		return unusable(uri, fmt.Errorf("it is no URI of libvirt: %w", err), "qemu:///system is the usual one")
	}
	_, transport, _ := strings.Cut(u.Scheme, "+")
	if u.Host != "" || transport != "" && transport != "unix" {
		return unusable(uri, fmt.Errorf("%w: it runs on another host", ErrDomain), "run qbackup there: disks are read where they are used")
	}
	return nil
}

// lookUp finds the UUID of the domain. virsh itself takes a name that is a number for
// a running domain's id.
func (m *Machine) lookUp(ctx context.Context) (string, error) {
	list, err := m.virsh.do(ctx, []string{"list", "--all", "--uuid", "--name"})
	if err != nil {
		return "", err
	}
	found := ""
	for line := range strings.Lines(list) {
		uuid, name, ok := strings.Cut(strings.Trim(line, "\n"), " ")
		switch {
		case !ok:
		case strings.TrimSpace(name) == m.o.Domain:
			return uuid, nil
		case uuid == strings.ToLower(m.o.Domain):
			found = uuid
		}
	}
	if found == "" {
		return "", unusable(m.what(), fmt.Errorf("%w: it is not defined here", ErrDomain), "`virsh list --all` shows the names")
	}
	return found, nil
}

// lookAttempts is how often a domain is looked at that starts or ends meanwhile.
const lookAttempts = 5

// look reads what runs, or what would, and its state.
func (m *Machine) look(ctx context.Context, uuid string) (*domain, error) {
	for range lookAttempts {
		answers, err := m.virsh.all(ctx, []string{"dumpxml", "--domain", uuid}, []string{"domstate", "--domain", uuid, "--reason"},
			[]string{"dumpxml", "--domain", uuid, "--inactive"})
		if err != nil {
			return nil, err
		}
		d, err := parseDomain(answers[0])
		if err != nil {
			return nil, unusable(m.what(), err, "")
		}
		d.state, d.definition = parseState(answers[1]), answers[2]
		if d.state.runs() != (d.id != 0) {
			if err := pause(ctx, lookPause); err != nil {
				return nil, err
			}
			continue
		}
		if err := d.state.check(m.what()); err != nil {
			return nil, err
		}
		return d, m.findVolumes(ctx, d)
	}
	return nil, unusable(m.what(), fmt.Errorf("%w: it starts and ends", source.ErrChanged), "run the backup again")
}

// findVolumes asks libvirt where the volumes of its pools lie.
func (m *Machine) findVolumes(ctx context.Context, d *domain) error {
	for i := range d.disks {
		one := &d.disks[i]
		if one.volume == "" {
			continue
		}
		path, err := m.virsh.do(ctx, []string{"vol-path", "--pool", one.pool, "--vol", one.volume})
		if stop := ctx.Err(); stop != nil {
			return stop
		}
		one.path = strings.TrimSpace(path)
		if err == nil && !strings.HasPrefix(one.path, "/") {
			err = fmt.Errorf("%w: volume %s of pool %s is no file of this host", ErrDisk, one.volume, one.pool)
		}
		if err != nil && one.err == nil {
			one.err = unusable("disk "+one.target, err, "")
		}
	}
	return nil
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Freeze sets the point in time.
func (m *Machine) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	if run.IsZero() {
		return nil, errors.New("freeze: a run without id")
	}
	var c source.Cut
	var err error
	switch {
	case m.off != nil:
		c, err = m.freezeOff(ctx, run, bases)
	case m.running != nil:
		c, err = m.freezeRunning(ctx, run, bases)
	default:
		err = errors.New("the domain was not inspected")
	}
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", m.what(), explain(m.what(), err))
	}
	return c, nil
}
