package agent

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

func TestExtraFilesAreStoredWithThePointAndGivenBack(t *testing.T) {
	w := crashWorld(t)
	nvram := make([]byte, 3*testBlockBytes+17)
	_, _ = w.seed.Read(nvram)
	w.extras = []source.Extra{
		{Name: "domain.xml", Data: []byte("<domain/>")}, {Name: "empty", Data: nil}, {Name: "nvram", Data: nvram}, {Name: "zeros", Data: make([]byte, 5*testBlockBytes)},
	}
	w.consistency = format.ConsistencyFrozen
	w.mustBackup()
	w.guest(3)
	w.extras[0].Data = []byte("<domain>changed</domain>")
	s := w.mustBackup()
	wantModes(t, s, incremental, incremental)
	if s.Consistency != format.ConsistencyFrozen {
		t.Errorf("consistency is %q", s.Consistency)
	}
	r, err := repo.Open(t.Context(), w.store, w.repoOptions())
	if err != nil {
		t.Fatal(err)
	}
	point, err := r.OpenPoint(t.Context(), "web", s.Point)
	if err != nil {
		t.Fatal(err)
	}
	if got := point.Record().Consistency; got != format.ConsistencyFrozen {
		t.Errorf("the record says %q", got)
	}
	for _, x := range w.extras {
		f, err := point.Extra(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, x.Data) {
			t.Errorf("%s came back as %d bytes, %v; want %d", x.Name, len(got), err, len(x.Data))
		}
	}
	if _, err := point.Extra("other"); !errors.Is(err, repo.ErrNoExtra) {
		t.Errorf("a file that is not there gave %v", err)
	}
	if n := w.check(); n != 4 {
		t.Errorf("%d points", n)
	}
}

func TestTooManyExtraFilesAreRefusedBeforeAnythingIsStored(t *testing.T) {
	w := crashWorld(t)
	w.extras = make([]source.Extra, format.MaxExtras+1)
	_, err := w.backup()
	wantError(t, err, ErrJob)
}
