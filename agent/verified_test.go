package agent

import (
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/verify"
)

// verified verifies the repository, records what it found, and gives it.
func (w *world) verified() *verify.Report {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	report, err := verify.Run(w.t.Context(), r, verify.Options{Data: true, Record: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

func TestAfterAVerificationFoundDamageTheNextPointIsWhole(t *testing.T) {
	// Two leaves: what is damaged belongs to the second, which no run after the second touches.
	const size = 1100 * format.DefaultBlockBytes
	const far = 1050 * format.DefaultBlockBytes
	for name, damage := range map[string]func(first, second ident.RunID) string{
		"pack":                func(first, _ ident.RunID) string { return format.PackKey("web", first, 0) },
		"pack of the base":    func(_, second ident.RunID) string { return format.PackKey("web", second, 0) },
		"deep node":           func(_, second ident.RunID) string { return format.MapKey("web", second, 0) },
		"manifest of another": func(first, _ ident.RunID) string { return format.ManifestKey("web", first) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newGhostDisk("vda", size, 1))
			content := make([]byte, 40*format.DefaultBlockBytes)
			_, _ = w.seed.Read(content)
			w.disks[0].write(far, content)
			first := w.mustBackup()
			w.disks[0].write(far+20*format.DefaultBlockBytes, content[:5*format.DefaultBlockBytes])
			second := w.mustBackup()
			w.disks[0].write(0, []byte("x"))
			third := w.mustBackup()
			wantModes(t, third, incremental)

			key := damage(first.Point, second.Point)
			w.spoilFirstNode(key)
			if report := w.verified(); len(report.Damage) == 0 || report.Damage[0].Key != key {
				t.Fatalf("verification found %+v", report.Damage)
			}
			w.disks[0].write(1, []byte("y"))
			fourth := w.mustBackup()
			wantModes(t, fourth, rescanBecause(ReasonBaseDamaged))
			w.disks[0].write(2, []byte("z"))
			fifth := w.mustBackup()
			wantModes(t, fifth, incremental)
			for _, d := range w.verified().Damage {
				for _, p := range d.Points {
					if p.Point == fourth.Point || p.Point == fifth.Point {
						t.Errorf("%s: point %s, made after the damage was known, lost %v", d.Key, p.Point, p.Disks)
					}
				}
			}
			for _, old := range []ident.RunID{first.Point, second.Point, third.Point} {
				w.forget(old)
			}
			if n := w.check(); n != 2 {
				t.Errorf("%d points, want 2", n)
			}
		})
	}
}

// spoilFirstNode flips a bit in the data of an object: of a map object in its first node, a leaf.
func (w *world) spoilFirstNode(key string) {
	w.t.Helper()
	b, err := store.ReadAll(w.t.Context(), w.mem, key, format.MaxObjectBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	b[format.MapHeaderBytes+1+(len(b)-format.MapHeaderBytes)/4] ^= 4
	w.mem.Replace(key, b)
}
