package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/state"
)

// Priorities of the journal; see sd-daemon(3).
const (
	priorityError   = "<3>"
	priorityWarning = "<4>"
	priorityNotice  = "<5>"
	priorityInfo    = "<6>"
)

// priority is what a line to standard error begins with: the journal's priority, where standard error is the journal.
func (p *program) priority(of string) string {
	if !p.json && isJournal(p.stderr) {
		return of
	}
	return ""
}

// isJournal tells whether a stream leads to the journal, by the variable that systemd sets for that.
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	stream := os.Getenv("JOURNAL_STREAM")
	if !ok || stream == "" {
		return false
	}
	var stat unix.Stat_t
	return unix.Fstat(int(f.Fd()), &stat) == nil && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// logger is for the beginning and the end of each run of the service: text for people and the journal, JSON lines with --json.
func (p *program) logger() *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	switch {
	case p.json:
		return slog.New(slog.NewJSONHandler(p.stderr, o))
	case isJournal(p.stderr):
		// The journal has the time, and the priority in front.
		o.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}
		return slog.New(&journalHandler{p.stderr, o, slog.NewTextHandler(io.Discard, o)})
	default:
		return slog.New(slog.NewTextHandler(p.stderr, o))
	}
}

// journalHandler writes text with a priority in front of each line.
type journalHandler struct {
	w io.Writer
	o *slog.HandlerOptions
	slog.Handler
}

// Handle implements slog.Handler.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	priority := priorityInfo
	switch {
	case r.Level >= slog.LevelError:
		priority = priorityError
	case r.Level >= slog.LevelWarn:
		priority = priorityWarning
	}
	line := lineWriter{h.w, priority}
	return slog.NewTextHandler(line, h.o).Handle(ctx, r)
}

// lineWriter puts something in front of what is one line.
type lineWriter struct {
	w     io.Writer
	front string
}

func (l lineWriter) Write(b []byte) (int, error) {
	if _, err := l.w.Write(append([]byte(l.front), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// logBegin and logEnd say that a machine's backup begins and how it ended, with the names of the JSON summary.
func logBegin(l *slog.Logger, machine string) {
	l.Info("backup begins", "machine", machine)
}

func logEnd(l *slog.Logger, e agent.Ending) {
	var dirty, read, zero, skipped, stored int64
	for _, d := range e.Summary.Disks {
		dirty, read, zero, skipped, stored = dirty+d.DirtyBytes, read+d.ReadBytes, zero+d.ZeroBytes, skipped+d.SkippedBytes, stored+d.StoredBytes
	}
	fields := []any{"machine", e.Machine, "status", e.Status(), "duration_seconds", e.End.Sub(e.Start).Seconds()}
	if !e.Summary.Point.IsZero() {
		fields = append(fields, "point", e.Summary.Point.String(), "consistency", e.Summary.Consistency,
			"dirty_bytes", dirty, "read_bytes", read, "zero_bytes", zero, "skipped_bytes", skipped, "stored_bytes", stored)
	}
	level := slog.LevelInfo
	if e.Err != nil {
		level = slog.LevelError
		if e.Status() == state.StatusInterrupted {
			level = slog.LevelWarn
		}
		fields = append(fields, "class", e.Class, "error", e.Err.Error())
	}
	l.Log(context.Background(), level, "backup ended", fields...)
}
