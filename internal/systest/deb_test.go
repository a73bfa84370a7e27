package systest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// build makes the packages of a version, twice with equal bytes, and copies the deb to where the container sees it.
func (c *container) build(version string) (path string) {
	c.t.Helper()
	cmd := exec.Command("../../scripts/package")
	cmd.Env = append(os.Environ(), "VERSION="+version, "DIST="+c.shared)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("make packages: %v\n%s", err, out)
	}
	rpms, err := filepath.Glob(filepath.Join(c.shared, "qbackup-"+version+"*.rpm"))
	if err != nil || len(rpms) != 1 {
		c.t.Fatalf("rpm: %v, %v", rpms, err)
	}
	return "/mnt/qbackup_" + version + "_amd64.deb"
}

const (
	image   = "/var/lib/libvirt/images/web1.qcow2"
	setting = `repository: /srv/backup/r
metrics: {listen: "unix:/run/qbackup/metrics.sock"}
prune: {schedule: "@daily"}
`
)

type point struct {
	Point string `json:"point"`
	Disks []struct {
		Mode string `json:"mode"`
	} `json:"disks"`
}

func (c *container) points() (list []point) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.run("qbackup", "points", "--json")), &list); err != nil {
		c.t.Fatal(err)
	}
	return list
}

func (c *container) status() string {
	return c.run("systemctl", "show", "qbackup", "--property=StatusText,ActiveState,MainPID")
}

// guest writes to the image, as a machine does while it runs.
func (c *container) guest(command string) {
	c.t.Helper()
	testtool.Run(c.t, "qemu-io", "-c", command, c.path(image))
}

func TestTheDebianPackageDoesItsWorkUnderItsUnits(t *testing.T) {
	c := boot(t)
	first := c.build("1.0.0")
	c.run("dpkg", "--install", first)
	if out := c.run("qbackup", "version"); !strings.Contains(out, "1.0.0") {
		t.Errorf("version: %s", out)
	}
	c.checkUnits()

	// A host administrator's first minutes.
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(c.shared, "web1.qcow2"), "64M")
	c.run("sh", "-c", "mkdir -p /var/lib/libvirt/images /srv/backup && cp /mnt/web1.qcow2 "+image+" && chmod 0600 "+image+" && chown qbackup /srv/backup")
	c.write("/etc/qbackup/qbackup.yaml", setting+"machines:\n  - images: ["+image+"]\n")
	c.guest("write -P 1 0 8M")
	c.run("qbackup", "config", "check")
	c.run("runuser", "-u", "qbackup", "--", "qbackup", "init")

	// The timer's service: full, then incremental; the bitmap is reset each time.
	c.run("systemctl", "start", "qbackup-run.service")
	c.guest("write -P 2 1M 64k")
	c.run("systemctl", "start", "qbackup@web1.service")
	points := c.points()
	if len(points) != 2 || points[0].Disks[0].Mode != "full" || points[1].Disks[0].Mode != "incremental" {
		t.Fatalf("%+v", points)
	}
	if n := c.dirty(); n != 0 {
		t.Errorf("%d bytes are dirty after a backup", n)
	}
	for _, timer := range []string{"qbackup-run.timer", "qbackup@web1.timer"} {
		c.run("systemctl", "enable", "--now", timer)
		if out := c.run("systemctl", "list-timers", "--no-pager"); !strings.Contains(out, timer) {
			t.Errorf("%s does not wait: %s", timer, out)
		}
		c.run("systemctl", "disable", "--now", timer)
	}
	c.service()
	c.upgrade()
	c.removal()
}

// checkUnits looks at the units as systemd does.
func (c *container) checkUnits() {
	c.t.Helper()
	units := []string{"qbackup.service", "qbackup-run.service", "qbackup@web1.service"}
	c.run(append([]string{"systemd-analyze", "verify", "--man=no", "qbackup-run.timer", "qbackup@web1.timer"}, units...)...)
	for _, unit := range units {
		out := c.run("systemd-analyze", "security", "--no-pager", "--threshold=19", unit)
		level := regexp.MustCompile(`Overall exposure level for \S+: \S+`).FindString(out)
		c.t.Log(level)
	}
	for _, unit := range []string{"qbackup.service", "qbackup-run.timer"} {
		if out, _ := c.try("systemctl", "is-enabled", unit); strings.TrimSpace(out) != "disabled" {
			c.t.Errorf("after the installation %s is %s", unit, out)
		}
	}
}

func (c *container) dirty() int64 {
	c.t.Helper()
	var machines []struct {
		Next []struct {
			Bytes int64 `json:"bytes"`
		} `json:"next"`
	}
	out := c.run("qbackup", "status", "--json")
	if err := json.Unmarshal([]byte(out), &machines); err != nil || len(machines) != 1 || len(machines[0].Next) != 1 {
		c.t.Fatalf("%v: %s", err, out)
	}
	return machines[0].Next[0].Bytes
}

// service runs it: reload, prune, stop.
func (c *container) service() {
	c.t.Helper()
	c.run("systemctl", "enable", "--now", "qbackup.service")
	if out := c.status(); !strings.Contains(out, "ActiveState=active") {
		c.t.Fatalf("the service is %s", out)
	}
	// A new configuration: what was not scheduled is now due at each minute, and old points go.
	c.run("sh", "-c", "touch -d '40 days ago' /srv/backup/r/points/web1/*")
	c.guest("write -P 3 2M 64k")
	c.write("/etc/qbackup/qbackup.yaml", setting+"defaults: {schedule: \"* * * * *\", keep: {last: 1}}\nmachines:\n  - images: ["+image+"]\n")
	c.run("systemctl", "reload", "qbackup.service")
	c.until("the third point, and the end of the others", func() bool {
		points := c.points()
		return len(points) == 1 && points[0].Disks[0].Mode == "incremental"
	})
	// The service prunes daily: as if yesterday was long ago.
	c.run("sh", "-c", "touch -d '8 days ago' /srv/backup/r/forgotten/web1/*; ls /srv/backup/r/data/web1/*/* | wc -l > /mnt/before")
	c.run("systemctl", "stop", "qbackup.service")
	c.run("sh", "-c", `for f in /var/lib/qbackup/results/*/overall.json; do sed -i 's/"scheduled":"[^"]*"/"scheduled":"2020-01-01T00:00:00Z"/; s/"end":"[^"]*"/"end":"2020-01-01T00:00:01Z"/' $f; done`)
	c.run("systemctl", "start", "qbackup.service")
	c.until("the prune", func() bool {
		_, err := c.try("sh", "-c", `test $(ls /srv/backup/r/data/web1/*/* | wc -l) -lt $(cat /mnt/before)`)
		return err == nil
	})
	c.run("qbackup", "verify", "--data")
	c.run("qbackup", "restore", "--machine", "web1", "--format", "raw", "--to", "/mnt/restored")
	testtool.Run(c.t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", filepath.Join(c.shared, "restored"), c.path(image))
	c.run("systemctl", "stop", "qbackup.service")
	if out, _ := c.try("systemctl", "is-failed", "qbackup.service"); strings.TrimSpace(out) != "inactive" {
		c.t.Errorf("after a stop the service is %s", out)
	}
}

// upgrade installs another version while a backup runs, which goes on; then the new version runs.
func (c *container) upgrade() {
	c.t.Helper()
	second := c.build("1.1.0")
	configuration := setting + "defaults: {schedule: \"* * * * *\"}\nlimits: {upload: 500kB/s}\nmachines:\n  - images: [" + image + "]\n"
	c.write("/etc/qbackup/qbackup.yaml", configuration)
	noise := filepath.Join(c.shared, "noise")
	testtool.Run(c.t, "dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=8", "status=none")
	c.guest("write -s " + noise + " 16M 8M")
	before := len(c.points())
	c.run("systemctl", "start", "qbackup.service")
	c.until("a backup that runs", func() bool { return strings.Contains(c.status(), "StatusText=1 running") })
	c.run("dpkg", "--install", second)
	status := c.status()
	if !strings.Contains(status, "StatusText=1 running") {
		c.t.Errorf("the upgrade came too late, or has cut the backup: %s", status)
	}
	c.until("the point of the backup that the upgrade met", func() bool { return len(c.points()) > before })
	pid := regexp.MustCompile(`MainPID=(\d+)`).FindStringSubmatch(status)[1]
	c.until("the new version", func() bool {
		now := c.status()
		if strings.Contains(now, "MainPID="+pid+"\n") || !strings.Contains(now, "ActiveState=active") {
			return false
		}
		return true
	})
	if log := c.run("journalctl", "--no-pager", "-u", "qbackup"); strings.Contains(log, "status=interrupted") || !strings.Contains(log, "another version was installed") {
		c.t.Errorf("the backup was cut short, or the service did not give way:\n%s", log)
	}
	if out := c.run("qbackup", "version"); !strings.Contains(out, "1.1.0") {
		c.t.Errorf("version: %s", out)
	}
	if out := c.run("cat", "/etc/qbackup/qbackup.yaml"); out != configuration {
		c.t.Errorf("the configuration is another one: %s", out)
	}
}

// removal leaves the operator's things.
func (c *container) removal() {
	c.t.Helper()
	began := time.Now()
	c.run("dpkg", "--remove", "qbackup")
	c.t.Logf("removed in %s", time.Since(began).Round(time.Second))
	for _, path := range []string{"/etc/qbackup/qbackup.yaml", "/var/lib/qbackup/results", "/srv/backup/r/points"} {
		c.run("test", "-e", path)
	}
	for _, path := range []string{"/usr/bin/qbackup", "/usr/lib/systemd/system/qbackup.service"} {
		c.run("test", "!", "-e", path)
	}
	if out := c.run("sh", "-c", "cat /proc/[0-9]*/comm"); strings.Contains(out, "qbackup") {
		c.t.Errorf("it still runs:\n%s", out)
	}
	if out, _ := c.try("systemctl", "is-active", "qbackup.service"); strings.TrimSpace(out) != "inactive" {
		c.t.Errorf("the service is %s", out)
	}
}
