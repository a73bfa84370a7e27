package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRepliesFindTheirCallsInAnyOrder(t *testing.T) {
	path := serve(t, func(p *client) {
		if !p.greet() {
			return
		}
		var asked []heard
		for range 20 {
			h, ok := p.hear()
			if !ok {
				return
			}
			asked = append(asked, h)
		}
		// All on one line, the newest first, with events and line ends between.
		for i := len(asked) - 1; i >= 0; i-- {
			p.say(`{"event": "NOISE", "timestamp": {"seconds": 1, "microseconds": 2}}{"return": %s, "id": %q}`, asked[i].Arguments, asked[i].ID)
			if i%3 == 0 {
				p.say("\r\n \n")
			}
		}
		p.untilGone()
	})
	m := dial(t, path, Options{})
	if v := m.Version(); v != (Version{9, 2, 1, "v9.2.1"}) || v.String() != "9.2.1 (v9.2.1)" {
		t.Errorf("version %v", v)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			var got struct{ N int }
			if err := m.Execute(t.Context(), "echo", map[string]int{"n": i}, &got); err != nil || got.N != i {
				t.Errorf("call %d: %v, %v", i, got, err)
			}
		})
	}
	all.Wait()
	if m.Err() != nil {
		t.Error(m.Err())
	}
}

func TestARefusalIsAnErrorWithItsClass(t *testing.T) {
	path := serve(t, func(p *client) {
		for ok := p.greet(); ok; {
			var h heard
			if h, ok = p.hear(); ok {
				p.say(`{"id": %q, "error": {"class": %q, "desc": "no such thing"}}`, h.ID, h.Execute)
			}
		}
	})
	m := dial(t, path, Options{})
	for class, text := range map[string]string{
		ClassGeneric:        "GenericError: no such thing",
		ClassDeviceNotFound: "DeviceNotFound: no such thing (DeviceNotFound)",
	} {
		err := m.Execute(t.Context(), class, nil, nil)
		var refused *Error
		if !errors.As(err, &refused) || *refused != (Error{class, class, "no such thing"}) || err.Error() != text {
			t.Errorf("%s: %v", class, err)
		}
	}
	if err := m.Execute(t.Context(), "x", func() {}, nil); err == nil || !strings.Contains(err.Error(), "json") {
		t.Errorf("arguments that are none: %v", err)
	}
	if m.Err() != nil {
		t.Error(m.Err())
	}
}

func TestALateReplyIsDropped(t *testing.T) {
	answer := make(chan struct{})
	path := serve(t, func(p *client) {
		if !p.greet() {
			return
		}
		late, ok := p.hear()
		if !ok {
			return
		}
		<-answer
		next, ok := p.hear()
		if !ok {
			return
		}
		p.say(`{"return": "late", "id": %q}{"return": "again", "id": %q}{"return": "right", "id": %q}`, late.ID, late.ID, next.ID)
		p.untilGone()
	})
	m := dial(t, path, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var got string
	err := m.Execute(ctx, "slow", nil, &got)
	if !errors.Is(err, ErrSilent) || !errors.Is(err, context.DeadlineExceeded) || got != "" {
		t.Fatalf("%q, %v", got, err)
	}
	close(answer)
	if err := m.Execute(t.Context(), "next", nil, &got); err != nil || got != "right" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestACallEndsThoughNobodyReads(t *testing.T) {
	path := serve(t, func(p *client) {
		if p.greet() {
			<-t.Context().Done() // ends when the test is over
		}
	})
	m := dial(t, path, Options{Reply: 100 * time.Millisecond})
	big := map[string]string{"x": strings.Repeat("x", 4<<20)}
	if err := m.Execute(t.Context(), "big", big, nil); !errors.Is(err, ErrSilent) {
		t.Errorf("more than the socket takes: %v", err)
	}
	if err := m.Execute(t.Context(), "behind", nil, nil); !errors.Is(err, ErrSilent) {
		t.Errorf("behind it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Execute(ctx, "given up", nil, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrSilent) {
		t.Errorf("given up: %v", err)
	}
	if err := soon(t, "Close", m.Close); err != nil {
		t.Error(err)
	}
	if err := m.Execute(t.Context(), "after", nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("after Close: %v", err)
	}
}

func TestAnythingElseThanTheProtocolEndsTheConnection(t *testing.T) {
	for name, answer := range map[string]string{
		"no JSON":               "what?\n",
		"a list":                "[]\n",
		"a number":              "7\n",
		"null":                  "null\n",
		"nothing":               "{}\n",
		"two at once":           `{"return": {}, "event": "X", "id": 2}`,
		"another type":          `{"return": {}, "event": 7, "id": 2}`,
		"no text":               `{"error": {"class": 7}, "id": 2}`,
		"a second greeting":     testGreeting,
		"too long":              `{"return": "` + strings.Repeat("x", 70<<10) + `", "id": 2}`,
		"long before its end":   strings.Repeat(" ", 70<<10),
		"nested without an end": `{"return": ` + strings.Repeat("[", 60<<10),
	} {
		t.Run(name, func(t *testing.T) {
			path := serve(t, func(p *client) {
				if p.greet() {
					p.hear()
					p.say("%s", answer)
					p.untilGone()
				}
			})
			m := dial(t, path, Options{MessageBytes: 64 << 10})
			err := soon(t, "the call", func() error { return m.Execute(t.Context(), "query", nil, nil) })
			if !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrLost) || len(err.Error()) > 400 {
				t.Errorf("the call: %v", err)
			}
			<-m.Lost()
			if !errors.Is(m.Err(), ErrProtocol) {
				t.Errorf("the monitor: %v", m.Err())
			}
		})
	}
}

func TestRepliesToOthersAreSkipped(t *testing.T) {
	var visits atomic.Int64
	path := serve(t, func(p *client) {
		if visits.Add(1) == 1 {
			p.say(`type": "str"}, {"name": "x"}]}` + "\r\n" + testGreeting) // the end of a long reply
			p.untilGone()
			return
		}
		p.say(`{"return": [1, 2], "id": 1}` + "\r\n" + `{"return": {}, "id": "qb-1"}` + "\r\n" + testGreeting + `{"return": {}, "id": "1"}`)
		h, _ := p.hear()
		// An earlier client's qmp_capabilities has made ours one too many.
		p.say(`{"return": {}, "id": 7}{"error": {"class": "CommandNotFound", "desc": "already"}, "id": %q}`, h.ID)
		h, _ = p.hear()
		for _, id := range []string{`"x"`, "1", "99", "-1", "1.5", "null", "{}", `"` + h.ID + `0"`, `"` + strings.TrimRight(h.ID, "2") + `1"`} {
			p.say(`{"return": "wrong", "id": %s}`, id)
		}
		p.say(`{"return": "wrong"}{"error": {"class": "GenericError", "desc": "JSON parse error"}}{"return": "right", "id": %q}`, h.ID)
		p.untilGone()
	})
	m := dial(t, path, Options{})
	var got string
	if err := m.Execute(t.Context(), "query", nil, &got); err != nil || got != "right" {
		t.Errorf("%q, %v", got, err)
	}
	if n := visits.Load(); n != 2 {
		t.Errorf("%d visits", n)
	}
	again, err := Dial(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if m.session == again.session || len(m.session) != len("qb-0123456789abcdef-") {
		t.Errorf("ids begin with %s and %s", m.session, again.session)
	}
}

func TestAReplyOfAnotherShapeIsAnError(t *testing.T) {
	path := serve(t, func(p *client) {
		for ok := p.greet(); ok; {
			var h heard
			if h, ok = p.hear(); ok {
				p.say(`{"return": ["x"], "id": %q}`, h.ID)
			}
		}
	})
	m := dial(t, path, Options{})
	var want struct{ Field int }
	if err := m.Execute(t.Context(), "query", nil, &want); !errors.Is(err, ErrProtocol) || errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	if err := m.Execute(t.Context(), "query", nil, nil); err != nil {
		t.Errorf("nobody wants the result: %v", err)
	}
}

func TestLongRepliesAreRead(t *testing.T) {
	const size = 20 << 20
	path := serve(t, func(p *client) {
		if p.greet() {
			h, _ := p.hear()
			p.say(`{"return": %q, "id": %q}`, strings.Repeat("x", size), h.ID)
			p.untilGone()
		}
	})
	m := dial(t, path, Options{})
	var got string
	if err := m.Execute(t.Context(), "query", nil, &got); err != nil || len(got) != size {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestALostConnectionEndsAllCalls(t *testing.T) {
	path := serve(t, func(p *client) {
		if p.greet() {
			for range 3 {
				p.hear()
			}
			p.say(`{"return": {}, "id"`) // in the middle of a word
		}
	})
	m := dial(t, path, Options{})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := m.Execute(t.Context(), "query", nil, nil); !errors.Is(err, ErrLost) {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
	<-m.Lost()
	if !errors.Is(m.Err(), ErrLost) {
		t.Error(m.Err())
	}
}

func TestThereMustBeSomebodyWhoGreets(t *testing.T) {
	quick := Options{Greeting: 300 * time.Millisecond}
	for _, c := range []struct {
		name string
		path func(t *testing.T) string
		want error
		text string
	}{
		{"no socket", func(t *testing.T) string { return socketPath(t) }, ErrNobody, "the machine is off"},
		{"a socket that was left", func(t *testing.T) string {
			path := socketPath(t)
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			l.Close()
			return path
		}, ErrNobody, "the machine is off"},
		{"a file", func(t *testing.T) string {
			path := socketPath(t)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, ErrProtocol, "no socket"},
		{"a long path", func(t *testing.T) string { return "/" + strings.Repeat("x", 120) }, nil, "107 bytes"},
		{"silence", func(t *testing.T) string { return serve(t, (*client).untilGone) }, ErrTaken, "-qmp unix:"},
		{"another protocol", func(t *testing.T) string {
			return serve(t, func(p *client) { p.say("NBDMAGICIHAVEOPT"); p.untilGone() })
		}, ErrProtocol, "QMP monitor"},
		{"no greeting", func(t *testing.T) string {
			return serve(t, func(p *client) { p.say(`{"return": {}}`); p.untilGone() })
		}, ErrTaken, "no greeting"},
		{"half a greeting", func(t *testing.T) string {
			return serve(t, func(p *client) { p.say("%s", testGreeting[:30]) })
		}, ErrProtocol, "middle"},
		{"no word after the greeting", func(t *testing.T) string {
			return serve(t, func(p *client) { p.say("%s", testGreeting); p.untilGone() })
		}, ErrSilent, "qmp_capabilities"},
		{"a refusal after the greeting", func(t *testing.T) string {
			return serve(t, func(p *client) {
				p.say("%s", testGreeting)
				h, _ := p.hear()
				p.say(`{"error": {"class": "GenericError", "desc": "no"}, "id": %q}`, h.ID)
				p.untilGone()
			})
		}, nil, "qmp_capabilities: no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path(t)
			err := soon(t, "Dial", func() error {
				m, err := Dial(t.Context(), path, quick)
				if err == nil {
					m.Close()
				}
				return err
			})
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestWhoClosesBeforeTheGreetingIsAskedAgain(t *testing.T) {
	var mu sync.Mutex
	visits := 0
	path := serve(t, func(p *client) {
		mu.Lock()
		visits++
		now := visits
		mu.Unlock()
		if now > 3 && p.greet() {
			p.untilGone()
		}
	})
	dial(t, path, Options{Greeting: 5 * time.Second})

	always := serve(t, func(*client) {})
	if _, err := Dial(t.Context(), always, Options{Greeting: 200 * time.Millisecond}); !errors.Is(err, ErrLost) && !errors.Is(err, ErrTaken) {
		t.Errorf("%v", err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	path := serve(t, (*client).untilGone)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err := soon(t, "Dial", func() error { _, err := Dial(ctx, path, Options{}); return err })
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrTaken) {
		t.Errorf("given up: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = soon(t, "Dial", func() error { _, err := Dial(ctx, path, Options{}); return err })
	if !errors.Is(err, ErrTaken) {
		t.Errorf("after the caller's time: %v", err)
	}
}

func TestTheUserIsTheOneOfTheServer(t *testing.T) {
	path := serve(t, func(p *client) {
		if p.greet() {
			p.untilGone()
		}
	})
	if m := dial(t, path, Options{}); m.PeerUID() != os.Geteuid() {
		t.Errorf("user %d, want %d", m.PeerUID(), os.Geteuid())
	}
	for status, want := range map[string]int{
		"Name:\tq\nUid:\t0\t1\t2\t3\nGid:\t4\t4\t4\t4\n": 3,
		"Uid:\t1\t2\t3\n":    -1,
		"Uid:\t1\t2\t3\tx\n": -1,
		"":                   -1,
	} {
		if got, ok := fileSystemUID(status); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %d, %v", status, got, ok)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if uid := peerOf(a).uid(); uid != -1 {
		t.Errorf("of a pipe: %d", uid)
	}
}

func TestEventsNeverHoldUpReplies(t *testing.T) {
	const flood = 5000
	path := serve(t, func(p *client) {
		if !p.greet() {
			return
		}
		for i := range flood {
			p.say(`{"timestamp": {"seconds": %d, "microseconds": 7}, "event": "JOB", "data": {"n": %d}}`+"\r\n", i, i)
			p.say(`{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "OTHER"}` + "\r\n")
		}
		for {
			h, ok := p.hear()
			if !ok {
				return
			}
			p.say(`{"return": {}, "id": %q}`, h.ID)
		}
	})
	m := dial(t, path, Options{})
	all, jobs, gone := m.Subscribe(), m.Subscribe("JOB", "ELSE"), m.Subscribe("OTHER")
	gone.Close()
	gone.Close()
	if err := m.Execute(t.Context(), "query", nil, nil); err != nil {
		t.Fatal(err)
	}
	// The flood began before Subscribe: how much of it we got is open, that it ends with the last is not.
	var last Event
	for {
		e, err := jobs.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "JOB" || last.Name != "" && !e.Time.After(last.Time) {
			t.Fatalf("%v after %v", e, last)
		}
		if last = e; string(e.Data) == fmt.Sprintf(`{"n": %d}`, flood-1) {
			break
		}
	}
	if want := time.Unix(flood-1, 7000); !last.Time.Equal(want) {
		t.Errorf("at %v, want %v", last.Time, want)
	}
	if all.Dropped() == 0 || jobs.Dropped() == 0 || gone.Dropped() != 0 {
		t.Errorf("dropped %d, %d, %d", all.Dropped(), jobs.Dropped(), gone.Dropped())
	}
	if _, err := gone.Next(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("a closed subscription: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := jobs.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no more events: %v", err)
	}
	m.Close()
	for n := 0; ; n++ {
		if _, err := all.Next(t.Context()); err != nil {
			if n != eventsKept || !errors.Is(err, ErrLost) {
				t.Errorf("%d were left, then %v", n, err)
			}
			break
		}
	}
}

func TestWhatASubscriptionKeepsIsBounded(t *testing.T) {
	s := &Subscription{wake: make(chan struct{}, 1)}
	big := Event{Data: make([]byte, eventBytesKept/2)}
	for range 5 {
		s.push(big)
	}
	if len(s.queue) != 2 || s.bytes != eventBytesKept || s.dropped != 3 {
		t.Errorf("%d events of %d bytes, %d dropped", len(s.queue), s.bytes, s.dropped)
	}
	s.push(Event{Data: make([]byte, eventBytesKept+1)})
	if len(s.queue) != 1 || s.dropped != 5 {
		t.Errorf("%d events, %d dropped", len(s.queue), s.dropped)
	}
}

func TestSeveralMayWaitForEvents(t *testing.T) {
	begin := make(chan struct{})
	path := serve(t, func(p *client) {
		if p.greet() {
			<-begin
			for range 100 {
				p.say(`{"event": "X", "timestamp": {"seconds": 1, "microseconds": 1}}`)
			}
			p.untilGone()
		}
	})
	m := dial(t, path, Options{})
	s := m.Subscribe("X")
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for range 10 {
				if _, err := s.Next(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	close(begin)
	all.Wait()
}
