package guard

import "testing"

// BenchmarkFreeze is how long a guest is frozen at least: from before the freeze until
// the thaw, with an agent that needs no time.
func BenchmarkFreeze(b *testing.B) {
	w := newWorld(b, nil)
	g := w.start()
	var frozen float64
	for b.Loop() {
		w.hold(g, "freeze", 0)
		frozen += w.release(g, "freeze").For.Seconds()
	}
	b.ReportMetric(frozen*1000/float64(b.N), "frozen-ms/op")
	w.done(g)
}

func BenchmarkStart(b *testing.B) {
	w := newWorld(b, nil)
	for b.Loop() {
		w.done(w.start())
	}
}
