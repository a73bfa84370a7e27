package main

import (
	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/observe"
)

// remember writes down how a backup ended. That a host cannot is no reason to fail.
func (p *program) remember(results *state.Results, e agent.Ending) {
	if err := agent.Remember(results, e); err != nil {
		p.warn("%v", err)
	}
	p.keepStoreCounters(results)
}

// keepStoreCounters adds this process's requests to the store to those of all runs of this host. Each request is added once.
func (p *program) keepStoreCounters(results *state.Results) {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	now := countersOf(p.storeStats)
	err := results.UpdateOverall(func(o *state.Overall) {
		if !p.opened.IsZero() {
			o.Repository = p.opened.String()
		}
		p.addCounters(o, now)
	})
	if err != nil {
		p.warn("%v", err)
		return
	}
	p.kept = now
}

// addCounters adds what was counted up to now and not yet written down.
func (p *program) addCounters(o *state.Overall, now state.StoreCounters) {
	if o.Store.Requests == nil {
		o.Store.Requests = map[string]uint64{}
	}
	for name, n := range now.Requests {
		o.Store.Requests[name] += n - p.kept.Requests[name]
	}
	o.Store.Retries += now.Retries - p.kept.Retries
	o.Store.BytesSent += now.BytesSent - p.kept.BytesSent
	o.Store.BytesReceived += now.BytesReceived - p.kept.BytesReceived
}

func countersOf(s *observe.Stats) state.StoreCounters {
	c := state.StoreCounters{
		Requests: map[string]uint64{}, Retries: uint64(s.Retries.Load()),
		BytesSent: uint64(s.BytesSent.Load()), BytesReceived: uint64(s.BytesReceived.Load()),
	}
	for v := range observe.Verbs {
		for o := range observe.Outcomes {
			if n := s.Calls(v, o); n > 0 {
				c.Requests[v.String()+" "+o.String()] = uint64(n)
			}
		}
	}
	return c
}
