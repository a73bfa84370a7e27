package linuxguest

import (
	"strings"
	"testing"
)

func TestWithoutThePackagesATestIsSkippedOrFailsAsTheEnvironmentSays(t *testing.T) {
	t.Setenv("QBACKUP_GUEST", t.TempDir())
	build := func(t testing.TB) { buildImage(t, Config{}) }
	t.Setenv("QBACKUP_REQUIRE_TOOLS", "")
	if r := recordTest(t, build); !r.skipped || len(r.said) > 0 {
		t.Errorf("without the variable: skipped %v, said %q", r.skipped, r.said)
	}
	t.Setenv("QBACKUP_REQUIRE_TOOLS", "1")
	if r := recordTest(t, build); r.skipped || len(r.said) != 1 || !strings.Contains(r.said[0], "scripts/guest") {
		t.Errorf("with the variable: skipped %v, said %q", r.skipped, r.said)
	}
}

func TestSettingsSayHowMuchIsWritten(t *testing.T) {
	for want, config := range map[string]Config{
		"writes=-1\nagent=yes\n": {},
		"writes=3\nagent=yes\n":  {Writes: 3},
		"writes=0\n":             {Writes: -1, NoAgent: true},
	} {
		if got := string(settings(config)); got != want {
			t.Errorf("%+v: %q, want %q", config, got, want)
		}
	}
}

func TestAnArchiveIsAlignedAndEnds(t *testing.T) {
	var a archive
	a.add("bin", modeFolder, nil)
	a.add("bin/x", modeFile, []byte("hello"))
	const want = "070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "bin\x00\x00\x00" +
		"070701" + "00000002" + "000081ed" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000006" + "00000000" + "bin/x\x00" + "hello\x00\x00\x00"
	got := string(a.finish())
	if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "TRAILER!!!\x00\x00\x00\x00") || len(got)%4 != 0 {
		t.Errorf("got %q", got)
	}
}
