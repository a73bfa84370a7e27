package ident

import (
	"bytes"
	"encoding/base32"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sort"
	"strings"
	"testing"
	"time"
)

func testRandom(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

func newRun(t *testing.T, now time.Time, random *rand.ChaCha8) RunID {
	t.Helper()
	r, err := NewRunID(now, random)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRunIDIsAUUIDv7OfItsTime(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 11, 12, 345_678_901, time.UTC)
	r := newRun(t, now, testRandom(1))
	if r[6]>>4 != 7 || r[8]>>6 != 2 {
		t.Errorf("version or variant is wrong: %x", r)
	}
	if got, want := r.Time(), now.Truncate(time.Millisecond); !got.Equal(want) {
		t.Errorf("time is %v, want %v", got, want)
	}
	if r2 := newRun(t, now, testRandom(2)); r == r2 {
		t.Error("two ids of one instant are equal")
	}
}

func TestRunIDRefusesTimesThatDoNotFitAndBrokenRandomness(t *testing.T) {
	for _, now := range []time.Time{time.UnixMilli(-1), time.UnixMilli(1 << 48)} {
		if _, err := NewRunID(now, testRandom(1)); err == nil {
			t.Errorf("time %v was accepted", now)
		}
	}
	for _, now := range []time.Time{time.UnixMilli(0), time.UnixMilli(1<<48 - 1)} {
		if r := newRun(t, now, testRandom(1)); !r.Time().Equal(now) {
			t.Errorf("time %v came back as %v", now, r.Time())
		}
	}
	if _, err := NewRunID(time.Now(), strings.NewReader("too short")); err == nil {
		t.Error("a short source of randomness was accepted")
	}
}

func TestRunIDTextKeepsTheOrderOfTheBytes(t *testing.T) {
	random := testRandom(3)
	var ids []RunID
	for range 500 {
		var r RunID
		random.Read(r[:])
		ids = append(ids, r)
		near := r
		near[15] ^= 1
		ids = append(ids, near)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].Compare(ids[j]) < 0 })
	for i := 1; i < len(ids); i++ {
		if ids[i-1] != ids[i] && ids[i-1].String() >= ids[i].String() {
			t.Fatalf("%x < %x, but %s >= %s", ids[i-1], ids[i], ids[i-1], ids[i])
		}
	}
}

func TestRunIDTextIsBase32hexOfTheStandardLibrary(t *testing.T) {
	random := testRandom(4)
	for range 200 {
		var r RunID
		random.Read(r[:])
		want := strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(r[:]))
		if r.String() != want {
			t.Fatalf("%x: %s, want %s", r, r, want)
		}
		back, err := ParseRunID(want)
		if err != nil || back != r {
			t.Fatalf("%s came back as %x, %v", want, back, err)
		}
	}
}

func TestRunIDHasOneTextOnly(t *testing.T) {
	good := newRun(t, time.Now(), testRandom(5)).String()
	bad := []string{
		"", good[:25], good + "0", strings.ToUpper(good), good[:25] + "1", good[:25] + "v",
		"w" + good[1:], good[:10] + "\n" + good[11:], good[:24] + "\r\n", good[:25] + "=", strings.Repeat("0", 26),
		strings.Repeat("é", 13),
	}
	for _, s := range bad {
		if r, err := ParseRunID(s); err == nil || !errors.Is(err, ErrSyntax) {
			t.Errorf("%q gave %v, %v", s, r, err)
		}
	}
}

func TestZeroRunIDIsTwentySixZerosInText(t *testing.T) {
	b, err := json.Marshal(struct{ Run RunID }{})
	if err != nil || string(b) != `{"Run":"00000000000000000000000000"}` {
		t.Fatalf("%s, %v", b, err)
	}
	v := struct{ Run RunID }{Run: RunID{1}}
	if err := json.Unmarshal(b, &v); err != nil || !v.Run.IsZero() {
		t.Fatalf("%v, %v", v, err)
	}
	if err := json.Unmarshal([]byte(`{"Run":"x"}`), &v); !errors.Is(err, ErrSyntax) {
		t.Fatalf("a malformed run gave %v", err)
	}
}

func TestMachineNamesKeepToTheirAlphabet(t *testing.T) {
	for _, s := range []string{"a", "0", "web-1.example_x", strings.Repeat("a", 128)} {
		if n, err := ParseMachineName(s); err != nil || string(n) != s {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", "-a", "_a", ".a", "A", "a/b", "a b", "ä", "a\x00", strings.Repeat("a", 129)} {
		if _, err := ParseMachineName(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestDiskNamesCannotBePaths(t *testing.T) {
	for _, s := range []string{"vda", "Disk0", "a.qcow2"} {
		if err := CheckDiskName(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", ".", "..", "../x", "a/b", `a\b`, "-x", "a:b"} {
		if err := CheckDiskName(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestMachineIDsAndFamiliesAreLowerCaseHex(t *testing.T) {
	m, err := NewMachineID(bytes.NewReader([]byte("\x01\x23\x45\x67\x89\xab\xcd\xef0123456789")))
	if err != nil {
		t.Fatal(err)
	}
	if m.Family().String() != "01234567" || m.String()[:16] != "0123456789abcdef" {
		t.Errorf("%s, %s", m, m.Family())
	}
	if back, err := ParseMachineID(m.String()); err != nil || back != m {
		t.Errorf("%v, %v", back, err)
	}
	for _, s := range []string{"", m.String()[1:], m.String() + "0", strings.ToUpper(m.String())} {
		if _, err := ParseMachineID(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q was accepted", s)
		}
	}
	var f FamilyID
	if err := f.UnmarshalText([]byte("01234567")); err != nil || f != m.Family() {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := NewMachineID(strings.NewReader("short")); err == nil {
		t.Error("a short source of randomness was accepted")
	}
}

func TestBitmapNamesComeBackAndHaveOneLength(t *testing.T) {
	random := testRandom(6)
	for range 100 {
		n := BitmapName{Stamp: newRun(t, time.Now(), random), Prev: newRun(t, time.Now(), random)}
		random.Read(n.Family[:])
		for _, n := range []BitmapName{n, {Family: n.Family, Stamp: n.Stamp}} {
			s := n.String()
			if len(s) != 66 {
				t.Fatalf("%q has %d bytes", s, len(s))
			}
			if back, ok := ParseBitmapName(s); !ok || back != n {
				t.Fatalf("%q came back as %v, %v", s, back, ok)
			}
		}
	}
}

func TestBitmapNamesOfAnotherFormAreNotOurs(t *testing.T) {
	n := BitmapName{Stamp: newRun(t, time.Now(), testRandom(7))}
	s := n.String()
	bad := []string{
		"", "bitmap0", s[:65], s + "0", "qb2-" + s[4:], strings.ToUpper(s), strings.Replace(s, "-", "_", 2),
		BitmapName{}.String(), s[:12] + "_" + s[13:], s[:39] + "_" + s[40:], s[:65] + "1",
	}
	for _, b := range bad {
		if got, ok := ParseBitmapName(b); ok {
			t.Errorf("%q was taken for %v", b, got)
		}
	}
}

func FuzzRunID(f *testing.F) {
	f.Add("01h3g0000000000000000000g0")
	f.Add(strings.Repeat("0", 26))
	f.Add(strings.Repeat("v", 26))
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRunID(s); err == nil && r.String() != s {
			t.Fatalf("%q came back as %q", s, r)
		}
	})
}

func FuzzParseMachineName(f *testing.F) {
	f.Add("vm-1")
	f.Add("../x")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseMachineName(s)
		if err == nil && (string(n) != s || strings.ContainsAny(s, "/\\\x00 ") || len(s) > MaxNameLen) {
			t.Fatalf("%q was accepted as %q", s, n)
		}
	})
}

func FuzzParseBitmapName(f *testing.F) {
	f.Add(BitmapName{Stamp: RunID{1}, Prev: RunID{2}}.String())
	f.Add("qb1-")
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := ParseBitmapName(s); ok && n.String() != s {
			t.Fatalf("%q came back as %q", s, n)
		}
	})
}

func TestIdentifiersComeBackThroughJSON(t *testing.T) {
	type all struct {
		Run     RunID
		Name    MachineName
		Machine MachineID
		Family  FamilyID
	}
	want := all{Run: RunID{1, 2}, Name: "vm-1", Machine: MachineID{3}, Family: FamilyID{4}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got all
	if err := json.Unmarshal(b, &got); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, s := range []string{`{"Name":"A"}`, `{"Name":""}`, `{"Machine":"00"}`, `{"Family":"x"}`, `{"Run":""}`} {
		if err := json.Unmarshal([]byte(s), &got); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s gave %v", s, err)
		}
	}
	if !(MachineID{}).IsZero() || want.Machine.IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestErrorsRepeatOnlyTheStartOfLongTexts(t *testing.T) {
	_, err := ParseMachineName(strings.Repeat("x", 10_000))
	if err == nil || len(err.Error()) > 300 || !strings.Contains(err.Error(), "machine name") {
		t.Errorf("%v", err)
	}
}
