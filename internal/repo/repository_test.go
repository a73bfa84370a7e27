package repo

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
)

func put(t *testing.T, s *mem.Store, key, content string) {
	t.Helper()
	if err := s.Put(context.Background(), key, store.NewBody([]byte(content)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestAnEmptyPlaceIsNoRepository(t *testing.T) {
	ctx := context.Background()
	s := mem.New()
	put(t, s, "probe/1", "left by a probe")
	if _, err := Open(ctx, s, Options{}); !errors.Is(err, ErrNoRepository) || !strings.Contains(err.Error(), "init") {
		t.Fatalf("open: %v", err)
	}
	r, created, err := Init(ctx, s, InitOptions{})
	if err != nil || !created || r.BlockBytes() != format.DefaultBlockBytes {
		t.Fatalf("init: %v, %v", created, err)
	}
}

func TestInitOfAnExistingRepositoryChangesNothing(t *testing.T) {
	ctx := context.Background()
	s := mem.New()
	first, _, err := Init(ctx, s, InitOptions{BlockBytes: testBlock})
	if err != nil {
		t.Fatal(err)
	}
	again, created, err := Init(ctx, s, InitOptions{})
	if err != nil || created || again.ID() != first.ID() || again.BlockBytes() != testBlock {
		t.Fatalf("init again: %v, %v", created, err)
	}
	if again.Hasher().Sum(make([]byte, testBlock)) != first.Hasher().Sum(make([]byte, testBlock)) {
		t.Error("two openings hash differently")
	}
}

// late shows an empty place to the first listings: what a second init sees that
// began at the same time.
type late struct {
	store.Store
	blind int
}

func (l *late) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	if l.blind--; l.blind >= 0 {
		return func(func(store.Info, error) bool) {}
	}
	return l.Store.List(ctx, prefix)
}

func TestTheLoserOfTwoInitsOpensWhatTheWinnerMade(t *testing.T) {
	ctx := context.Background()
	s := mem.New()
	winner, _, err := Init(ctx, s, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	loser, created, err := Init(ctx, &late{Store: s, blind: 2}, InitOptions{BlockBytes: testBlock})
	if err != nil || created || loser.ID() != winner.ID() || loser.BlockBytes() != winner.BlockBytes() {
		t.Fatalf("created %v, %v", created, err)
	}
}

func TestInitWithALostAnswerKnowsItsOwn(t *testing.T) {
	s := fault.New(mem.New(), 1, fault.Rule{Verb: fault.Put, Kind: fault.After})
	if _, created, err := Init(context.Background(), s, InitOptions{}); err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
}

func TestPlacesWithSomethingElseAreRefused(t *testing.T) {
	ctx := context.Background()
	descriptor := func() string {
		s := mem.New()
		if _, _, err := Init(ctx, s, InitOptions{}); err != nil {
			t.Fatal(err)
		}
		b, err := store.ReadAll(ctx, s, format.RepositoryKey(1), format.MaxDocumentBytes)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}()
	spoiled := strings.Replace(descriptor, "block_bytes", "block_bytez", 1)
	for name, c := range map[string]struct {
		key, content string
		want         error
	}{
		"another tool":           {"config", "restic", ErrFormat},
		"an odd descriptor key":  {"repository/config", "x", ErrFormat},
		"another format":         {format.RepositoryKey(1), "something else\n", ErrFormat},
		"a later version":        {format.RepositoryKey(1), documentOf(t, "qbackup repository 2\n{}\n"), ErrFormat},
		"an empty descriptor":    {format.RepositoryKey(1), "", ErrDamaged},
		"half a descriptor":      {format.RepositoryKey(1), descriptor[:len(descriptor)/2], ErrDamaged},
		"a flipped bit":          {format.RepositoryKey(1), spoiled, ErrDamaged},
		"flipped in the start":   {format.RepositoryKey(1), "p" + descriptor[1:], ErrDamaged},
		"another generation":     {format.RepositoryKey(2), descriptor, ErrDamaged},
		"data and no descriptor": {format.MachineKey("web1"), "x", ErrDamaged},
	} {
		s := mem.New()
		put(t, s, c.key, c.content)
		if _, err := Open(ctx, s, Options{}); !errors.Is(err, c.want) {
			t.Errorf("open with %s: %v, want %v", name, err, c.want)
		}
		if _, created, err := Init(ctx, s, InitOptions{}); !errors.Is(err, c.want) || created {
			t.Errorf("init with %s: %v, %v", name, created, err)
		}
	}
}

func documentOf(t *testing.T, text string) string {
	t.Helper()
	return text + "blake3 " + format.SumHash([]byte(text)).String() + "\n"
}

func descriptorWith(t *testing.T, change func(*format.Descriptor)) *mem.Store {
	t.Helper()
	s := mem.New()
	r, _, err := Init(context.Background(), s, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d := r.Descriptor()
	d.Generation = 2
	change(&d)
	b, err := format.AppendDescriptor(nil, &d)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, format.RepositoryKey(2), string(b))
	return s
}

func TestTheHighestGenerationWinsAndItsFeaturesBind(t *testing.T) {
	ctx := context.Background()
	r, err := Open(ctx, descriptorWith(t, func(d *format.Descriptor) { d.Optional = []string{"later"} }), Options{})
	if err != nil || r.Descriptor().Generation != 2 {
		t.Fatalf("optional feature: %v", err)
	}
	unreadable := mem.New()
	put(t, unreadable, format.RepositoryKey(1), documentOf(t, "qbackup repository 1\n{\"must_read\":[\"later\"]}\n"))
	if _, err := Open(ctx, unreadable, Options{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "later") {
		t.Fatalf("must-read feature: %v", err)
	}
	r, err = Open(ctx, descriptorWith(t, func(d *format.Descriptor) { d.MustWrite = []string{"later"} }), Options{})
	if err != nil {
		t.Fatalf("must-write feature: %v", err)
	}
	if _, err := r.Begin(ctx, IntentSpec{Machine: testMachine, MachineID: ident.MachineID{1}}); !errors.Is(err, ErrFormat) {
		t.Errorf("begin: %v", err)
	}
	if _, err := r.CreateMachine(ctx, format.Machine{Name: testMachine, ID: ident.MachineID{1}}); !errors.Is(err, ErrFormat) {
		t.Errorf("create machine: %v", err)
	}
	if err := r.AbortRun(ctx, testMachine, ident.MachineID{1}, ident.RunID{1}, "x"); !errors.Is(err, ErrFormat) {
		t.Errorf("abort: %v", err)
	}
}

func TestAStoreThatCannotBeAskedIsNoVerdictOnThePlace(t *testing.T) {
	for n := 1; n <= 4; n++ {
		s := fault.New(mem.New(), 1, fault.Down(n))
		_, created, err := Init(context.Background(), s, InitOptions{})
		if created || !errors.Is(err, store.ErrUnreachable) || errors.Is(err, ErrNoRepository) || errors.Is(err, ErrFormat) || errors.Is(err, ErrDamaged) {
			t.Errorf("down from call %d on: %v, %v", n, created, err)
		}
	}
}

func TestMachinesAreCreatedOnceAndListed(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	second, err := w.repo.CreateMachine(ctx, format.Machine{Name: testMachine, ID: ident.MachineID{9}, FirstHost: "other"})
	if err != nil || second.ID != w.machine.ID || second.FirstHost != "host1" {
		t.Fatalf("a machine that exists: %+v, %v", second, err)
	}
	got, found, err := w.repo.Machine(ctx, testMachine)
	if err != nil || !found || got.ID != w.machine.ID {
		t.Fatalf("machine: %+v, %v, %v", got, found, err)
	}
	if _, found, err := w.repo.Machine(ctx, "db"); err != nil || found {
		t.Fatalf("a machine that is not there: %v, %v", found, err)
	}
	put(t, w.mem, "machines/db/odd", "x")
	put(t, w.mem, "machines/zz", "x")
	names, err := w.repo.Machines(ctx)
	if err != nil || len(names) != 2 || names[0] != testMachine || names[1] != "zz" {
		t.Fatalf("machines: %v, %v", names, err)
	}
	if _, _, err := w.repo.Machine(ctx, "zz"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a spoiled machine: %v", err)
	}
}

func TestADocumentUnderAnotherKeyIsDamage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	one := w.backup(nil, 10*testBlock, change{0, 5, 1})
	two := w.backup(one, 10*testBlock, change{0, 1, 2})
	record, err := store.ReadAll(ctx, w.mem, format.PointKey(testMachine, one.record.Run), format.MaxDocumentBytes)
	if err != nil {
		t.Fatal(err)
	}
	w.mem.Replace(format.PointKey(testMachine, two.record.Run), record)
	if _, err := w.repo.Slot(ctx, testMachine, two.record.Run); !errors.Is(err, ErrDamaged) || !errors.Is(err, format.ErrMisplaced) {
		t.Errorf("a record under another run: %v", err)
	}
	put(t, w.mem, format.PointKey("db", one.record.Run), string(record))
	if _, err := w.repo.Slot(ctx, "db", one.record.Run); !errors.Is(err, format.ErrMisplaced) {
		t.Errorf("a record under another machine: %v", err)
	}
	other, _, err := Init(ctx, mem.New(), InitOptions{BlockBytes: testBlock})
	if err != nil {
		t.Fatal(err)
	}
	put(t, other.Store().(*mem.Store), format.PointKey(testMachine, one.record.Run), string(record))
	if _, err := other.Slot(ctx, testMachine, one.record.Run); !errors.Is(err, format.ErrMisplaced) {
		t.Errorf("a record of another repository: %v", err)
	}
}
