package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// playParent holds and releases until it is killed. Its standard input is the spec.
func playParent() {
	if err := parent(); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

func parent() error {
	var spec Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	os.Setenv(roleVariable, "guard")
	ctx := context.Background()
	g, err := Start(ctx, []string{"/proc/self/exe"}, spec)
	if err != nil {
		return err
	}
	fmt.Println("guard", g.Pid())
	for {
		if _, err := g.Hold(ctx, "freeze", time.Minute); err != nil {
			return err
		}
		time.Sleep(rand.N(2 * time.Millisecond))
		if _, err := g.Hold(ctx, "suspend", time.Minute); err != nil {
			return err
		}
		fmt.Println("round")
		if _, err := g.Release(ctx, "suspend"); err != nil {
			return err
		}
		if _, err := g.Release(ctx, "freeze"); err != nil {
			return err
		}
	}
}

// victim is a parent that can be killed.
type victim struct {
	cmd   *exec.Cmd
	guard int           // its guard's process, 0: not known
	said  *bufio.Reader // its standard output
}

// startVictim starts a parent, whose standard error nobody reads.
func (w *world) startVictim() *victim {
	w.t.Helper()
	spec, err := json.Marshal(w.spec)
	if err != nil {
		w.t.Fatal(err)
	}
	unread, stderr, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	unread.Close()
	defer stderr.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=parent", "QBACKUP_GUARD_TEST_TELL=1")
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(spec)), stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	v := &victim{cmd: cmd, said: bufio.NewReader(stdout)}
	w.t.Cleanup(v.kill)
	return v
}

// hear reads what the parent says until it says word, or has ended.
func (v *victim) hear(t testing.TB, word string) bool {
	for {
		line, err := v.said.ReadString('\n')
		if err != nil {
			return false
		}
		if strings.HasPrefix(line, "failed") {
			t.Errorf("the parent: %s", line)
		}
		_, _ = fmt.Sscanf(line, "guard %d", &v.guard)
		if strings.HasPrefix(line, word) {
			return true
		}
	}
}

func (v *victim) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

func TestAParentIsKilledAtAnyInstant(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	held, begun := 0, 0
	for n := range testtool.Count(30, 400) {
		w := newWorld(t, nil)
		v := w.startVictim()
		if n%4 > 0 { // else it may die before its guard has begun
			if !v.hear(t, "guard") {
				t.Fatal("the parent has ended")
			}
		}
		time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
		killed := time.Now()
		if err := v.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if frozen, _ := w.machine.state(); frozen > 0 || w.isSuspended() {
			held++
		}
		v.hear(t, "never")
		v.kill()
		if v.guard == 0 { // perhaps there is one all the same
			eventually(t, "undone", func() bool {
				frozen, _ := w.machine.state()
				return frozen == 0 && !w.isSuspended() && len(w.markers()) == 0
			})
			continue
		}
		begun++
		eventually(t, "the guard has ended", func() bool { return !alive(v.guard) })
		if took := time.Since(killed); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		w.nothingIsLeft()
		if c := w.cleanedUp(); c != 1 {
			t.Errorf("cleaned up %d times", c)
		}
		if t.Failed() {
			t.Fatalf("round %d", n)
		}
	}
	t.Logf("%d parents had a guard, %d died while something was held", begun, held)
	if held == 0 {
		t.Error("none died while something was held")
	}
}

func TestBothAreKilled(t *testing.T) {
	for n := range testtool.Count(6, 60) {
		w := newWorld(t, nil)
		v := w.startVictim()
		if !v.hear(t, "round") {
			t.Fatal("the parent has ended")
		}
		time.Sleep(time.Duration(n) * time.Millisecond)
		signalTo(t, v.cmd.Process.Pid, syscall.SIGSTOP) // so that neither sees the other's death
		signalTo(t, v.guard, syscall.SIGKILL)
		v.kill()
		eventually(t, "the guard has ended", func() bool { return !alive(v.guard) })
		eventually(t, "recovered", func() bool { // the kernel may still be busy with its threads
			if _, err := Recover(t.Context(), w.spec.Folder, nil); err != nil {
				t.Fatal(err)
			}
			frozen, _ := w.machine.state()
			return frozen == 0 && !w.isSuspended() && !strings.Contains(fmt.Sprint(w.markers()), markerSuffix)
		})
		if w.cleanedUp() != 0 {
			t.Error("who has cleaned up?")
		}
		cleaned := 0
		eventually(t, "cleaned up", func() bool {
			_, err := Recover(t.Context(), w.spec.Folder, func(_ context.Context, raw json.RawMessage) error {
				cleaned++
				return json.Unmarshal(raw, &testCleanup{})
			})
			return err == nil && cleaned > 0
		})
		if cleaned != 1 || len(w.allMarkers()) > len(w.markers()) {
			t.Errorf("cleaned up %d times, left %v", cleaned, w.allMarkers())
		}
		if t.Failed() {
			t.Fatalf("round %d", n)
		}
	}
}

func TestTheGuardIsKilledAtAnyInstant(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for n := range testtool.Count(10, 100) {
		w := newWorld(t, nil)
		g := w.start()
		pid := g.Pid()
		time.AfterFunc(time.Duration(random.IntN(12))*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		for {
			if _, err := g.Hold(t.Context(), "freeze", time.Minute); err != nil {
				break
			}
			if _, err := g.Hold(t.Context(), "suspend", time.Minute); err != nil {
				break
			}
			for _, name := range []string{"suspend", "freeze"} {
				if _, err := g.Release(t.Context(), name); err != nil {
					t.Errorf("round %d: %v", n, err)
				}
			}
		}
		<-g.dead
		w.nothingIsLeft()
	}
}

func TestACleanupIsTriedForALimitedTime(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Persist = 1500 * time.Millisecond
	w.spec.Cleanup, _ = json.Marshal(testCleanup{File: w.cleanups, Fail: true})
	g := w.start()
	w.hold(g, "freeze", time.Minute)
	_ = g.stdin.Close() // as the death of the parent
	<-g.dead
	if c := w.cleanedUp(); c < 2 || c > 10 {
		t.Errorf("tried %d times", c)
	}
	if g.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", g.cmd.ProcessState)
	}
	w.nothingIsLeft()
}
