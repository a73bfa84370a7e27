package virt

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

func TestNamesOfDomainsComeBack(t *testing.T) {
	for domain, want := range map[string]string{
		"web1": "web1", "a.b_c-d": "a.b_c-d", "0": "0",
		"Web 01": "x57_ebx20_01", "-x": "x2d_x", "x57_eb": "x78_57_eb", "é": "xc3_xa9_", "x5x57_": "x5x78_57_",
	} {
		got, err := MachineName(domain)
		if err != nil || string(got) != want {
			t.Errorf("%q became %q, %v; want %q", domain, got, err, want)
		}
		if back, ok := DomainName(got); !ok || back != domain {
			t.Errorf("%q came back as %q, %v", domain, back, ok)
		}
	}
	for _, machine := range []ident.MachineName{"x61_", "ax20", "x2_", "xx41_"} {
		domain, ok := DomainName(machine)
		back, err := MachineName(domain)
		if ok != (err == nil && back == machine) {
			t.Errorf("%q: %q, %v", machine, domain, ok)
		}
	}
	if _, ok := DomainName("x61_"); ok {
		t.Error("a code for what needs none was taken for a name made here")
	}
}

func TestNoTwoDomainsShareAMachineName(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	seen := map[ident.MachineName]string{}
	const letters = "xX57_ a-."
	for range 20_000 {
		b := make([]byte, 1+rng.IntN(7))
		for i := range b {
			b[i] = letters[rng.IntN(len(letters))]
		}
		name, err := MachineName(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[name]; ok && other != string(b) {
			t.Fatalf("%q and %q are both %q", other, b, name)
		}
		seen[name] = string(b)
	}
}

func TestANameThatIsTooLongSaysWhatToDo(t *testing.T) {
	_, err := MachineName(strings.Repeat("A", 60))
	if !errors.Is(err, ident.ErrSyntax) || !strings.Contains(err.Error(), "--machine") {
		t.Errorf("%v", err)
	}
	if _, err := MachineName(""); err == nil {
		t.Error("an empty name was accepted")
	}
}

func FuzzMachineName(f *testing.F) {
	f.Add("Web 01")
	f.Add("x57_")
	f.Fuzz(func(t *testing.T, domain string) {
		name, err := MachineName(domain)
		if err != nil {
			return
		}
		if back, ok := DomainName(name); !ok || back != domain {
			t.Fatalf("%q became %q and came back as %q, %v", domain, name, back, ok)
		}
	})
}
