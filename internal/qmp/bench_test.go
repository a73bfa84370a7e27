package qmp

import (
	"path/filepath"
	"testing"
)

func BenchmarkRoundTrip(b *testing.B) {
	dir, _ := storageDaemon(b)
	m := dial(b, filepath.Join(dir, "a"), Options{})
	for b.Loop() {
		if err := m.Execute(b.Context(), "query-block-jobs", nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSchema(b *testing.B) {
	dir, _ := qemu(b, "-machine", "none")
	m := dial(b, filepath.Join(dir, "a"), Options{})
	for b.Loop() {
		m.schema = nil
		if _, err := m.Schema(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
