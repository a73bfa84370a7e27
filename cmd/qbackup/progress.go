package main

import (
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/restore"
)

const refresh = 200 * time.Millisecond

// bars tells whether progress bars make sense: on a terminal, and nobody asked for silence or JSON.
func (p *program) bars() bool {
	return !p.quiet && !p.json && isTerminal(p.stderr)
}

// showBackup draws a bar for each disk on a terminal, until stop is called.
func (p *program) showBackup(stats *agent.Stats) (stop func()) {
	if !p.bars() {
		return func() {}
	}
	type watched struct {
		stats any
		bar   *mpb.Bar
	}
	known := map[string]watched{}
	return p.draw(func(progress *mpb.Progress) {
		for _, d := range stats.Disks() {
			w, ok := known[d.Name]
			if !ok || w.stats != any(d.Stats) { // a run that starts over has new counters
				if ok {
					w.bar.Abort(true)
				}
				w = watched{d.Stats, newBar(progress, d.Name+" "+d.Mode, d.Stats.Total.Load())}
				known[d.Name] = w
			}
			w.bar.SetTotal(d.Stats.Total.Load(), false)
			w.bar.SetCurrent(d.Stats.Passed.Load())
		}
	})
}

// showRestore draws one bar on a terminal, until stop is called.
func (p *program) showRestore(name string, sizeBytes int64, stats *restore.Stats) (stop func()) {
	if !p.bars() {
		return func() {}
	}
	var bar *mpb.Bar
	return p.draw(func(progress *mpb.Progress) {
		if bar == nil {
			bar = newBar(progress, name, sizeBytes)
		}
		bar.SetCurrent(stats.Written.Load() + stats.Zero.Load())
	})
}

func newBar(progress *mpb.Progress, name string, total int64) *mpb.Bar {
	return progress.AddBar(total,
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace)))
}

// draw calls update every now and then. The bars are taken away at the end: the summary says it all.
func (p *program) draw(update func(*mpb.Progress)) (stop func()) {
	progress := mpb.New(mpb.WithOutput(p.stderr), mpb.WithRefreshRate(refresh), mpb.WithAutoRefresh())
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(refresh)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				update(progress)
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		progress.Shutdown()
	}
}
