package format

import (
	"errors"
	"strings"
	"testing"
)

func TestKeysComeBackAsTheyWereWritten(t *testing.T) {
	m, run := fixedIdentity(t).Machine, fixedIdentity(t).Run
	for want, k := range map[string]Key{
		"repository/00000012":                                  {Kind: KeyRepository, Generation: 12},
		"machines/web-1":                                       {Kind: KeyMachine, Machine: m},
		"runs/web-1/" + run.String():                           {Kind: KeyIntent, Machine: m, Run: run},
		"runs/web-1/" + run.String() + ".0012":                 {Kind: KeyIntent, Machine: m, Run: run, Number: 12},
		"data/web-1/" + run.String() + "/p00000007":            {Kind: KeyPack, Machine: m, Run: run, Seq: 7},
		"data/web-1/" + run.String() + "/p99999999":            {Kind: KeyPack, Machine: m, Run: run, Seq: MaxSeq},
		"data/web-1/" + run.String() + "/m00000000":            {Kind: KeyMap, Machine: m, Run: run},
		"data/web-1/" + run.String() + "/manifest":             {Kind: KeyManifest, Machine: m, Run: run},
		"points/web-1/" + run.String():                         {Kind: KeyPoint, Machine: m, Run: run},
		"forgotten/web-1/" + run.String():                      {Kind: KeyTombstone, Machine: m, Run: run},
		"forgotten/web-1/" + run.String() + ".0001":            {Kind: KeyTombstone, Machine: m, Run: run, Number: 1},
		"pins/web-1/" + run.String():                           {Kind: KeyPin, Machine: m, Run: run},
		"pins/web-1/" + run.String() + ".0002":                 {Kind: KeyPin, Machine: m, Run: run, Number: 2},
		"verdicts/web-1/" + run.String() + ".0000":             {Kind: KeyVerdict, Machine: m, Run: run},
		"verdicts/" + string(m) + "/" + run.String() + ".9999": {Kind: KeyVerdict, Machine: m, Run: run, Number: MaxNumber},
	} {
		if k.String() != want {
			t.Errorf("%v is written as %q, want %q", k, k.String(), want)
		}
		if got, err := ParseKey(want); err != nil || got != k {
			t.Errorf("%q is read as %+v, %v", want, got, err)
		}
	}
}

func TestListingPrefixesBeginTheKeysTheyList(t *testing.T) {
	m, run := fixedIdentity(t).Machine, fixedIdentity(t).Run
	for prefix, key := range map[string]string{
		RepositoryPrefix:     RepositoryKey(1),
		MachinesPrefix:       MachineKey(m),
		RunsPrefix(m):        IntentKey(m, run, 1),
		DataPrefix(m, run):   ManifestKey(m, run),
		MachineDataPrefix(m): PackKey(m, run, 1),
		PointsPrefix(m):      PointKey(m, run),
		ForgottenPrefix(m):   TombstoneKey(m, run, 0),
		PinsPrefix(m):        PinKey(m, run, 0),
		VerdictsPrefix(m):    VerdictKey(m, run, 1),
	} {
		if !strings.HasPrefix(key, prefix) || !strings.HasSuffix(prefix, "/") {
			t.Errorf("%q does not begin with %q", key, prefix)
		}
	}
	if RunsPrefix("web-1") == RunsPrefix("web-10")[:len(RunsPrefix("web-1"))] {
		t.Error("the prefix of one machine lists another's keys")
	}
}

func TestForeignKeysAreNotOurs(t *testing.T) {
	run := fixedIdentity(t).Run.String()
	for _, s := range []string{
		"", "/", "x", "repository", "repository/", "repository/1", "repository/000000012", "repository/+0000012", "Repository/00000012",
		"machines/", "machines/A", "machines/web-1/", "machines/..", "machines/web-1/x",
		"runs/web-1/", "runs/web-1/" + run + ".0000", "runs/web-1/" + run + ".12", "runs/web-1/" + run + "/", "runs//" + run,
		"runs/web-1/" + strings.ToUpper(run), "runs/web-1/" + strings.Repeat("0", 26),
		"data/web-1/" + run, "data/web-1/" + run + "/", "data/web-1/" + run + "/p1", "data/web-1/" + run + "/x00000001",
		"data/web-1/" + run + "/manifest2", "data/web-1/" + run + "/p0000000a", "data/web-1/" + run + "p00000001",
		"points/web-1/" + run + ".1", "points/web-1/" + run + "/", "forgotten/web-1/" + run + "x", "forgotten/web-1/" + run + ".0000", "pins/web-1/" + run + ".1", "verdicts/web-1/" + run,
		ProbePrefix + "x", "points/web-1/" + run + "\n", strings.Repeat("x", 10000),
	} {
		if k, err := ParseKey(s); !errors.Is(err, ErrUnsupported) || len(err.Error()) > 400 {
			t.Errorf("%q was read as %+v, %v", s, k, err)
		}
	}
}
