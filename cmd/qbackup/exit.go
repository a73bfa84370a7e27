package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/configs"
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
		{exitDone, "done", "done", nil},
		{exitUsage, "usage", "the command line or the configuration is wrong", []error{errUsage, target.ErrSpec, configs.ErrInvalid, configs.ErrExposed}},
		{exitNoRepo, state.ClassNoRepository, "there is no repository at that place", []error{repo.ErrNoRepository, store.ErrNoStore}},
		{exitBusy, "busy", "another qbackup is at work on the machine", []error{state.ErrBusy, agent.ErrRunning}},
		{exitSome, "some_failed", "a point was made, but some disks or machines failed", []error{errSomeMachines, agent.ErrSomeFailed}},
		{exitDamage, "damage", "damage was found in the repository", []error{repo.ErrDamaged}},
		{exitSource, "source", "an image or a running machine cannot be used as asked: in use, damaged, unsupported, not allowed, no space for its scratch files", []error{source.ErrUnusable, qcow2.ErrUnsupported}},
		{exitDenied, "denied", "the store or the file system denies access", []error{store.ErrDenied, fs.ErrPermission}},
		{exitInterrupted, "interrupted", "interrupted", []error{context.Canceled}},
		{exitFailed, "failed", "anything else failed", nil},
	}
}

// exitRow is one line of the table.
type exitRow struct {
	code    int
	class   string // for results, JSON and metrics
	when    string
	classes []error
}

// exitCode is the code for an error. An interrupt outranks what it made fail.
func exitCode(ctx context.Context, err error) int {
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return rowOf(err).code
}

// exitClass is the word for an error's class; empty: there is no error.
func exitClass(err error) string {
	if err == nil {
		return ""
	}
	return rowOf(err).class
}

func rowOf(err error) exitRow {
	table := exitTable()
	for _, row := range table {
		for _, class := range row.classes {
			if errors.Is(err, class) {
				return row
			}
		}
	}
	return table[len(table)-1]
}
