package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/target"
)

// Exit codes. The numbers that other backup tools use for the same thing are kept.
const (
	exitDone        = 0
	exitFailed      = 1
	exitSome        = 3
	exitNoRepo      = 10
	exitBusy        = 11
	exitDenied      = 12
	exitSource      = 20
	exitDamage      = 21
	exitUsage       = 64
	exitInterrupted = 130
)

// exitTable maps classes of errors to exit codes; the first class that an error has decides. A test prints it into
// the manual.
func exitTable() []exitRow {
	return []exitRow{
		{exitDone, "done", nil},
		{exitUsage, "the command line or the configuration is wrong", []error{errUsage, target.ErrSpec}},
		{exitNoRepo, "there is no repository at that place", []error{repo.ErrNoRepository, store.ErrNoStore}},
		{exitBusy, "another qbackup is at work on the machine", []error{state.ErrBusy, agent.ErrRunning}},
		{exitSome, "a point was made, but some disks or machines failed", []error{agent.ErrSomeFailed}},
		{exitDamage, "damage was found in the repository", []error{repo.ErrDamaged}},
		{exitSource, "an image or a running machine cannot be used as asked: in use, damaged, unsupported, not allowed, no space for its scratch files", []error{source.ErrUnusable, qcow2.ErrUnsupported}},
		{exitDenied, "the store or the file system denies access", []error{store.ErrDenied, fs.ErrPermission}},
		{exitInterrupted, "interrupted", []error{context.Canceled}},
		{exitFailed, "anything else failed", nil},
	}
}

// exitRow is one line of the table.
type exitRow struct {
	code    int
	when    string
	classes []error
}

// exitCode is the code for an error. An interrupt outranks what it made fail.
func exitCode(ctx context.Context, err error) int {
	if ctx.Err() != nil {
		return exitInterrupted
	}
	for _, row := range exitTable() {
		for _, class := range row.classes {
			if errors.Is(err, class) {
				return row.code
			}
		}
	}
	return exitFailed
}
