package format

import (
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// IntentBackup is the kind of a run that makes a point.
const IntentBackup = "backup"

// Base names the point that a disk's increment builds on.
type Base struct {
	Disk string      `json:"disk"`
	Run  ident.RunID `json:"run"`
}

// Intent announces a run before it writes anything else, and names every point it
// builds on: whoever deletes garbage keeps them while the run lives. Renewals are
// the same document with a higher Number, under their own key.
type Intent struct {
	Identity
	Number uint32    `json:"number"` // 0: the intent, else a renewal
	Kind   string    `json:"kind"`   // IntentBackup
	Bases  []Base    `json:"bases,omitempty"`
	Host   string    `json:"host"`
	BootID string    `json:"boot_id,omitempty"`
	Nonce  Nonce     `json:"nonce"`
	Time   time.Time `json:"time"` // by the host's clock; ages are judged by the server's
	Tool   string    `json:"tool,omitempty"`
}

func (i *Intent) validate() error {
	if err := i.Identity.validate("intent"); err != nil {
		return err
	}
	if i.Nonce.IsZero() || i.Kind == "" || i.Number > MaxNumber {
		return corrupt("intent", -1, "nonce or kind is missing, or the number is above %d", MaxNumber)
	}
	for _, b := range i.Bases {
		if ident.CheckDiskName(b.Disk) != nil || b.Run.IsZero() {
			return corrupt("intent", -1, "base of disk %.40q has a bad name or no run", b.Disk)
		}
	}
	return nil
}

// AppendIntent appends the document.
func AppendIntent(dst []byte, i *Intent) ([]byte, error) {
	v := *i
	v.Time = i.Time.UTC()
	return appendDocument(dst, KindIntent, &v, func(b []byte) (*Intent, error) {
		return ParseIntent(b, i.Identity, i.Number)
	})
}

// ParseIntent reads the document that lies under IntentKey of this identity and
// number.
func ParseIntent(b []byte, at Identity, number uint32) (*Intent, error) {
	i := &Intent{}
	if err := parseDocument(b, KindIntent, i); err != nil {
		return nil, err
	}
	if err := i.validate(); err != nil {
		return nil, err
	}
	if err := i.Identity.check("intent", at); err != nil {
		return nil, err
	}
	if i.Number != number {
		return nil, misplaced("intent", "it is number %d, read as %d", i.Number, number)
	}
	return i, nil
}

// Abort takes the commit slot of a run that will never make a point.
type Abort struct {
	Identity
	Nonce Nonce     `json:"nonce"`
	By    string    `json:"by"` // who took it and why, for people
	Host  string    `json:"host,omitempty"`
	Time  time.Time `json:"time"`
}

// AppendAbort appends the document.
func AppendAbort(dst []byte, a *Abort) ([]byte, error) {
	v := *a
	v.Time = a.Time.UTC()
	return appendDocument(dst, KindAbort, &v, func(b []byte) (*Abort, error) { return ParseAbort(b, a.Identity) })
}

// ParseAbort reads the document that lies under PointKey of this identity.
func ParseAbort(b []byte, at Identity) (*Abort, error) {
	a := &Abort{}
	if err := parseDocument(b, KindAbort, a); err != nil {
		return nil, err
	}
	if err := checkDecision("abort", a.Identity, a.Nonce, at); err != nil {
		return nil, err
	}
	return a, nil
}

func checkDecision(what string, i Identity, n Nonce, at Identity) error {
	if err := i.validate(what); err != nil {
		return err
	}
	if n.IsZero() {
		return corrupt(what, -1, "the nonce is missing")
	}
	return i.check(what, at)
}

// Verdict is what a verification found about one point.
type Verdict struct {
	Identity
	Number  uint32    `json:"number"`
	Level   string    `json:"level"` // "objects", "maps" or "data": how deep it looked
	Good    bool      `json:"good"`
	Time    time.Time `json:"time"`
	Host    string    `json:"host,omitempty"`
	Tool    string    `json:"tool,omitempty"`
	Damage  []Finding `json:"damage,omitempty"`
	Omitted int64     `json:"omitted,omitempty"` // findings that did not fit
}

// Finding is one damaged place: an object, and a range of it.
type Finding struct {
	Key    string `json:"key"`
	Offset int64  `json:"offset"` // -1: the object as a whole
	Length int64  `json:"length"`
	Error  string `json:"error"`
}

// AppendVerdict appends the document.
func AppendVerdict(dst []byte, v *Verdict) ([]byte, error) {
	w := *v
	w.Time = v.Time.UTC()
	return appendDocument(dst, KindVerdict, &w, func(b []byte) (*Verdict, error) {
		return ParseVerdict(b, v.Identity, v.Number)
	})
}

// ParseVerdict reads the document that lies under VerdictKey of this identity and
// number.
func ParseVerdict(b []byte, at Identity, number uint32) (*Verdict, error) {
	v := &Verdict{}
	if err := parseDocument(b, KindVerdict, v); err != nil {
		return nil, err
	}
	if err := v.Identity.validate("verdict"); err != nil {
		return nil, err
	}
	if v.Level == "" || v.Number > MaxNumber || v.Omitted < 0 || v.Good && len(v.Damage) > 0 {
		return nil, corrupt("verdict", -1, "level, number or findings contradict each other")
	}
	if err := v.Identity.check("verdict", at); err != nil {
		return nil, err
	}
	if v.Number != number {
		return nil, misplaced("verdict", "it is number %d, read as %d", v.Number, number)
	}
	return v, nil
}
