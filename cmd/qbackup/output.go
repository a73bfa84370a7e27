package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// printJSON writes one value as one line to standard output.
func (p *program) printJSON(v any) error {
	return writeJSON(p.stdout, v)
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// say prints a line of the result for people; not with --json or --quiet.
func (p *program) say(format string, args ...any) {
	if !p.json && !p.quiet {
		fmt.Fprintf(p.stdout, format+"\n", args...)
	}
}

// note prints a remark that is no part of the result to standard error.
func (p *program) note(format string, args ...any) {
	if p.quiet {
		return
	}
	if p.json {
		_ = writeJSON(p.stderr, map[string]any{"message_type": "note", "message": fmt.Sprintf(format, args...)})
		return
	}
	fmt.Fprintf(p.stderr, p.priority(priorityNotice)+"qbackup: "+format+"\n", args...)
}

// verbosely prints a remark that only those want who asked for more.
func (p *program) verbosely(format string, args ...any) {
	if p.verbose > 0 {
		p.note(format, args...)
	}
}

// reportError prints what ended the program, once.
func (p *program) reportError(err error, code int) {
	if code == exitInterrupted {
		err = fmt.Errorf("interrupted: %w", err)
	}
	if p.json {
		_ = writeJSON(p.stderr, map[string]any{"message_type": "exit_error", "code": code, "message": err.Error()})
		return
	}
	fmt.Fprintf(p.stderr, "%sqbackup: %v\n", p.priority(priorityError), err)
}

// size renders bytes for people.
func size(bytes int64) string {
	return humanize.IBytes(uint64(max(bytes, 0)))
}

// isTerminal tells whether a stream is a terminal, where bars make sense.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// warn prints what somebody should look at, even with --quiet.
func (p *program) warn(format string, args ...any) {
	if p.json {
		_ = writeJSON(p.stderr, map[string]any{"message_type": "alarm", "message": fmt.Sprintf(format, args...)})
		return
	}
	fmt.Fprintf(p.stderr, p.priority(priorityWarning)+"qbackup: warning: "+format+"\n", args...)
}
