package main

import (
	"fmt"
	"strings"

	"github.com/qbackup/qbackup/internal/fleet"
)

// Exit codes of monitoring plugins.
const (
	nagiosOK = iota
	nagiosWarning
	nagiosCritical
	nagiosUnknown
)

// nagiosError ends the program with a plugin's code; its line was printed.
type nagiosError struct{ code int }

func (e *nagiosError) Error() string { return fmt.Sprintf("status %d", e.code) }

// nagiosWords bounds what is said of each machine: plugins' lines are cut.
const nagiosWords = 200

// nagios prints one line for a monitoring plugin, with performance data.
func (p *program) nagios(list []machineStatus, problems []*fleet.Problem, err error) error {
	if err != nil {
		fmt.Fprintf(p.stdout, "QBACKUP UNKNOWN: %s\n", oneLine(err.Error()))
		return &nagiosError{nagiosUnknown}
	}
	count := map[fleet.Health]int{}
	oldest := 0.0
	code := nagiosOK
	var said []string
	for _, s := range list {
		count[s.State]++
		if s.AgeSeconds != nil {
			oldest = max(oldest, *s.AgeSeconds)
		}
		if s.State == fleet.HealthOK {
			continue
		}
		said = append(said, fmt.Sprintf("%s %s: %s", s.Machine, s.State, oneLine(s.Problem)))
		if code = max(code, nagiosWarning); s.State == fleet.HealthLate {
			code = nagiosCritical
		}
	}
	for _, problem := range problems {
		said = append(said, oneLine(problem.Error()))
		code = max(code, nagiosWarning)
	}
	var data []string
	for _, h := range fleet.Healths() {
		data = append(data, fmt.Sprintf("%s=%d", h, count[h]))
	}
	text := fmt.Sprintf("%d machines", len(list))
	if len(said) > 0 {
		text += "; " + strings.Join(said, "; ")
	}
	word := [...]string{"OK", "WARNING", "CRITICAL"}[code]
	fmt.Fprintf(p.stdout, "QBACKUP %s: %s | %s oldest_age=%.0fs\n", word, text, strings.Join(data, " "), oldest)
	if code == nagiosOK {
		return nil
	}
	return &nagiosError{code}
}

// oneLine makes one short line, without what plugins give a meaning to.
func oneLine(text string) string {
	text = strings.NewReplacer("\n", " ", "|", "/").Replace(text)
	if len(text) > nagiosWords {
		text = strings.ToValidUTF8(text[:nagiosWords], "") + "..."
	}
	return text
}
