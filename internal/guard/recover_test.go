package guard

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leave writes a marker as a dead guard leaves it.
func (w *world) leave(name string, change func(*note)) string {
	w.t.Helper()
	if err := os.MkdirAll(w.spec.Folder, 0o700); err != nil {
		w.t.Fatal(err)
	}
	m, err := writeMarker(w.spec.Folder, note{ID: "run-0", Name: name, Since: time.Now(), Action: w.spec.Actions[name]})
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := m.read()
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(&n)
		text, _ := json.Marshal(n)
		if err := os.WriteFile(m.path, text, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := m.leave(); err != nil {
		w.t.Fatal(err)
	}
	return m.path
}

func TestMarkersWithoutAGuard(t *testing.T) {
	w := newWorld(t, nil)
	if undone, err := Recover(t.Context(), w.spec.Folder, nil); undone != nil || err != nil {
		t.Fatalf("no folder: %v, %v", undone, err)
	}
	suspend := func() {
		if err := os.WriteFile(w.suspended, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	suspend()
	w.leave("suspend", nil)
	w.leave("freeze", nil)
	undone, err := Recover(t.Context(), w.spec.Folder, nil)
	if err != nil || len(undone) != 2 || undone[0].Name != "freeze" || undone[1].Name != "suspend" || undone[1].ID != "run-0" {
		t.Errorf("%v, %v", undone, err)
	}
	w.nothingIsLeft()

	// The host was restarted: what is suspended now was not suspended by us.
	suspend()
	w.leave("suspend", func(n *note) { n.Boot = "another" })
	if undone, err := Recover(t.Context(), w.spec.Folder, nil); len(undone) != 0 || err != nil || !w.isSuspended() || len(w.markers()) != 0 {
		t.Errorf("%v, %v, markers %v", undone, err, w.markers())
	}
	os.Remove(w.suspended)

	w.leave("freeze", func(n *note) { n.Version = 2 })
	if _, err := Recover(t.Context(), w.spec.Folder, nil); !errors.Is(err, ErrDamaged) || len(w.markers()) != 0 {
		t.Errorf("%v, markers %v", err, w.markers())
	}
}

func TestOneMarkerDoesNotHoldUpTheOthers(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Actions["broken"] = Action{Exec: &Exec{Do: []string{"true"}, Undo: []string{"false"}}}
	kept := w.leave("broken", nil)
	w.leave("freeze", nil)
	if err := os.WriteFile(filepath.Join(w.spec.Folder, "x-y.held"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other", ".held", "-x.held"} { // not ours
		if err := os.WriteFile(filepath.Join(w.spec.Folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("other", filepath.Join(w.spec.Folder, "a-link.held")); err != nil {
		t.Fatal(err)
	}
	undone, err := Recover(t.Context(), w.spec.Folder, nil)
	if len(undone) != 1 || undone[0].Name != "freeze" || !errors.Is(err, ErrNotUndone) || !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, %v", undone, err)
	}
	if got := w.markers(); len(got) != 5 {
		t.Errorf("left: %v", got)
	}
	if m, err := takeMarker(kept); err != nil {
		t.Errorf("the marker that stayed: %v", err)
	} else if err := m.leave(); err != nil {
		t.Error(err)
	}
}

func TestUnfinishedMarkersAreRubbishAfterAWhile(t *testing.T) {
	w := newWorld(t, nil)
	w.leave("freeze", nil)
	young, old := filepath.Join(w.spec.Folder, markerNew+"1"), filepath.Join(w.spec.Folder, markerNew+"2")
	for _, path := range []string{young, old} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-2 * newAge)
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), w.spec.Folder, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.markers(); len(got) != 1 || got[0] != filepath.Base(young) {
		t.Errorf("left: %v", got)
	}
}

func TestRecoverEndsWithItsContext(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Actions["slow"] = Action{Exec: &Exec{Do: []string{"true"}, Undo: []string{"sleep", "100"}}}
	w.leave("slow", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	started := time.Now()
	if _, err := Recover(ctx, w.spec.Folder, nil); !errors.Is(err, ErrNotUndone) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestServeIsOrderly(t *testing.T) {
	begin := `{"id": 1, "op": "begin", "spec": {"folder": "/none", "id": "x", "actions": {"a": {"exec": {"do": ["true"], "undo": ["true"]}}}}}` + "\n"
	for name, c := range map[string]struct{ say, want string }{
		"nothing":         {"", ""},
		"no JSON":         {"x\n", "wrong use"},
		"no operation":    {`{"id": 1, "op": "x"}` + "\n", "wrong use"},
		"hold too early":  {`{"id": 1, "op": "hold", "name": "a"}` + "\n", "out of order"},
		"begin twice":     {begin + begin, "out of order"},
		"a bad spec":      {`{"id": 1, "op": "begin", "spec": {}}` + "\n", "wrong use"},
		"no spec":         {`{"id": 1, "op": "begin"}` + "\n", "wrong use"},
		"another name":    {begin + `{"id": 2, "op": "hold", "name": "b"}` + "\n", "no action"},
		"no folder":       {begin + `{"id": 2, "op": "hold", "name": "a"}` + "\n", "not held"},
		"hold after done": {begin + `{"id": 2, "op": "done"}` + "\n" + `{"id": 3, "op": "hold", "name": "a"}` + "\n", "out of order"},
	} {
		var out strings.Builder
		if err := Serve(t.Context(), strings.NewReader(c.say), &out, Hooks{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(out.String(), c.want) || c.want == "" && out.Len() > 0 {
			t.Errorf("%s: it said %q", name, out.String())
		}
	}
	err := Serve(t.Context(), strings.NewReader(strings.Repeat("x", lineBytesMax+1)), io.Discard, Hooks{})
	if err == nil {
		t.Error("an endless line")
	}
}

func TestServeEndsWhatItHoldsWithItsContext(t *testing.T) {
	w := newWorld(t, nil)
	if err := os.MkdirAll(w.spec.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(w.spec)
	if err != nil {
		t.Fatal(err)
	}
	in, say := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- Serve(ctx, in, io.Discard, Hooks{}) }()
	_, _ = io.WriteString(say, `{"id": 1, "op": "begin", "spec": `+string(spec)+"}\n"+`{"id": 2, "op": "hold", "name": "suspend", "budget": 60000000000}`+"\n")
	eventually(t, "held", w.isSuspended)
	cancel()
	eventually(t, "undone", func() bool { return !w.isSuspended() && len(w.markers()) == 0 })
	say.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"id": 1, "op": "begin", "spec": {"folder": "/a", "id": "x", "actions": {"a": {"agent": "/s"}}, "cleanup": {}}}`))
	f.Add([]byte(`{"id": 2, "op": "hold", "name": "a", "budget": 5000000000}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseRequest(line)
		if err != nil && !errors.Is(err, ErrSpec) {
			t.Fatalf("an error without a class: %v", err)
		}
		if err == nil && r.Spec != nil && r.Op == opBegin {
			for name := range r.Spec.Actions {
				if path := filepath.Join(r.Spec.Folder, r.Spec.ID+"-"+name+markerSuffix); filepath.Dir(path) != filepath.Clean(r.Spec.Folder) {
					t.Fatalf("a marker outside: %s", path)
				}
			}
		}
	})
}

func FuzzNote(f *testing.F) {
	f.Add([]byte(`{"version": 1, "boot": "x", "pid": 1, "id": "x", "name": "freeze", "since": "2026-01-02T03:04:05Z", "action": {"agent": "/s"}}`))
	f.Add([]byte(`{"version": 1, "action": {"exec": {"do": ["a"], "undo": ["b"]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := parseNote(text)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("an error without a class: %v", err)
			}
			return
		}
		if n.Action.Exec != nil && len(n.Action.Exec.Undo) == 0 {
			t.Fatal("nothing to undo it with")
		}
	})
}
