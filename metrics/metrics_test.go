package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/internal/testtool"
	"github.com/qbackup/qbackup/upload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write testdata/exposition.txt and docs/operations/metrics.md anew")

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// halfWay is a backup that runs.
type halfWay struct{ pipeline upload.PipelineStats }

func (h *halfWay) Pipeline() *upload.PipelineStats { return &h.pipeline }

func (h *halfWay) ScratchBytes() int64 { return 64 << 20 }

func (h *halfWay) Disks() []agent.DiskProgress {
	d := agent.DiskProgress{Name: "vda", Mode: format.ModeIncremental, Stats: new(upload.DiskStats)}
	d.Stats.Total.Store(2 << 20)
	d.Stats.Passed.Store(1 << 20)
	return []agent.DiskProgress{d}
}

// example is a host that knows a bit of everything.
func example(t testing.TB) Source {
	t.Helper()
	local, err := state.Open(t.TempDir(), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	results := local.Results("/srv/a")
	remember := func(e agent.Ending) {
		e.End = e.Start.Add(90 * time.Second)
		if err := agent.Remember(results, e); err != nil {
			t.Fatal(err)
		}
	}
	disks := []agent.DiskSummary{
		{Name: "vda", Mode: format.ModeIncremental, SizeBytes: 100 << 20, DirtyBytes: 3 << 20, ReadBytes: 2 << 20, ZeroBytes: 1 << 20, SkippedBytes: 4096, StoredBytes: 1 << 20},
		{Name: "vdb", Mode: format.ModeRescan, Reason: agent.ReasonInUse, SizeBytes: 10 << 20, DirtyBytes: 10 << 20, ReadBytes: 9 << 20, StoredBytes: 7},
	}
	remember(agent.Ending{Machine: "web1", Start: noon.Add(-time.Hour), Summary: agent.Summary{Point: ident.RunID{1}, Time: noon.Add(-time.Hour), Disks: disks, FreezeSeconds: 0.25}})
	remember(agent.Ending{Machine: "web1", Start: noon, Err: errors.New("no route to the store"), Class: "failed"})
	remember(agent.Ending{Machine: "db", Start: noon, Summary: agent.Summary{
		Point: ident.RunID{2}, Time: noon, Disks: disks[:1], Alarms: []agent.Alarm{{Kind: agent.AlarmSample, Text: "look"}}, NotReset: []agent.DiskNotReset{{Disk: "vda"}},
	}})
	if err := results.Update("db", func(r *state.Result) {
		r.Verified = state.Verified{Time: noon, DamagedObjects: 2, DamagedPoints: 1}
		r.Kept = state.Kept{Time: noon, Points: 11, Oldest: noon.AddDate(0, -1, 0), Newest: noon, Forgotten: 40, StoredBytes: 5 << 30, PrunedAt: noon}
	}); err != nil {
		t.Fatal(err)
	}
	if err := results.UpdateOverall(func(o *state.Overall) {
		o.Prune = state.Prune{End: noon, Error: "not everything could be pruned", Objects: 321, Bytes: 1 << 30, RunsAborted: 2}
		o.Store = state.StoreCounters{Requests: map[string]uint64{"put ok": 12, "get transient": 3}, Retries: 3, BytesSent: 4096, BytesReceived: 77}
	}); err != nil {
		t.Fatal(err)
	}
	counted := new(observe.Stats)
	s := observe.New(mem.New(), counted)
	if err := s.Put(t.Context(), "a", store.NewBody(nil), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return Source{
		Version: "1.2.3", Results: results.Machines, Overall: results.Overall,
		Machines:   func() []Machine { return []Machine{{"web1", 26 * time.Hour}, {"db", 5 * time.Hour}, {"new", 0}} },
		Problems:   func() int { return 1 },
		Unassigned: func() []string { return []string{"Forgotten One"} },
		Running:    func() []Running { return []Running{{Machine: "web1", Since: noon, Stats: new(halfWay)}} },
		Next: func() []Next {
			return []Next{{Machine: "web1", Looked: noon, Disks: []agent.DiskForecast{{Name: "vda", Mode: format.ModeIncremental, Bytes: 3 << 20}, {Name: "vdb", Mode: format.ModeRescan, Reason: agent.ReasonInUse, Bytes: 10 << 20}}}}
		},
		Probe: func() (state.Probe, bool) { return state.Probe{Time: noon, CreateOnly: true}, true },
		Store: counted,
	}
}

func exposition(t testing.TB, s Source) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(New(s))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestTheExpositionIsWhatItWas(t *testing.T) {
	text := exposition(t, example(t))
	// How long something took, and with which Go, is another each time.
	var lines []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "qbackup_store_request_duration_seconds_sum") && !strings.HasPrefix(line, "qbackup_build_info") && !strings.HasPrefix(line, "qbackup_store_request_duration_seconds_bucket{operation=\"put\"") {
			lines = append(lines, line)
		}
	}
	golden(t, "testdata/exposition.txt", strings.Join(lines, ""))
	for _, m := range all() {
		if !strings.Contains(text, "# HELP "+m.name+" ") {
			t.Errorf("%s is not in the example", m.name)
		}
	}
}

func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != text {
		t.Errorf("%s differs (%v); go test ./metrics -update writes it:\n%s", path, err, text)
	}
}

func TestPromtoolFindsNoFault(t *testing.T) {
	check := exec.Command(testtool.Need(t, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(exposition(t, example(t)))
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTheManualListsEveryMetric(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Metrics\n\n" +
		"The service serves these at `metrics.listen` (by default `127.0.0.1:9842/metrics`). `qbackup run` and `qbackup backup` write them to `metrics.textfile`, if there is one, for\n" +
		"node_exporter's textfile collector: all but those whose names begin with `qbackup_running_` or `qbackup_next_`, and the latencies. Counters go on over runs and restarts. No scrape makes a request to the store.\n\n" +
		"| metric | labels | meaning |\n|---|---|---|\n")
	for _, m := range all() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.name, strings.Join(m.labels, ", "), m.help)
	}
	golden(t, "../docs/operations/metrics.md", b.String())
}

func TestAScrapeAsksTheStoreNothing(t *testing.T) {
	s := example(t)
	before := exposition(t, s)
	if after := exposition(t, s); after != before {
		t.Error("a scrape changes what is counted")
	}
	for v := range observe.Verbs {
		if n := s.Store.Calls(v, observe.OK); v != observe.Put && n > 0 {
			t.Errorf("%d calls of %s", n, v)
		}
	}
}

func get(t *testing.T, client *http.Client, url, user, password string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		request.SetBasicAuth(user, password)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func serve(t *testing.T, l Listen) *Server {
	t.Helper()
	s, err := Serve(l, New(example(t)), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestMetricsAreServedToThoseWhoMay(t *testing.T) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	s := serve(t, Listen{Address: "127.0.0.1:0"})
	base := "http://" + s.Address().String()
	if code, body := get(t, client, base+"/metrics", "", ""); code != 200 || !strings.Contains(body, `qbackup_objective_seconds{machine="web1"} 93600`) || !strings.Contains(body, "go_goroutines") {
		t.Errorf("%d: %s", code, body)
	}
	if code, body := get(t, client, base+"/healthz", "", ""); code != 200 || body != "ok\n" {
		t.Errorf("%d: %s", code, body)
	}
	if code, _ := get(t, client, base+"/else", "", ""); code != 404 {
		t.Errorf("%d", code)
	}
	if _, err := Serve(Listen{Address: s.Address().String()}, New(Source{}), nil); !errors.Is(err, ErrListen) || !strings.Contains(err.Error(), "is in use; another agent may serve there") {
		t.Error(err)
	}

	s = serve(t, Listen{Address: "127.0.0.1:0", User: "prometheus", Password: "sesame"})
	for user, want := range map[string]int{"prometheus sesame": 200, "prometheus other": 401, "other sesame": 401, "": 401} {
		name, password, _ := strings.Cut(user, " ")
		if code, _ := get(t, client, "http://"+s.Address().String()+"/metrics", name, password); code != want {
			t.Errorf("%q: %d, want %d", user, code, want)
		}
	}
}

func TestASocketThatADeadProcessLeftIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if _, err := Serve(Listen{Address: "unix:" + path}, New(Source{}), nil); !errors.Is(err, ErrListen) || !strings.Contains(err.Error(), "in use") {
		t.Error(err)
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, Listen{Address: "unix:" + path})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	if code, _ := get(t, client, "http://unix/metrics", "", ""); code != 200 {
		t.Errorf("%d", code)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestTLSNeedsAPairThatFits(t *testing.T) {
	if _, err := Serve(Listen{Address: "127.0.0.1:0", Certificate: "/no/such", Key: "/no/such"}, New(Source{}), nil); !errors.Is(err, ErrListen) || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestTheTextfileIsReplacedInOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qbackup.prom")
	for range 2 {
		if err := WriteFile(path, example(t)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), `qbackup_attempts_total{machine="web1",status="failed"} 1`) || strings.Contains(string(text), "bucket") || strings.Contains(string(text), "running") {
		t.Errorf("%v: %s", err, text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
	if err := WriteFile("/no/such/folder/q.prom", example(t)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
