package format

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
)

// Prefixes of keys, for listings. Each ends in a slash.
const (
	RepositoryPrefix = "repository/"
	MachinesPrefix   = "machines/"
	// ProbePrefix is where the probe of a store leaves its objects; they belong to
	// no point and have no format.
	ProbePrefix = "probe/"

	runsRoot      = "runs/"
	dataRoot      = "data/"
	pointsRoot    = "points/"
	forgottenRoot = "forgotten/"
	pinsRoot      = "pins/"
	verdictsRoot  = "verdicts/"
)

const (
	seqDigits    = 8
	numberDigits = 4
	manifestName = "manifest"
)

// RepositoryKey is the key of a generation of the descriptor; the highest wins.
func RepositoryKey(generation uint64) string { return fmt.Sprintf("repository/%08d", generation) }

// MachineKey is the key of a machine's document.
func MachineKey(m ident.MachineName) string { return MachinesPrefix + string(m) }

// IntentKey is the key of a run's intent (number 0) and of its renewals.
func IntentKey(m ident.MachineName, run ident.RunID, number uint32) string {
	return numbered(RunsPrefix(m)+run.String(), number)
}

// PackKey is the key of a pack.
func PackKey(m ident.MachineName, run ident.RunID, seq uint32) string {
	return fmt.Sprintf("%sp%08d", DataPrefix(m, run), seq)
}

// MapKey is the key of a map object.
func MapKey(m ident.MachineName, run ident.RunID, seq uint32) string {
	return fmt.Sprintf("%sm%08d", DataPrefix(m, run), seq)
}

// ManifestKey is the key of a run's manifest.
func ManifestKey(m ident.MachineName, run ident.RunID) string {
	return DataPrefix(m, run) + manifestName
}

// PointKey is the key of a run's commit slot: a record or an abort.
func PointKey(m ident.MachineName, run ident.RunID) string { return PointsPrefix(m) + run.String() }

// TombstoneKey is the key of a mark that hides a point (even numbers), or shows it again.
func TombstoneKey(m ident.MachineName, run ident.RunID, number uint32) string {
	return numbered(ForgottenPrefix(m)+run.String(), number)
}

// PinKey is the key of a mark that keeps a point from being forgotten by a policy (even numbers), or no longer does.
func PinKey(m ident.MachineName, run ident.RunID, number uint32) string {
	return numbered(PinsPrefix(m)+run.String(), number)
}

// VerdictKey is the key of a verification's result; number counts from 0.
func VerdictKey(m ident.MachineName, run ident.RunID, number uint32) string {
	return fmt.Sprintf("%s%s.%04d", VerdictsPrefix(m), run, number)
}

func numbered(key string, number uint32) string {
	if number == 0 {
		return key
	}
	return fmt.Sprintf("%s.%04d", key, number)
}

// RunsPrefix lists a machine's intents and their renewals.
func RunsPrefix(m ident.MachineName) string { return runsRoot + string(m) + "/" }

// DataPrefix lists the packs, map objects and the manifest of a run.
func DataPrefix(m ident.MachineName, run ident.RunID) string {
	return MachineDataPrefix(m) + run.String() + "/"
}

// MachineDataPrefix lists the data of all runs of a machine.
func MachineDataPrefix(m ident.MachineName) string { return dataRoot + string(m) + "/" }

// PointsPrefix lists a machine's commit slots.
func PointsPrefix(m ident.MachineName) string { return pointsRoot + string(m) + "/" }

// ForgottenPrefix lists a machine's tombstones.
func ForgottenPrefix(m ident.MachineName) string { return forgottenRoot + string(m) + "/" }

// PinsPrefix lists a machine's pins.
func PinsPrefix(m ident.MachineName) string { return pinsRoot + string(m) + "/" }

// VerdictsPrefix lists a machine's verdicts.
func VerdictsPrefix(m ident.MachineName) string { return verdictsRoot + string(m) + "/" }

// KeyKind says what kind of object a key names.
type KeyKind int

// The kinds of keys.
const (
	KeyRepository KeyKind = iota + 1
	KeyMachine
	KeyIntent
	KeyPack
	KeyMap
	KeyManifest
	KeyPoint
	KeyTombstone
	KeyVerdict
	KeyPin
)

// Key is a parsed key. Fields that its kind does not have are zero.
type Key struct {
	Kind       KeyKind
	Generation uint64            // KeyRepository
	Machine    ident.MachineName // all but KeyRepository
	Run        ident.RunID       // all but KeyRepository and KeyMachine
	Seq        uint32            // KeyPack, KeyMap
	Number     uint32            // KeyIntent (0: the intent, else a renewal), KeyTombstone, KeyPin, KeyVerdict
}

// String gives the key.
func (k Key) String() string {
	switch k.Kind {
	case KeyRepository:
		return RepositoryKey(k.Generation)
	case KeyMachine:
		return MachineKey(k.Machine)
	case KeyIntent:
		return IntentKey(k.Machine, k.Run, k.Number)
	case KeyPack:
		return PackKey(k.Machine, k.Run, k.Seq)
	case KeyMap:
		return MapKey(k.Machine, k.Run, k.Seq)
	case KeyManifest:
		return ManifestKey(k.Machine, k.Run)
	case KeyPoint:
		return PointKey(k.Machine, k.Run)
	case KeyTombstone:
		return TombstoneKey(k.Machine, k.Run, k.Number)
	case KeyPin:
		return PinKey(k.Machine, k.Run, k.Number)
	case KeyVerdict:
		return VerdictKey(k.Machine, k.Run, k.Number)
	}
	return fmt.Sprintf("key of unknown kind %d", int(k.Kind))
}

// ParseKey reads a key. A key of no known form (something else lies in the same
// bucket, or under ProbePrefix) gives ErrUnsupported: such objects are left alone.
func ParseKey(s string) (Key, error) {
	k, ok := parseKey(s)
	// Printing again and comparing leaves one spelling for each key.
	if !ok || k.String() != s {
		if len(s) > 200 {
			s = s[:200] + "..."
		}
		return Key{}, unsupported("key", "%q is not a key of this format", s)
	}
	return k, nil
}

func parseKey(s string) (Key, bool) {
	root, rest, _ := strings.Cut(s, "/")
	if root == "repository" {
		n, ok := parseDigits(rest, seqDigits)
		return Key{Kind: KeyRepository, Generation: uint64(n)}, ok
	}
	name, rest, more := strings.Cut(rest, "/")
	machine, err := ident.ParseMachineName(name)
	if err != nil {
		return Key{}, false
	}
	k := Key{Machine: machine}
	if root == "machines" {
		k.Kind = KeyMachine
		return k, !more
	}
	if len(rest) < ident.RunIDLen {
		return Key{}, false
	}
	if k.Run, err = ident.ParseRunID(rest[:ident.RunIDLen]); err != nil {
		return Key{}, false
	}
	rest = rest[ident.RunIDLen:]
	ok := false
	switch root {
	case "runs":
		k.Kind = KeyIntent
		k.Number, ok = parseFurther(rest)
	case "points":
		k.Kind, ok = KeyPoint, rest == ""
	case "forgotten":
		k.Kind = KeyTombstone
		k.Number, ok = parseFurther(rest)
	case "pins":
		k.Kind = KeyPin
		k.Number, ok = parseFurther(rest)
	case "verdicts":
		k.Kind = KeyVerdict
		k.Number, ok = parseNumber(rest)
	case "data":
		ok = k.parseData(rest)
	}
	return k, ok
}

func (k *Key) parseData(rest string) (ok bool) {
	switch {
	case rest == "/"+manifestName:
		k.Kind, ok = KeyManifest, true
	case strings.HasPrefix(rest, "/p"):
		k.Kind = KeyPack
		k.Seq, ok = parseDigits(rest[2:], seqDigits)
	case strings.HasPrefix(rest, "/m"):
		k.Kind = KeyMap
		k.Seq, ok = parseDigits(rest[2:], seqDigits)
	}
	return ok
}

// parseFurther reads the number of a key whose number 0 is not written.
func parseFurther(s string) (uint32, bool) {
	if s == "" {
		return 0, true
	}
	n, ok := parseNumber(s)
	return n, ok && n > 0
}

func parseNumber(s string) (uint32, bool) {
	if !strings.HasPrefix(s, ".") {
		return 0, false
	}
	return parseDigits(s[1:], numberDigits)
}

func parseDigits(s string, digits int) (uint32, bool) {
	if len(s) != digits {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}
