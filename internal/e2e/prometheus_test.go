package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/store/storetest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// prometheus is a real one that scrapes a service every second.
type prometheus struct {
	t    *testing.T
	base string
}

// freePort is one that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) prometheus(target, rules string) *prometheus {
	t := w.t
	t.Helper()
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nscrape_configs:\n  - job_name: qbackup\n    static_configs: [{targets: [%q]}]\n", target)
	if rules != "" {
		config += fmt.Sprintf("rule_files: [%s]\n", rules)
	}
	file := w.path("prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freePort(t)
	c := exec.Command(testtool.Need(t, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+w.path("tsdb"), "--web.listen-address="+address, "--log.level=error")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	p := &prometheus{t, "http://" + address}
	until(t, "prometheus scrapes", func() bool {
		ok, err := p.hasData("up")
		return ok && err == nil
	})
	return p
}

// ask asks the API, and fills v from the data of its answer.
func (p *prometheus) ask(path string, query url.Values, v any) error {
	response, err := http.Get(p.base + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return json.Unmarshal(answer.Data, v)
}

// hasData tells whether a query had an answer within the last minutes.
func (p *prometheus) hasData(query string) (bool, error) {
	now := time.Now()
	var data struct{ Result []json.RawMessage }
	err := p.ask("/api/v1/query_range", url.Values{
		"query": {query}, "start": {fmt.Sprint(now.Add(-3 * time.Minute).Unix())}, "end": {fmt.Sprint(now.Unix())}, "step": {"1"},
	}, &data)
	return len(data.Result) > 0, err
}

// fires tells whether an alert is firing.
func (p *prometheus) fires(name string) bool {
	var data struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	if p.ask("/api/v1/alerts", nil, &data) != nil {
		return false
	}
	for _, a := range data.Alerts {
		if a.Labels["alertname"] == name && a.State == "firing" {
			return true
		}
	}
	return false
}

// until waits for something.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// queriesOf are those of a dashboard, with values for its variables.
func queriesOf(t *testing.T, file string) (list []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			list = append(list, strings.NewReplacer("$instance", ".*", "$machine", "a", "$__rate_interval", "30s").Replace(q.Expr))
		}
	}
	return list
}

func TestEveryQueryOfTheDashboardsIsAnswered(t *testing.T) {
	w := newWorld(t)
	image, second := w.path("a.qcow2"), w.path("b.qcow2")
	noise := w.path("noise")
	testtool.Run(t, "dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=8", "status=none")
	for _, i := range []string{image, second} {
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", i, "64M")
		testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -s "+noise+" 1M 8M", i)
	}
	address := freePort(t)
	// Two disks, and later one: the missing one is an alarm. Slow enough to be seen at work.
	configure := func(images string) string {
		text := fmt.Sprintf("repository: %s\nmetrics: {listen: %q}\nlimits: {upload: 4MB/s}\ndefaults: {schedule: \"@daily\", objective: 26h, keep: {last: 10}}\nmachines:\n  - {name: a, images: [%s]}\n", w.repo, address, images)
		path := w.path("q.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := configure(image + ", " + second)
	p := w.prometheus(address, "")
	a := w.agent(config)
	a.heard("STATUS=1 running")
	a.heard("STATUS=0 running, 0 waiting, next a")
	configure(image)
	_ = a.Process.Signal(syscall.SIGHUP)
	a.heard("READY=1")
	w.ok("--config", config, "run", "a")
	w.ok("--config", config, "verify")
	for _, file := range []string{"fleet.json", "machine.json"} {
		for _, query := range queriesOf(t, filepath.Join("../../configs/grafana", file)) {
			until(t, file+": "+query, func() bool {
				ok, err := p.hasData(query)
				if err != nil {
					t.Log(err)
				}
				return ok
			})
		}
	}
	_ = a.Process.Signal(syscall.SIGTERM)
	if err := a.Wait(); err != nil {
		t.Errorf("%v: %s", err, a.stderr)
	}
}

func TestAnAlertComesWhenTheStoreGoesAndClearsWhenItIsBack(t *testing.T) {
	server := storetest.S3(t)
	w := newWorld(t)
	w.use(server, "")
	w.ok("init")
	image := w.path("a.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
	rules, err := os.ReadFile("../../configs/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	// The rules themselves, without their patience.
	at := w.path("rules.yml")
	if err := os.WriteFile(at, regexp.MustCompile(`(?m)^(\s+for:).*$`).ReplaceAll(rules, []byte("$1 0s")), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freePort(t)
	config := w.path("q.yaml")
	text := fmt.Sprintf("metrics: {listen: %q}\ndefaults: {schedule: \"@daily\", objective: 26h}\nmachines:\n  - {images: [%s]}\n", address, image)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.prometheus(address, at)
	a := w.agent(config)
	a.heard("STATUS=0 running, 0 waiting, next a")
	until(t, "the first point is seen", func() bool {
		ok, err := p.hasData(`qbackup_last_attempt_status{status="ok"} == 1`)
		return ok && err == nil
	})
	if p.fires("QbackupLastRunFailed") {
		t.Error("an alert without a failure")
	}
	server.Stop()
	if r := w.run("--config", config, "run", "--retry-for", "1s", "a"); r.code == 0 {
		t.Fatal("a backup without a store")
	}
	until(t, "the alert", func() bool { return p.fires("QbackupLastRunFailed") })
	server.Start(t)
	w.ok("--config", config, "run", "a")
	until(t, "the alert clears", func() bool { return !p.fires("QbackupLastRunFailed") })
	_ = a.Process.Signal(syscall.SIGTERM)
	if err := a.Wait(); err != nil {
		t.Errorf("%v: %s", err, a.stderr)
	}
	until(t, "the service is missed", func() bool { return p.fires("QbackupNotRunning") })
}
