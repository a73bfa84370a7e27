package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// realAgent runs the agent on this host; it may not freeze.
func realAgent(t testing.TB) (path string, kill func()) {
	t.Helper()
	state := t.TempDir()
	dir, kill := program(t, []string{"s"}, "qemu-ga", "--method", "unix-listen", "--path", "s", "--statedir", state,
		"--pidfile", filepath.Join(state, "pid"), "--block-rpcs",
		"guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-exec,guest-shutdown,guest-suspend-disk,"+
			"guest-suspend-ram,guest-suspend-hybrid,guest-fstrim,guest-set-time,guest-set-user-password,guest-file-open")
	return filepath.Join(dir, "s"), kill
}

func dialAgent(t testing.TB, path string, o Options) *Agent {
	t.Helper()
	a, err := DialAgent(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestARealAgentAnswers(t *testing.T) {
	path, kill := realAgent(t)
	a := dialAgent(t, path, Options{})
	for range 3 {
		if err := a.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if frozen, err := a.Status(t.Context()); err != nil || frozen {
			t.Fatalf("%v, %v", frozen, err)
		}
		_, err := a.Freeze(t.Context())
		var refused *Error
		if !errors.As(err, &refused) || refused.Command != freezeCommand || refused.Class != ClassCommandNotFound {
			t.Fatalf("a freeze that is switched off: %v", err)
		}
		if _, err := a.Thaw(t.Context()); !errors.As(err, &refused) || refused.Command != thawCommand {
			t.Fatalf("a thaw that is switched off: %v", err)
		}
	}
	_, err := DialAgent(t.Context(), path, Options{Greeting: 200 * time.Millisecond})
	if !errors.Is(err, ErrAgent) {
		t.Errorf("a second client: %v", err)
	}
	kill()
	if err := a.Ping(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := DialAgent(t.Context(), path, Options{}); !errors.Is(err, ErrNobody) {
		t.Errorf("after its end: %v", err)
	}
}

func TestWhatAnEarlierClientLeftIsSkipped(t *testing.T) {
	path, _ := realAgent(t)
	for n := range testtool.Count(30, 500) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		// Nothing that is answered: without a reader, this agent would end.
		part := `{"execute":"guest-sync-delimited","arguments":{"id":7}}`
		_, _ = conn.Write([]byte(part[:1+n%(len(part)-1)]))
		conn.Close()
		a := dialAgent(t, path, Options{})
		if frozen, err := a.Status(t.Context()); err != nil || frozen {
			t.Fatalf("client %d: %v, %v", n, frozen, err)
		}
		a.Close()
	}
}

func TestAnAgentThatIsNotThere(t *testing.T) {
	// QEMU takes connections for an agent whether the guest has one or not.
	dir, _ := program(t, []string{"ga"}, "qemu-system-x86_64", "-display", "none", "-nodefaults", "-machine", "pc", "-accel", "tcg", "-S",
		"-chardev", "socket,id=g,path=ga,server=on,wait=off", "-device", "virtio-serial", "-device", "virtserialport,chardev=g,name=org.qemu.guest_agent.0")
	path := filepath.Join(dir, "ga")
	err := soon(t, "DialAgent", func() error {
		_, err := DialAgent(t.Context(), path, Options{Greeting: 200 * time.Millisecond})
		return err
	})
	if !errors.Is(err, ErrAgent) || !strings.Contains(err.Error(), "qemu-guest-agent") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = soon(t, "DialAgent", func() error { _, err := DialAgent(ctx, path, Options{}); return err })
	if !errors.Is(err, ErrAgent) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err = soon(t, "DialAgent", func() error { _, err := DialAgent(ctx, path, Options{}); return err })
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrAgent) {
		t.Errorf("given up: %v", err)
	}
	if _, err := DialAgent(t.Context(), filepath.Join(dir, "none"), Options{}); !errors.Is(err, ErrNobody) {
		t.Errorf("%v", err)
	}
	var all sync.WaitGroup // more than the queue at the socket holds
	for range 6 {
		all.Go(func() {
			if _, err := DialAgent(t.Context(), path, Options{Greeting: 300 * time.Millisecond}); !errors.Is(err, ErrAgent) {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
}

// fakeAgent is an agent that freezes nothing. before is called with each command; it
// returns what to say in place of the usual answer, "" for that.
func fakeAgent(t testing.TB, before func(command string, p *client) string) (path string, frozen *atomic.Int64) {
	frozen = &atomic.Int64{}
	return serve(t, func(p *client) {
		for {
			h, ok := p.hear()
			if !ok {
				return
			}
			if say := before(h.Execute, p); say != "" {
				p.say("%s", say)
				continue
			}
			switch h.Execute {
			case syncCommand:
				var arguments struct{ ID json.RawMessage }
				_ = json.Unmarshal(h.Arguments, &arguments)
				p.say("\xff"+`{"return": %s}`+"\n", arguments.ID)
			case freezeCommand:
				frozen.Store(3)
				p.say(`{"return": 3}` + "\n")
			case thawCommand:
				p.say(`{"return": %d}`+"\n", frozen.Swap(0))
			case statusCommand:
				p.say(`{"return": %q}`+"\n", map[bool]string{true: "frozen", false: "thawed"}[frozen.Load() > 0])
			case pingCommand:
				p.say(`{"return": {}}` + "\n")
			}
		}
	}), frozen
}

func usual(string, *client) string { return "" }

func TestFreezeAndThawAreCounted(t *testing.T) {
	path, now := fakeAgent(t, usual)
	a := dialAgent(t, path, Options{})
	if n, err := a.Freeze(t.Context()); n != 3 || err != nil || now.Load() != 3 {
		t.Errorf("%d, %v", n, err)
	}
	if frozen, err := a.Status(t.Context()); !frozen || err != nil {
		t.Errorf("%v, %v", frozen, err)
	}
	if n, err := a.Thaw(t.Context()); n != 3 || err != nil || now.Load() != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := a.Thaw(t.Context()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	a.Close()
	if _, err := a.Thaw(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("after Close: %v", err)
	}
}

func TestAThawFollowsAFreezeThatWasNotAnswered(t *testing.T) {
	var mu sync.Mutex
	var heard []string
	late := make(chan struct{})
	path, _ := fakeAgent(t, func(command string, p *client) string {
		mu.Lock()
		heard = append(heard, command)
		mu.Unlock()
		if command == freezeCommand {
			<-late
		}
		return ""
	})
	a := dialAgent(t, path, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if n, err := a.Freeze(ctx); n != 0 || !errors.Is(err, ErrAgent) {
		t.Fatalf("%d, %v", n, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Thaw(ctx); !errors.Is(err, ErrAgent) {
		t.Fatal(err)
	}
	close(late) // the agent comes to life: what waits for it must end with a thaw
	if n, err := a.Thaw(t.Context()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := fmt.Sprint([]string{syncCommand, pingCommand, syncCommand, freezeCommand, syncCommand, thawCommand, syncCommand, thawCommand})
	if got := fmt.Sprint(heard); got != want {
		t.Errorf("the agent heard %s, want %s", got, want)
	}
}

func TestAFreezeIsNotSentToAnAgentThatIsSilent(t *testing.T) {
	var silent, freezes atomic.Int64
	path, _ := fakeAgent(t, func(command string, p *client) string {
		if command == freezeCommand {
			freezes.Add(1)
		}
		if silent.Load() > 0 {
			return " "
		}
		return ""
	})
	a := dialAgent(t, path, Options{})
	silent.Store(1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Freeze(ctx); !errors.Is(err, ErrAgent) {
		t.Error(err)
	}
	silent.Store(0)
	if err := a.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if freezes.Load() != 0 {
		t.Error("a freeze was left for the agent")
	}
}

func TestAnAgentMaySayWhatItWants(t *testing.T) {
	for name, c := range map[string]struct {
		say  string
		lost bool
	}{
		"no JSON":          {"what?\n", false},
		"an event":         {`{"event": "X"}` + "\n", false},
		"a greeting":       {testGreeting, false},
		"nothing":          {"{}\n", false},
		"another type":     {`{"return": "many"}` + "\n", false},
		"a fraction":       {`{"return": 1.5}` + "\n", false},
		"a list":           {"[1]\n", false},
		"an endless line":  {strings.Repeat("x", 4<<20), false},
		"a mark too early": {`{"return":` + "\xff\xff\xff\n", false},
		"the end":          {"", true},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := fakeAgent(t, func(command string, p *client) string {
				if command == freezeCommand && c.lost {
					p.Close()
				}
				if command == freezeCommand {
					return c.say
				}
				return ""
			})
			a := dialAgent(t, path, Options{})
			_, err := a.Freeze(t.Context())
			if want := map[bool]error{false: ErrProtocol, true: ErrLost}[c.lost]; !errors.Is(err, want) || len(err.Error()) > 300 {
				t.Errorf("%v", err)
			}
			// The agent is asked again as if nothing had been.
			if n, err := a.Thaw(t.Context()); c.lost != errors.Is(err, ErrLost) || !c.lost && (err != nil || n != 0) {
				t.Errorf("the thaw afterwards: %d, %v", n, err)
			}
		})
	}
}

func TestAStatusThatIsNone(t *testing.T) {
	path, _ := fakeAgent(t, func(command string, _ *client) string {
		if command == statusCommand {
			return `{"return": "melting"}` + "\n"
		}
		return ""
	})
	if _, err := dialAgent(t, path, Options{}).Status(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

func TestTheSearchForThePlace(t *testing.T) {
	const id = 42
	ours := "\xff" + `{"return": 42}` + "\n"
	for name, before := range map[string]string{
		"nothing":                 "",
		"replies to others":       `{"return": {}}` + "\n" + `{"return": 42}` + "\n",
		"half a reply":            `{"ret`,
		"an earlier search":       "\xff" + `{"return": 41}` + "\n",
		"a search without an end": "\xff" + `{"return": 42`,
		"marks":                   "\xff\xff\xff\n\xff",
		"a long reply":            "\xff" + strings.Repeat("y", 300_000) + "\n",
		"text for a number":       "\xff" + `{"return": "42"}` + "\n",
		"an error":                "\xff" + `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n",
	} {
		r := bufio.NewReader(strings.NewReader(before + ours + `{"return": "next"}` + "\n"))
		if err := findSync(r, id, 64<<10); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m, err := readReply(r, 64<<10); err != nil || string(m.Return) != `"next"` {
			t.Errorf("%s: next is %s, %v", name, m.Return, err)
		}
	}
	if err := findSync(bufio.NewReader(strings.NewReader(`{"return": 42}`+"\n")), id, 64<<10); err == nil {
		t.Error("found without a mark")
	}
}

func TestOneCallAtATime(t *testing.T) {
	path, _ := fakeAgent(t, usual)
	a := dialAgent(t, path, Options{})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if err := a.Ping(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := a.Status(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
