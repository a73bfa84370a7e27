package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func FuzzStream(f *testing.F) {
	for _, seed := range []string{
		testGreeting, `{"return": {}, "id": 1}`, `{"id": 3, "error": {"class": "CommandNotFound", "desc": "no"}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {}}`,
		"{\r\n    \"return\": [\r\n  ]\r\n}\r\n{\"return\": null}", "[[[[", `{"event":"`, "\xff{}",
	} {
		f.Add([]byte(seed), 100)
	}
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		limit = 1 + abs(limit)%1000
		s := newStream(&byHalves{b: b}, limit)
		for n := 0; ; n++ {
			m, err := s.next()
			if err != nil {
				if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("an error without a class: %v", err)
				}
				return
			}
			if n > len(b) {
				t.Fatal("more messages than bytes")
			}
			if len(m.Return) > 2*limit+512 || len(m.Data) > 2*limit+512 {
				t.Fatalf("a message of %d bytes, limit %d", len(m.Return)+len(m.Data), limit)
			}
		}
	})
}

// byHalves gives away half of what it has with each read.
type byHalves struct{ b []byte }

func (h *byHalves) Read(p []byte) (int, error) {
	if len(h.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.b[:(len(h.b)+1)/2])
	h.b = h.b[n:]
	return n, nil
}

func abs(n int) int { return max(n, -(n + 1)) }

func FuzzAgentReplies(f *testing.F) {
	f.Add([]byte(`{"return": {}}` + "\n"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "stray"}}` + "\n\xff"))
	f.Add([]byte("\xff" + `{"return": 42}` + "\n{"))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		// Whatever comes first, a reply that says our id is found, or was said before.
		r := bufio.NewReader(io.MultiReader(&byHalves{garbage}, strings.NewReader("\xff"+`{"return": 77777777}`+"\n"+`{"return": "next"}`+"\n")))
		if err := findSync(r, 77777777, 1000); err != nil {
			t.Fatalf("not found: %v", err)
		}
		if m, err := readReply(r, 1000); !bytes.Contains(garbage, []byte("7777777")) && (err != nil || string(m.Return) != `"next"`) {
			t.Fatalf("next is %s, %v", m.Return, err)
		}
		for r := bufio.NewReader(bytes.NewReader(garbage)); ; {
			if _, err := readReply(r, 1000); err != nil && !errors.Is(err, ErrProtocol) {
				return
			} else if err != nil {
				_, _ = r.ReadByte() // a mark is left for the search
			}
		}
	})
}

func FuzzSchema(f *testing.F) {
	f.Add([]byte(`[{"meta-type": "command", "name": "a", "arg-type": "0", "ret-type": "1"},
		{"meta-type": "object", "name": "0", "members": [{"name": "x", "type": "2"}], "tag": "x", "variants": [{"case": "y", "type": "0"}]},
		{"meta-type": "array", "name": "[2]", "element-type": "[2]"},
		{"meta-type": "alternate", "name": "3", "members": [{"type": "0"}, {"type": "3"}]},
		{"meta-type": "enum", "name": "2", "values": ["y"], "members": [{"name": "y"}]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSchema(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("an error without a class: %v", err)
			}
			return
		}
		for name := range s.commands {
			s.Argument(name, "x/x/x")
			if s.Value(name, "x", "y") && !s.Argument(name, "x") {
				t.Fatal("a value of no argument")
			}
		}
	})
}
