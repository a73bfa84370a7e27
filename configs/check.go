package configs

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// Checks are what this package cannot know. A nil function finds nothing wrong. Their
// errors must not repeat what they were given.
type Checks struct {
	Place    func(repository string) error
	Machine  func(name string) error
	Schedule func(expression string) error
}

func run(check func(string) error, text string) error {
	if check == nil || text == "" {
		return nil
	}
	return check(text)
}

// check looks at what the values mean together.
func (d *decoder) check(c *Config, checks Checks) {
	d.checkRepository(c, checks)
	if c.Credentials.File != "" && c.Credentials.Systemd != "" {
		d.faultAt("credentials.systemd", "there is a file, too; say one of both")
	}
	d.absolute("credentials.file", c.Credentials.File)
	d.absolute("state_dir", c.StateDir)
	d.absolute("scratch_dir", c.ScratchDir)
	d.settings("defaults", c.Defaults, checks)
	d.machines(c.Machines, checks)
	if c.Prune.Schedule != PruneOff {
		if err := run(checks.Schedule, c.Prune.Schedule); err != nil {
			d.faultAt("prune.schedule", "%v", err)
		}
	}
	d.metrics(c.Metrics)
	d.timetable("limits.upload", c.Limits.Upload)
	if c.Limits.Parallel < 1 {
		d.faultAt("limits.parallel", "no machine could be backed up; say 1 or more")
	}
}

func (d *decoder) timetable(key string, t Timetable) {
	for i, p := range t {
		at := fmt.Sprintf("%s[%d]", key, i)
		from, to := d.at[at+".from"] != nil, d.at[at+".to"] != nil
		switch {
		case d.at[at] == nil || d.faulty(at): // one rate for always, or no period yet
		case d.at[at+".rate"] == nil:
			d.faultAt(at, "has no rate")
		case from != to:
			d.faultAt(at, "says from or to alone; say both, or none for all day")
		case from && p.From == p.To:
			d.faultAt(at, "from and to are the same time; leave both out for all day")
		}
	}
}

// faulty tells whether a fault was found in what has this key.
func (d *decoder) faulty(key string) bool {
	return slices.ContainsFunc(d.faults, func(f Fault) bool { return strings.HasPrefix(f.Key, key) })
}

func (d *decoder) checkRepository(c *Config, checks Checks) {
	if u, err := url.Parse(strings.TrimPrefix(c.Repository, "s3:")); err == nil && u.User != nil {
		d.faultAt("repository", "a secret does not stand in this file; take user and password out of the address, and name credentials.file or credentials.systemd")
		return
	}
	if err := run(checks.Place, c.Repository); err != nil {
		d.faultAt("repository", "%v", err)
	}
}

// absolute finds fault with a path that depends on where the program is started.
func (d *decoder) absolute(key, path string) {
	if path != "" && !filepath.IsAbs(path) {
		d.faultAt(key, "must be an absolute path")
	}
}

func (d *decoder) settings(at string, s Settings, checks Checks) {
	// What a machine has from the defaults was looked at there.
	own := func(key string) bool { return d.at[at+"."+key] != nil }
	if err := run(checks.Schedule, s.Schedule); err != nil && own("schedule") {
		d.faultAt(at+".schedule", "%v", err)
	}
	for _, list := range []struct {
		key   string
		paths []string
	}{{"allow_dirs", s.AllowDirs}, {"hooks.before", s.Hooks.Before}, {"hooks.after", s.Hooks.After}} {
		for i, path := range list.paths {
			if own(list.key) {
				d.absolute(fmt.Sprintf("%s.%s[%d]", at, list.key, i), path)
			}
		}
	}
}

func (d *decoder) machines(all []Machine, checks Checks) {
	names, images := map[string]int{}, map[string]int{}
	for i, m := range all {
		at := fmt.Sprintf("machines[%d]", i)
		d.machine(at, m, checks)
		if first, twice := names[m.Name]; twice && m.Name != "" {
			d.faultAt(at+".name", "machines[%d] has this name, too", first)
		} else {
			names[m.Name] = i
		}
		for _, image := range m.Images {
			path := imagePath(image)
			if first, twice := images[path]; twice {
				d.faultAt(at+".images", "machines[%d] has one of these images, too; an image belongs to one machine", first)
			}
			images[path] = i
		}
	}
}

// imagePath is the file of [NAME=][raw:]PATH.
func imagePath(image string) string {
	if name, path, ok := strings.Cut(image, "="); ok && !strings.Contains(name, "/") {
		image = path
	}
	return filepath.Clean(strings.TrimPrefix(image, "raw:"))
}

func (d *decoder) machine(at string, m Machine, checks Checks) {
	d.settings(at, m.Settings, checks)
	if err := run(checks.Machine, m.Name); err != nil {
		d.faultAt(at+".name", "%v", err)
	}
	for _, image := range m.Images {
		if !filepath.IsAbs(imagePath(image)) {
			d.faultAt(at+".images", "must be absolute paths")
		}
	}
	d.absolute(at+".qmp", m.QMP)
	d.absolute(at+".guest_agent", m.GuestAgent)
	d.absolute(at+".each", strings.TrimPrefix(m.Each, "raw:"))
	own := func(key string) bool { return d.at[at+"."+key] != nil }
	switch {
	case m.Each != "":
		d.alone(at, "each", own, "name", "images", "qmp", "guest_agent", "libvirt", "libvirt_uri", "except")
	case m.Libvirt != "":
		d.alone(at, "libvirt", own, "images", "qmp", "guest_agent", "hold")
		if own("name") && strings.ContainsAny(m.Libvirt, "*?[") {
			d.faultAt(at+".name", "a pattern finds several machines, which are called after their domains")
		}
	case m.QMP != "":
		d.alone(at, "qmp", own, "libvirt_uri", "except")
		if m.Name == "" {
			d.faultAt(at, "has no name; say name")
		}
	case len(m.Images) > 0:
		d.alone(at, "images", own, "guest_agent", "libvirt_uri", "except")
		if m.Name == "" && len(m.Images) > 1 {
			d.faultAt(at, "has no name and several images; say name")
		}
	case !d.faulty(at): // else its key may be one of those
		d.faultAt(at, "says no machine; say images, qmp, libvirt or each")
	}
	if m.Freeze == FreezeRequire && own("freeze") && m.Libvirt == "" && m.GuestAgent == "" {
		d.faultAt(at+".freeze", "require needs guest_agent")
	}
}

// alone finds fault with keys that mean nothing beside another.
func (d *decoder) alone(at, key string, own func(string) bool, others ...string) {
	for _, other := range others {
		if own(other) {
			d.faultAt(at+"."+other, "means nothing beside %s", key)
		}
	}
}

func (d *decoder) metrics(m Metrics) {
	d.absolute("metrics.textfile", m.Textfile)
	d.absolute("metrics.tls.certificate", m.TLS.Certificate)
	d.absolute("metrics.tls.key", m.TLS.Key)
	d.absolute("metrics.basic_auth.password_file", m.BasicAuth.PasswordFile)
	if (m.TLS.Certificate == "") != (m.TLS.Key == "") {
		d.faultAt("metrics.tls", "needs a certificate and a key")
	}
	if (m.BasicAuth.User == "") != (m.BasicAuth.PasswordFile == "") {
		d.faultAt("metrics.basic_auth", "needs a user and a password_file")
	}
	if path, ok := strings.CutPrefix(m.Listen, "unix:"); ok {
		d.absolute("metrics.listen", path)
	} else if _, _, err := net.SplitHostPort(m.Listen); err != nil && m.Listen != ListenOff {
		d.faultAt("metrics.listen", "not an address; write it as 127.0.0.1:9842, unix:/run/qbackup/metrics.sock or off")
	}
}
