package observe

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// Verb is a method of store.Store.
type Verb uint8

// The verbs, in the order of the interface.
const (
	Put Verb = iota
	Get
	Stat
	List
	Delete
	Verbs // their number
)

// String returns the name used in metrics.
func (v Verb) String() string {
	return [...]string{"put", "get", "stat", "list", "delete"}[v]
}

// Outcome is how a call ended.
type Outcome uint8

// The outcomes.
const (
	OK        Outcome = iota
	NotFound          // store.ErrNotFound
	Exists            // store.ErrExists
	Denied            // store.ErrDenied
	Full              // store.ErrFull
	Transient         // store.ErrTransient and all below it but Busy
	Busy              // store.ErrBusy
	Cancelled         // the context ended
	Failed            // anything else
	Outcomes          // their number
)

// String returns the name used in metrics.
func (o Outcome) String() string {
	return [...]string{"ok", "not_found", "exists", "denied", "full", "transient", "busy", "cancelled", "failed"}[o]
}

func outcomeOf(err error) Outcome {
	for _, c := range [...]struct {
		class error
		o     Outcome
	}{
		{nil, OK}, {context.Canceled, Cancelled}, {context.DeadlineExceeded, Cancelled}, {store.ErrNotFound, NotFound},
		{store.ErrExists, Exists}, {store.ErrDenied, Denied}, {store.ErrFull, Full}, {store.ErrBusy, Busy}, {store.ErrTransient, Transient},
	} {
		if errors.Is(err, c.class) {
			return c.o
		}
	}
	return Failed
}

// LatencyBounds returns the upper bounds of the latency buckets; calls that take
// longer than the last fall into one bucket more.
func LatencyBounds() [LatencyBuckets - 1]time.Duration {
	const ms = time.Millisecond
	return [...]time.Duration{1 * ms, 2 * ms, 5 * ms, 10 * ms, 25 * ms, 50 * ms, 100 * ms, 250 * ms, 500 * ms,
		1000 * ms, 2500 * ms, 5000 * ms, 10_000 * ms, 30_000 * ms, 60_000 * ms}
}

// LatencyBuckets is the number of buckets of a latency histogram.
const LatencyBuckets = 16

// Stats are the counts. The zero value is ready; do not copy it.
type Stats struct {
	BytesSent     atomic.Int64 // bodies of Puts that came back without error
	BytesReceived atomic.Int64 // read from the bodies of Gets
	Retries       atomic.Int64 // attempts that were followed by another; the owner of the retries counts them

	calls   [Verbs][Outcomes]atomic.Int64
	latency [Verbs]struct {
		buckets [LatencyBuckets]atomic.Int64
		nanos   atomic.Int64
	}
}

// Calls returns how many calls of a verb had an outcome. A Get whose body broke
// counts as OK here, because its answer had begun.
func (s *Stats) Calls(v Verb, o Outcome) int64 { return s.calls[v][o].Load() }

// Latency returns, for the calls of a verb, how many fell into each bucket (not
// summed up), and the time of all together. A Get is timed until its body begins,
// a List until its end, including what the caller did in between.
func (s *Stats) Latency(v Verb) (buckets [LatencyBuckets]int64, total time.Duration) {
	for i := range buckets {
		buckets[i] = s.latency[v].buckets[i].Load()
	}
	return buckets, time.Duration(s.latency[v].nanos.Load())
}

func (s *Stats) record(v Verb, err error, took time.Duration) {
	s.calls[v][outcomeOf(err)].Add(1)
	bucket := LatencyBuckets - 1
	for i, bound := range LatencyBounds() {
		if took <= bound {
			bucket = i
			break
		}
	}
	s.latency[v].buckets[bucket].Add(1)
	s.latency[v].nanos.Add(int64(took))
}
