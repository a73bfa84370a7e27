package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/metrics"
)

// metricsSource is what this process knows, for metrics.
func (p *program) metricsSource(local *state.State) metrics.Source {
	results := local.Results(p.repository)
	return metrics.Source{
		Version: programVersion(),
		Results: results.Machines,
		Overall: func() state.Overall { return p.overall(results) },
		Probe: func() (state.Probe, bool) {
			var id format.RepositoryID
			raw, err := hex.DecodeString(results.Overall().Repository)
			if err != nil || copy(id[:], raw) != len(id) {
				return state.Probe{}, false
			}
			return local.Repository(id).Probe()
		},
		Store: p.storeStats,
	}
}

// overall is what is remembered of the repository, with what this process has not yet written down.
func (p *program) overall(results *state.Results) state.Overall {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	o := results.Overall()
	p.addCounters(&o, countersOf(p.storeStats))
	return o
}

// configuredMachines are machines as metrics show them.
func configuredMachines(machines []fleet.Machine) []metrics.Machine {
	list := make([]metrics.Machine, 0, len(machines))
	for _, m := range machines {
		list = append(list, metrics.Machine{Name: m.Name, Objective: m.Objective})
	}
	return list
}

// writeMetrics writes the textfile of the configuration, if there is one. That it cannot is no reason to fail.
func (p *program) writeMetrics(local *state.State, machines []fleet.Machine, problems int) {
	path := p.configured().Metrics.Textfile
	if path == "" {
		return
	}
	s := p.metricsSource(local)
	s.Machines = func() []metrics.Machine { return configuredMachines(machines) }
	s.Problems = func() int { return problems }
	if err := metrics.WriteFile(path, s); err != nil {
		p.warn("%v", err)
	}
}

// listen says where the service's metrics are; false: nowhere.
func listen(c configs.Metrics) (metrics.Listen, bool, error) {
	l := metrics.Listen{Address: c.Listen, Certificate: c.TLS.Certificate, Key: c.TLS.Key, User: c.BasicAuth.User}
	if c.Listen == configs.ListenOff || c.Listen == "" {
		return l, false, nil
	}
	if file := c.BasicAuth.PasswordFile; file != "" {
		if err := configs.CheckSecret(file); err != nil {
			return l, false, err
		}
		password, err := os.ReadFile(file)
		if err != nil {
			return l, false, fmt.Errorf("read the password of the metrics: %w", err)
		}
		l.Password = string(bytes.TrimRight(password, "\r\n"))
	}
	if c.TLS.Key != "" {
		if err := configs.CheckSecret(c.TLS.Key); err != nil {
			return l, false, err
		}
	}
	return l, true, nil
}
