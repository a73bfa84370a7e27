package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/restore"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
)

var update = flag.Bool("update", false, "write docs/exit-codes.md anew")

func TestTheManualListsTheExitCodes(t *testing.T) {
	const path = "../../docs/exit-codes.md"
	var b strings.Builder
	b.WriteString("# Exit codes\n\nWhen an error belongs to several classes, the first one in the order of the table in `cmd/qbackup/exit.go` decides.\n\n| code | class in JSON and metrics | when |\n|---|---|---|\n")
	for _, want := range []int{exitDone, exitFailed, exitSome, exitNoRepo, exitBusy, exitDenied, exitSource, exitDamage, exitUsage, exitInterrupted} {
		for _, row := range exitTable() {
			if row.code == want {
				fmt.Fprintf(&b, "| %d | %s | %s |\n", row.code, row.class, row.when)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != b.String() {
		t.Errorf("%s is not what the table says (%v); go test ./cmd/qbackup -update writes it", path, err)
	}
}

func TestEveryClassOfErrorHasItsCode(t *testing.T) {
	cases := []struct {
		err  error
		code int
	}{
		{usagef("no"), 64},
		{fmt.Errorf("open: %w", repo.ErrNoRepository), 10},
		{fmt.Errorf("lock: %w", state.ErrBusy), 11},
		{&agent.RunningError{}, 11},
		{&agent.SomeFailedError{Disks: []agent.DiskError{{Disk: "a", Err: source.ErrHeld}}}, 3},
		{store.Fail("get", "x", store.ErrDenied, nil, ""), 12},
		{fmt.Errorf("open state directory: %w", &fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EACCES}), 12},
		{store.Fail("list", "", store.ErrNoStore, nil, ""), 10},
		{&source.UsableError{Path: "x", Err: syscall.EACCES}, 20},
		{&source.HeldError{Path: "x"}, 20},
		{&source.UsableError{Path: "x", Err: errors.New("bad")}, 20},
		{&repo.Damage{Key: "x", Err: errors.New("bad")}, 21},
		{fmt.Errorf("restore: %w", &restore.LostError{Err: &repo.Damage{Key: "x", Err: errors.New("bad")}}), 21},
		{errors.New("anything"), 1},
		{store.Fail("put", "x", store.ErrFull, nil, ""), 1},
	}
	for _, c := range cases {
		if got := exitCode(context.Background(), c.err); got != c.code {
			t.Errorf("%v: code %d, want %d", c.err, got, c.code)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := exitCode(ctx, errors.New("anything")); got != 130 {
		t.Errorf("interrupted: code %d", got)
	}
}
