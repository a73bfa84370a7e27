package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// dashboard is what the tests look at of one.
type dashboard struct {
	UID    string
	Panels []struct {
		ID         int
		Title      string
		Type       string
		Datasource struct{ UID string }
		GridPos    struct{ X, Y, W, H int }
		Targets    []struct {
			RefID, Expr string
			Datasource  struct{ UID string }
		}
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
}

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob("../configs/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}

// Expression is a query of a dashboard, with values for its variables.
func expression(text string) string {
	return strings.NewReplacer("$instance", ".*", "$machine", "web1", "$__rate_interval", "5m").Replace(text)
}

func TestDashboardsAreLaidOutWithoutOverlap(t *testing.T) {
	uids := map[string]bool{}
	for name, d := range dashboards(t) {
		if d.UID == "" || uids[d.UID] {
			t.Errorf("%s: uid %q", name, d.UID)
		}
		uids[d.UID] = true
		ids := map[int]bool{}
		taken := map[[2]int]string{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" {
				t.Errorf("%s: panel %d %q", name, p.ID, p.Title)
			}
			ids[p.ID] = true
			g := p.GridPos
			if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
				t.Errorf("%s: panel %q lies outside", name, p.Title)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: panels %q and %q overlap", name, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %q has no query, or a data source of its own", name, p.Title)
			}
			var refs []string
			for _, q := range p.Targets {
				if q.Datasource.UID != "${datasource}" || slices.Contains(refs, q.RefID) {
					t.Errorf("%s: panel %q: query %s", name, p.Title, q.RefID)
				}
				refs = append(refs, q.RefID)
			}
		}
	}
}

var metricName = regexp.MustCompile(`qbackup_[a-z_]+`)

// exported tells whether a name in a query is one of ours.
func exported(name string) bool {
	for _, m := range all() {
		if name == m.name || m == storeLatency && name == m.name+"_bucket" {
			return true
		}
	}
	return false
}

func TestEveryQueryIsRightAndOfWhatIsExported(t *testing.T) {
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for name, d := range dashboards(t) {
		var texts []string
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				texts = append(texts, q.Expr)
				rules = append(rules, rule{fmt.Sprintf("panel_%d_%s", len(rules), q.RefID), expression(q.Expr)})
			}
		}
		for _, v := range d.Templating.List {
			texts = append(texts, v.Definition)
		}
		for _, text := range texts {
			for _, metric := range metricName.FindAllString(text, -1) {
				if !exported(metric) {
					t.Errorf("%s: %s is not exported: %s", name, metric, text)
				}
			}
		}
	}
	// JSON is YAML.
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboards", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testtool.Need(t, "promtool"), "check", "rules", "--lint=none", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAlertsComeAndClearAsTheyShould(t *testing.T) {
	promtool := testtool.Need(t, "promtool")
	text, err := os.ReadFile("../configs/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range metricName.FindAllString(string(text), -1) {
		if !exported(metric) {
			t.Errorf("%s is not exported", metric)
		}
	}
	manual, err := os.ReadFile("../docs/operations/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("../configs/prometheus/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)^\s+- alert: (\S+)$`).FindAllStringSubmatch(string(text), -1)
	if len(alerts) < 9 {
		t.Errorf("%d alerts", len(alerts))
	}
	for _, a := range alerts {
		if !strings.Contains(string(manual), "\n## "+a[1]+"\n") {
			t.Errorf("%s is not in the manual", a[1])
		}
		// Once it comes, and before and after it does not.
		if n := strings.Count(string(tests), "alertname: "+a[1]); n < 3 {
			t.Errorf("%s is tested %d times", a[1], n)
		}
	}
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}} {
		c := exec.Command(promtool, args...)
		c.Dir = "../configs/prometheus"
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	check := exec.Command(promtool, "check", "config", "scrape.yml")
	check.Dir = "../configs/prometheus"
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
