package qmp

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// A subscription keeps this much for a reader that is slow. What is older is dropped.
const (
	eventsKept     = 1024
	eventBytesKept = 16 << 20
)

// Event is something that QEMU tells on its own.
type Event struct {
	Name string          // "BLOCK_JOB_COMPLETED"
	Time time.Time       // by QEMU's clock
	Data json.RawMessage // nil when the event has none
}

// Subscription is a queue of events. Its methods may be called in parallel.
type Subscription struct {
	monitor *Monitor
	names   map[string]bool // empty: all
	wake    chan struct{}   // holds a token when the queue may have something
	closed  chan struct{}

	mu        sync.Mutex
	queue     []Event
	bytes     int
	dropped   uint64
	closeOnce sync.Once
}

// Subscribe collects the events of the given names from now on, all events without a
// name. To miss nothing, subscribe before the command that causes it. A slow reader
// never holds up replies: the oldest events are dropped, and counted.
func (m *Monitor) Subscribe(names ...string) *Subscription {
	s := &Subscription{monitor: m, names: map[string]bool{}, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	for _, name := range names {
		s.names[name] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subscriptions[s] = struct{}{}
	return s
}

// Next waits for the next event. When the connection is over it gives what is left,
// and then Monitor.Err; after Close it gives ErrLost.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if e, ok := s.pop(); ok {
			return e, nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		case <-s.closed:
			return Event{}, ErrLost
		case <-s.monitor.done:
			// All that came was queued before the end was told.
			if e, ok := s.pop(); ok {
				return e, nil
			}
			return Event{}, s.monitor.Err()
		}
	}
}

// Dropped is how many events were lost because nobody took them in time.
func (s *Subscription) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.monitor.mu.Lock()
	delete(s.monitor.subscriptions, s)
	s.monitor.mu.Unlock()
	s.closeOnce.Do(func() { close(s.closed) })
}

func (s *Subscription) pop() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return Event{}, false
	}
	e := s.queue[0]
	s.removeOldest()
	if len(s.queue) > 0 {
		s.signal() // for another reader
	}
	return e, true
}

func (s *Subscription) removeOldest() {
	s.bytes -= len(s.queue[0].Data)
	s.queue[0] = Event{}
	s.queue = s.queue[1:]
}

func (s *Subscription) push(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, e)
	s.bytes += len(e.Data)
	for len(s.queue) > 1 && (len(s.queue) > eventsKept || s.bytes > eventBytesKept) {
		s.removeOldest()
		s.dropped++
	}
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish gives an event to all who want it.
func (m *Monitor) publish(got message) {
	e := Event{Name: got.Event, Data: got.Data,
		Time: time.Unix(got.Timestamp.Seconds, 0).Add(time.Duration(got.Timestamp.Microseconds) * time.Microsecond)}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.subscriptions {
		if len(s.names) == 0 || s.names[e.Name] {
			s.push(e)
		}
	}
}
