package probe_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/probe"
	"github.com/qbackup/qbackup/internal/store/retry"
	"github.com/qbackup/qbackup/internal/store/s3"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func full(t *testing.T, s store.Store) probe.Verdict {
	t.Helper()
	v, err := probe.Full(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", v)
	return v
}

func openS3(t *testing.T, server *storetest.Server, change func(*s3.Options)) *s3.Store {
	t.Helper()
	o := s3.Options{Endpoint: server.Host, Bucket: server.Bucket, Credentials: s3.StaticCredentials(server.AccessKey, server.SecretKey, "")}
	if change != nil {
		change(&o)
	}
	s, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestGoodStoresPass(t *testing.T) {
	folder, err := dir.Open(t.TempDir(), dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := storetest.S3(t)
	bucket := openS3(t, server, func(o *s3.Options) { o.Prefix = "bucket" })
	agent := openS3(t, server.Agent(t), func(o *s3.Options) { o.Prefix = "agent" })
	for name, s := range map[string]store.Store{"memory": mem.New(), "folder": folder, "bucket": retry.New(bucket, retry.Options{}), "agent": agent} {
		t.Run(name, func(t *testing.T) {
			v := full(t, s)
			if v.CreateOnly != probe.Yes || v.OneWinner != probe.Yes || v.ReadAfterWrite != probe.Yes || len(v.Problems) != 0 || !v.Exclusive() {
				t.Errorf("%+v", v)
			}
			wantSum := probe.NotAsked
			if name == "bucket" || name == "agent" {
				wantSum = probe.Yes
			}
			if v.ChecksumRefused != wantSum {
				t.Errorf("wrong checksum refused: %v", v.ChecksumRefused)
			}
			if v.ClockSkew < -2*time.Second || v.ClockSkew > 2*time.Second {
				t.Errorf("clock skew %v", v.ClockSkew)
			}
			before := count(t, s)
			light, err := probe.Light(t.Context(), s)
			if err != nil || light.CreateOnly != probe.Yes || !light.Exclusive() || count(t, s) != before {
				t.Errorf("light: %+v, %v; %d objects, were %d", light, err, count(t, s), before)
			}
			full(t, s) // a second one has keys of its own
		})
	}
}

func count(t *testing.T, s store.Store) (n int) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(info.Key, "probe/") {
			t.Errorf("probe wrote %s", info.Key)
		}
		n++
	}
	return n
}

func TestABucketWithoutConditionsOrChecksumsIsFoundOut(t *testing.T) {
	server := storetest.S3(t)
	v := full(t, openS3(t, server, func(o *s3.Options) { o.Unconditional, o.Prefix = true, "a" }))
	if v.CreateOnly != probe.No || v.OneWinner != probe.No || v.Exclusive() || len(v.Problems) < 2 {
		t.Errorf("without conditions: %+v", v)
	}
	v = full(t, openS3(t, server, func(o *s3.Options) { o.Checksum, o.Prefix = s3.NoChecksum, "b" }))
	if v.ChecksumRefused != probe.No || v.CreateOnly != probe.Yes || v.OverwriteRefused != probe.No {
		t.Errorf("without checksums: %+v", v)
	}
}

func TestARealServerThatIgnoresConditionsIsFoundOut(t *testing.T) {
	v := full(t, openS3(t, storetest.S3(t, "--nometa"), nil))
	if v.CreateOnly != probe.No || v.Exclusive() || len(v.Problems) == 0 {
		t.Errorf("%+v", v)
	}
}

func TestBadStoresAreFoundOut(t *testing.T) {
	always := func(r fault.Rule) fault.Rule { r.Count = fault.Forever; return r }
	for name, c := range map[string]struct {
		rule   fault.Rule
		broken func(probe.Verdict) probe.Answer
	}{
		"overwrites":           {always(fault.Rule{Kind: fault.Overwrite}), func(v probe.Verdict) probe.Answer { return v.CreateOnly }},
		"garbles":              {always(fault.Rule{Kind: fault.Garble, From: 4}), func(v probe.Verdict) probe.Answer { return v.ReadAfterWrite }},
		"resizes":              {always(fault.Rule{Kind: fault.Resize}), func(v probe.Verdict) probe.Answer { return v.ReadAfterWrite }},
		"omits":                {always(fault.Rule{Kind: fault.Omit, Prefix: "probe/"}), func(v probe.Verdict) probe.Answer { return v.ReadAfterWrite }},
		"loses objects":        {always(fault.Rule{Verb: fault.Stat, From: 3, Err: store.ErrNotFound}), func(v probe.Verdict) probe.Answer { return v.ReadAfterWrite }},
		"lists out of order":   {always(fault.Rule{Verb: fault.List, Err: store.ErrCorrupt}), func(v probe.Verdict) probe.Answer { return v.ReadAfterWrite }},
		"lets more than 1 win": {always(fault.Rule{Kind: fault.Overwrite, From: 4}), func(v probe.Verdict) probe.Answer { return v.OneWinner }},
	} {
		t.Run(name, func(t *testing.T) {
			v := full(t, fault.New(mem.New(), 0, c.rule))
			if c.broken(v) != probe.No || len(v.Problems) == 0 {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestAnOverwritingStoreIsFoundOutByTheLightProbeToo(t *testing.T) {
	s := fault.New(mem.New(), 0, fault.Rule{Kind: fault.Overwrite, Count: fault.Forever})
	v, err := probe.Light(t.Context(), s)
	if err != nil || v.CreateOnly != probe.No || v.Exclusive() {
		t.Errorf("%+v, %v", v, err)
	}
	// A lost answer below a retrying store is not taken for an overwrite.
	f := fault.New(mem.New(), 0)
	r := retry.New(f, retry.Options{Base: 1})
	full(t, r)
	f.Add(fault.Rule{Verb: fault.Put})
	if v, err = probe.Light(t.Context(), r); err != nil || v.CreateOnly != probe.Yes {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestNothingIsSaidAboutAStoreThatCannotBeAsked(t *testing.T) {
	for n := 1; n <= 40; n++ {
		f := fault.New(mem.New(), 0, fault.Down(n))
		_, err := probe.Full(t.Context(), f)
		if err == nil && f.Calls(fault.Any) >= n {
			t.Errorf("down from call %d of %d on: a verdict", n, f.Calls(fault.Any))
		}
		if err != nil && !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("down from call %d on: %v", n, err)
		}
	}
	for _, class := range []error{store.ErrDenied, store.ErrUnreachable, store.ErrFull} {
		s := fault.New(mem.New(), 0, fault.Rule{Verb: fault.Put, Count: fault.Forever, Err: class})
		if _, err := probe.Full(t.Context(), s); !errors.Is(err, class) {
			t.Errorf("full: %v", err)
		}
		if _, err := probe.Light(t.Context(), s); !errors.Is(err, class) {
			t.Errorf("light: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probe.Full(ctx, mem.New()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAVerdictSurvivesJSON(t *testing.T) {
	v := full(t, mem.New())
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var again probe.Verdict
	if err := json.Unmarshal(b, &again); err != nil || !again.Time.Equal(v.Time) || again.CreateOnly != v.CreateOnly || again.ClockSkew != v.ClockSkew {
		t.Errorf("%s: %v", b, err)
	}
}
