package metrics

import (
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/upload"
)

// Source is what a Collector shows. Every function is called at each scrape; a nil one
// has nothing to show.
type Source struct {
	Version string
	// Results are what is remembered of the machines' backups, Overall of the repository.
	Results func() ([]state.Result, error)
	Overall func() state.Overall
	// Machines are those of the configuration.
	Machines func() []Machine
	// Problems is how many entries of the configuration have no machine.
	Problems func() int
	// Unassigned are domains of libvirt that no entry names.
	Unassigned func() []string
	// Running are the backups that run now.
	Running func() []Running
	// Next is what the next backups would read.
	Next func() []Next
	// Probe is the last verdict on the store; false: there is none.
	Probe func() (state.Probe, bool)
	// Store counts this process's requests: their latencies are shown.
	Store *observe.Stats
}

// Machine is a machine of the configuration.
type Machine struct {
	Name      ident.MachineName
	Objective time.Duration // 0: nobody said
}

// Running is a backup that runs.
type Running struct {
	Machine ident.MachineName
	Since   time.Time
	Stats   Progress
}

// Next is what the next backup of a machine would read, as it was looked at last.
type Next struct {
	Machine ident.MachineName
	Looked  time.Time
	Disks   []agent.DiskForecast
}

// Progress is how far a backup is; *agent.Stats is one. It may be asked at any time.
type Progress interface {
	Disks() []agent.DiskProgress
	Pipeline() *upload.PipelineStats
	ScratchBytes() int64
}

// Collector is a prometheus.Collector.
type Collector struct{ source Source }

var _ prometheus.Collector = (*Collector)(nil)

// New makes a collector.
func New(s Source) *Collector { return &Collector{s} }

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range all() {
		ch <- d.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch}
	s.put(buildInfo, 1, c.source.Version, runtime.Version())
	if c.source.Results != nil {
		results, err := c.source.Results()
		s.put(stateReadable, truth(err == nil))
		for _, r := range results {
			s.result(r)
		}
	}
	if c.source.Overall != nil {
		s.overall(c.source.Overall())
	}
	c.configuration(s)
	if c.source.Probe != nil {
		if p, ok := c.source.Probe(); ok {
			s.put(createOnly, truth(p.CreateOnly))
			s.put(probeTime, seconds(p.Time))
		}
	}
	if c.source.Running != nil {
		running := c.source.Running()
		s.put(runningBackups, float64(len(running)))
		for _, r := range running {
			s.running(r)
		}
	}
	if c.source.Next != nil {
		for _, n := range c.source.Next() {
			s.put(nextLooked, seconds(n.Looked), string(n.Machine))
			for _, d := range n.Disks {
				s.put(nextBytes, float64(d.Bytes), string(n.Machine), d.Name, string(d.Reason))
			}
		}
	}
	if c.source.Store != nil {
		s.latencies(c.source.Store)
	}
}

func (c *Collector) configuration(s sink) {
	if c.source.Machines != nil {
		machines := c.source.Machines()
		s.put(configuredMachines, float64(len(machines)))
		for _, m := range machines {
			if m.Objective > 0 {
				s.put(objective, m.Objective.Seconds(), string(m.Name))
			}
		}
	}
	if c.source.Problems != nil {
		s.put(configProblems, float64(c.source.Problems()))
	}
	if c.source.Unassigned != nil {
		for _, domain := range c.source.Unassigned() {
			s.put(unassigned, 1, strings.ToValidUTF8(domain, "?"))
		}
	}
}

// sink is where metrics go.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) put(m *metric, value float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

func (s sink) result(r state.Result) {
	name := string(r.Machine)
	a := r.Attempt
	for _, status := range state.Statuses() {
		s.put(lastStatus, truth(a.Status == status), name, string(status))
		s.put(attempts, float64(r.Counters.Attempts[status]), name, string(status))
	}
	if !a.End.IsZero() {
		s.put(lastAttempt, seconds(a.End), name)
		s.put(lastDuration, a.DurationSeconds, name)
		s.put(lastFreeze, a.FreezeSeconds, name)
		s.put(lastAlarms, float64(len(a.Alarms)), name)
	}
	if !r.Success.Time.IsZero() {
		s.put(lastSuccess, seconds(r.Success.Time), name)
	}
	if !r.Latest.Time.IsZero() {
		s.put(latestPoint, seconds(r.Latest.Time), name)
	}
	for _, d := range r.Disks {
		s.put(diskMode, 1, name, d.Name, d.Mode, d.Reason)
		for m, bytes := range map[*metric]int64{
			diskSize: d.SizeBytes, diskDirty: d.DirtyBytes, diskRead: d.ReadBytes, diskZero: d.ZeroBytes, diskSkipped: d.SkippedBytes, diskStored: d.StoredBytes,
		} {
			s.put(m, float64(bytes), name, d.Name)
		}
	}
	s.counters(name, r.Counters)
	if v := r.Verified; !v.Time.IsZero() {
		s.put(verifiedTime, seconds(v.Time), name)
		s.put(damagedObjects, float64(v.DamagedObjects), name)
		s.put(damagedPoints, float64(v.DamagedPoints), name)
	}
	s.kept(name, r.Kept)
}

// kept is what the repository holds of a machine.
func (s sink) kept(name string, k state.Kept) {
	s.put(forgottenPoints, float64(k.Forgotten), name)
	if !k.Time.IsZero() {
		s.put(points, float64(k.Points), name)
		s.put(pointsTime, seconds(k.Time), name)
		s.put(retentionFailed, truth(k.Error != ""), name)
	}
	if !k.Newest.IsZero() {
		s.put(oldestPoint, seconds(k.Oldest), name)
		s.put(newestPoint, seconds(k.Newest), name)
	}
	if !k.PrunedAt.IsZero() {
		s.put(machineStored, float64(k.StoredBytes), name)
	}
}

func (s sink) counters(name string, c state.Counters) {
	for m, n := range map[*metric]uint64{
		scannedBlocks: c.ScannedBlocks, sampleMismatches: c.SampleMismatches, bitmapResets: c.BitmapResets, resetFailures: c.ResetFailures,
		dirtyBytes: c.DirtyBytes, readBytes: c.ReadBytes, zeroBytes: c.ZeroBytes, skippedBytes: c.SkippedBytes, storedBytes: c.StoredBytes,
	} {
		s.put(m, float64(n), name)
	}
	s.put(durationTotal, c.DurationSeconds, name)
	s.put(freezeTotal, c.FreezeSeconds, name)
	for reason, n := range c.Rescans {
		s.put(rescans, float64(n), name, reason)
	}
	for kind, n := range c.Alarms {
		s.put(alarms, float64(n), name, kind)
	}
}

func (s sink) overall(o state.Overall) {
	for v := range observe.Verbs {
		for outcome := range observe.Outcomes {
			s.put(storeRequests, float64(o.Store.Requests[v.String()+" "+outcome.String()]), v.String(), outcome.String())
		}
	}
	s.put(storeRetries, float64(o.Store.Retries))
	s.put(storeSent, float64(o.Store.BytesSent))
	s.put(storeReceived, float64(o.Store.BytesReceived))
	s.put(pruneObjects, float64(o.Prune.Objects))
	s.put(pruneBytes, float64(o.Prune.Bytes))
	s.put(pruneAborted, float64(o.Prune.RunsAborted))
	if p := o.Prune; !p.End.IsZero() {
		s.put(pruneTime, seconds(p.End))
		s.put(pruneFailed, truth(p.Error != ""))
	}
}

func (s sink) running(r Running) {
	name := string(r.Machine)
	s.put(runningSince, seconds(r.Since), name)
	for _, d := range r.Stats.Disks() {
		s.put(runningTotal, float64(d.Stats.Total.Load()), name, d.Name)
		s.put(runningPassed, float64(d.Stats.Passed.Load()), name, d.Name)
	}
	p := r.Stats.Pipeline()
	for stage, nanos := range p.Busy() {
		s.put(stageBusy, time.Duration(nanos).Seconds(), name, stage)
	}
	s.put(queued, float64(p.Queued.Load()), name)
	s.put(inFlight, float64(p.BufferBytes.Load()), name)
	s.put(scratchBytes, float64(r.Stats.ScratchBytes()), name)
}

func (s sink) latencies(stats *observe.Stats) {
	bounds := observe.LatencyBounds()
	for v := range observe.Verbs {
		counts, total := stats.Latency(v)
		buckets := map[float64]uint64{}
		var sum uint64
		for i, n := range counts {
			sum += uint64(n)
			if i < len(bounds) {
				buckets[bounds[i].Seconds()] = sum
			}
		}
		s.ch <- prometheus.MustNewConstHistogram(storeLatency.desc, sum, total.Seconds(), buckets, v.String())
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is a time as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
