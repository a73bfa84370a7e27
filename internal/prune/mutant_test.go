package prune

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mutated tells the simulation that a rule was taken out.
const mutated = "QBACKUP_TEST_MUTATED"

// mutantSeeds is how long the simulation looks for the harm.
const mutantSeeds = 300

const root = "../.."

// edit replaces a text in a file, which must have it once.
type edit struct{ file, old, new string }

const (
	lookFile  = "internal/prune/look.go"
	beginFile = "internal/repo/run.go"
	markFile  = "internal/repo/format/mark.go"
)

// oneLook leaves out the second one, which covers up for other rules.
var oneLook = edit{"internal/prune/prune.go", "second, err := m.look(ctx)", "second, err := first, error(nil)"}

// deadWithoutSlot lets data go of runs that have no slot and are not held.
var deadWithoutSlot = []edit{
	{lookFile, "dead := func(run ident.RunID) bool { return l.gone[run] || l.aborted[run] }", `dead := func(run ident.RunID) bool {
		_, taken := l.listed[run]
		return l.gone[run] || l.aborted[run] || !taken && !slices.Contains(l.held, run)
	}`},
	{lookFile, "case l.aborted[run]:", "case l.aborted[run], l.living[run] == nil && !slices.Contains(l.held, run):"},
}

// Each of these is a shortcut that looks harmless. The simulation, or a test of one case, must find what it costs.
func TestEachRuleIsMissedWhenItIsTakenOut(t *testing.T) {
	const simulation, cases = "^TestNobodyLosesAPoint", "^Test(A|Nothing)"
	for name, m := range map[string]struct {
		run   string
		edits []edit
	}{
		"bases of runs that live are not held":   {cases, []edit{{lookFile, "l.bases = append(l.bases, b.Run)", "_ = b"}}},
		"a run does not look for tombstones":     {cases, []edit{{beginFile, "if gone {", "if gone && false {"}}},
		"a dead run's slot is not taken from it": {simulation, append([]edit{{lookFile, "state, err = m.abort(ctx, run)", "continue"}}, deadWithoutSlot...)},
		"data is listed last": {simulation, append([]edit{oneLook, {lookFile, "if err := m.judge(ctx, l); err != nil {", `if l.data, err = m.list(ctx, format.MachineDataPrefix(m.name), isDataKind); err != nil {
		return nil, err
	}
	if err := m.judge(ctx, l); err != nil {`}}, deadWithoutSlot...)},
		"slots are deleted with the data": {simulation, []edit{{lookFile, `m.add(l, run, s, "its run was aborted", &m.reach)`,
			`m.add(l, run, s, "its run was aborted", &m.reach)
				l.victims = append(l.victims, Victim{Key: format.PointKey(m.name, run)})`}}},
		"tombstones are deleted with the data": {simulation, []edit{{lookFile, `case l.gone[run]:
`, `case l.gone[run]:
				l.victims = append(l.victims, Victim{Key: format.TombstoneKey(m.name, run, 0)})
`}}},
		"there is no grace":                          {cases, []edit{{lookFile, "m.now.Sub(tomb.Since) >= format.Grace", "m.now.Sub(tomb.Since) >= 0*format.Grace"}}},
		"a tombstone can be taken back for ever":     {simulation, []edit{{markFile, "standing(marks, Grace-GraceMargin)", "standing(marks, 0)"}}},
		"what other points need is not looked for":   {simulation, []edit{{lookFile, "!needed.has(run, o)", "true"}}},
		"a slot that is not listed is not asked for": {cases, []edit{{lookFile, "state, err := m.state(ctx, run)", "state, err := repo.SlotAbsent, error(nil)"}}},
		"there is no second look":                    {cases, []edit{oneLook}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := exec.Command("go", "test", "-vet=off", "-overlay", overlay(t, m.edits), "-run", m.run, "-count=1", ".")
			c.Env = append(os.Environ(), mutated+"=1")
			out, err := c.CombinedOutput()
			switch {
			case err == nil:
				t.Errorf("nothing misses it:\n%s", out)
			case !strings.Contains(string(out), "_test.go:"):
				t.Errorf("it failed in another way:\n%s", out)
			default:
				t.Logf("missed by %s", failed.FindString(string(out)))
			}
		})
	}
}

// failed finds the test that failed.
var failed = regexp.MustCompile(`Test[A-Z]\w+`)

// overlay writes the changed files, and tells the compiler of them.
func overlay(t *testing.T, edits []edit) string {
	t.Helper()
	texts := map[string]string{}
	for _, e := range edits {
		text, changed := texts[e.file]
		if !changed {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if strings.Count(text, e.old) != 1 {
			t.Fatalf("%s does not have once: %s", e.file, e.old)
		}
		texts[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	replace := map[string]string{}
	dir := t.TempDir()
	for file, text := range texts {
		from, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
