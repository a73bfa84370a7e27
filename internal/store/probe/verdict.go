package probe

import (
	"fmt"
	"time"
)

// Answer is what the probe knows about one promise.
type Answer string

// The answers. NotAsked stands where the driver has no way to break the promise,
// or the probe was a light one.
const (
	Yes      Answer = "yes"
	No       Answer = "no"
	NotAsked Answer = "not asked"
)

// Verdict is the result of a probe.
type Verdict struct {
	Time time.Time `json:"time"` // by the clock of this machine

	// CreateOnly: a Put to a key that exists was refused and changed nothing.
	CreateOnly Answer `json:"create_only"`
	// OneWinner: of parallel Puts to one key exactly one succeeded.
	OneWinner Answer `json:"one_winner"`
	// ReadAfterWrite: Get, ranges, Stat and List agreed with what was put.
	ReadAfterWrite Answer `json:"read_after_write"`
	// ChecksumRefused: a body with a wrong checksum was refused.
	ChecksumRefused Answer `json:"checksum_refused"`
	// OverwriteRefused: a Put without the condition was refused too, as by a
	// bucket policy; so a stolen key cannot overwrite.
	OverwriteRefused Answer `json:"overwrite_refused"`

	// ClockSkew is the store's clock minus ours, to the second or so.
	ClockSkew time.Duration `json:"clock_skew_ns"`
	// Problems are sentences for the operator, one for each broken promise.
	Problems []string `json:"problems,omitempty"`
}

// Exclusive reports whether a commit slot can be decided between writers, which
// pruning needs before it may treat a run as dead.
func (v Verdict) Exclusive() bool {
	return v.CreateOnly == Yes && v.OneWinner != No
}

func (v *Verdict) set(a *Answer, ok bool, problem string, args ...any) {
	if ok {
		*a = Yes
		return
	}
	*a = No
	v.Problems = append(v.Problems, fmt.Sprintf(problem, args...))
}
