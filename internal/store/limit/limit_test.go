package limit_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/limit"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestALimitedStoreKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store {
		return limit.New(mem.New(), limit.Options{UploadBytesPerSecond: 4 << 30, DownloadBytesPerSecond: 4 << 30, RequestsPerSecond: 1e6})
	})
}

func TestWithoutLimitsNothingIsSlowed(t *testing.T) {
	if (limit.Options{}).Limited() || !(limit.Options{DownloadBytesPerSecond: 1}).Limited() {
		t.Error("Limited is wrong")
	}
	synctest.Test(t, func(t *testing.T) {
		s := limit.New(mem.New(), limit.Options{})
		if took := transfer(t, s, 64<<20); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

// transfer puts and gets an object of size bytes and returns the time it took.
func transfer(t *testing.T, s store.Store, size int) time.Duration {
	t.Helper()
	start := time.Now()
	if err := s.Put(t.Context(), "a", store.NewBody(make([]byte, size)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if b, err := store.ReadAll(t.Context(), s, "a", int64(size)); err != nil || len(b) != size {
		t.Fatal(err)
	}
	return time.Since(start)
}

func TestRatesHoldForObjectsLargerThanABurst(t *testing.T) {
	for name, o := range map[string]limit.Options{
		"up":   {UploadBytesPerSecond: 1 << 20},
		"down": {DownloadBytesPerSecond: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took := transfer(t, limit.New(mem.New(), o), 16<<20)
				if took < 15*time.Second || took > 17*time.Second {
					t.Errorf("16 MiB at 1 MiB/s took %v", took)
				}
			})
		})
	}
}

func TestRequestsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := limit.New(mem.New(), limit.Options{RequestsPerSecond: 20})
		start := time.Now()
		for range 50 {
			_, _ = s.Stat(t.Context(), "a")
			_ = s.Delete(t.Context(), nil)
			for range s.List(t.Context(), "") {
			}
			_, _ = s.Get(t.Context(), "a", 0, -1)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("200 calls at 20 per second took %v", took)
		}
	})
}

func TestADeadlineThatIsTooNearEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := limit.New(mem.New(), limit.Options{UploadBytesPerSecond: 1 << 10, DownloadBytesPerSecond: 1 << 10})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Put(ctx, "a", store.NewBody(make([]byte, 1<<20)), store.PutOptions{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("put: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		inner := mem.New()
		inner.Replace("a", make([]byte, 1<<20))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := limit.New(inner, limit.Options{DownloadBytesPerSecond: 1 << 10}).Get(ctx, "a", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get: %v", err)
		}
		r.Close()
	})
}

func TestARateMayChangeWhileAnObjectIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		rate := func() int64 {
			if time.Since(start) < 8*time.Second {
				return 1 << 20
			}
			return 0
		}
		o := limit.Options{Upload: rate}
		if !o.Limited() {
			t.Error("Limited is wrong")
		}
		if took := transfer(t, limit.New(mem.New(), o), 64<<20); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("8 s at 1 MiB/s, and the rest at once, took %v", took)
		}
	})
}
