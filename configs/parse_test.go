package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// checks are what a caller might have.
func checks() Checks {
	refuse := func(word, text string) func(string) error {
		return func(s string) error {
			if strings.Contains(s, word) {
				return errors.New(text)
			}
			return nil
		}
	}
	return Checks{Place: refuse("nowhere", "no such kind of place"), Machine: refuse(" ", "not a machine's name"), Schedule: refuse("never", "not a schedule")}
}

func parsed(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse([]byte(text), "q.yaml", checks())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheSampleIsReadAndHasEveryKey(t *testing.T) {
	c, err := Parse(Sample, "qbackup.yaml", checks())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Machines) != 4 || c.Machines[0].Schedule != "@daily" || !c.Machines[2].Hold || c.Machines[3].Except[0] != "scratch-*" {
		t.Errorf("%+v", c.Machines)
	}
	if db := c.Machines[1]; db.Freeze != FreezeRequire || db.Objective != Duration(5*time.Hour) || !reflect.DeepEqual(db.Images, Images{"root=/vm/db-root.qcow2", "data=/vm/db-data.qcow2"}) {
		t.Errorf("%+v", db)
	}
	for _, key := range keys(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(Sample), key+":") {
			t.Errorf("the sample does not speak of %s", key)
		}
	}
}

// keys are those of a type and all types inside it.
func keys(t reflect.Type) (all []string) {
	switch t.Kind() {
	case reflect.Slice:
		return keys(t.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if key := f.Tag.Get("yaml"); key != ",inline" {
			all = append(all, key)
		}
		all = append(all, keys(f.Type)...)
	}
	return all
}

func TestNothingIsWrongWithLittle(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "machines: []\n", "repository: /srv/backup\n"} {
		c := parsed(t, text)
		if c.Metrics.Listen != DefaultListen || c.Limits.Parallel != 2 || c.Defaults.Freeze != FreezeTry {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

func TestDefaultsHoldWhereverTheyStand(t *testing.T) {
	c := parsed(t, `
machines:
  - images: [/vm/a.qcow2]
  - {images: {x: "raw:/dev/vg0/b"}, objective: 2d, hooks: {after: [/bin/true]}}
defaults: {objective: 26h, allow_dirs: [/vm], hooks: {before: [/bin/false], timeout: 3s}}
`)
	a, b := c.Machines[0], c.Machines[1]
	if a.Objective != Duration(26*time.Hour) || a.Hooks.Before[0] != "/bin/false" || a.AllowDirs[0] != "/vm" {
		t.Errorf("%+v", a)
	}
	if b.Objective != Duration(48*time.Hour) || len(b.Hooks.Before) != 0 || b.Hooks.After[0] != "/bin/true" || b.AllowDirs[0] != "/vm" || b.Images[0] != "x=raw:/dev/vg0/b" {
		t.Errorf("%+v", b)
	}
}

func TestWrongFilesNameLineColumnAndCure(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string // the faults, in order
	}{
		{"machnies: []\n", []string{`1:1: there is no key "machnies" here; did you mean machines?`}},
		{"limits: {paralel: 2}\n", []string{`1:10: limits: there is no key "paralel" here; did you mean parallel?`}},
		{"zzzzzzzz: 1\n", []string{`1:1: there is no key "zzzzzzzz" here; there are repository, credentials,`}},
		{"repository: [a]\nmetrics: 4\n", []string{"1:13: repository: must be a word", "2:10: metrics: must be a mapping"}},
		{"machines: {a: 1}\n", []string{"1:11: machines: must be a list"}},
		{"machines: nothing\n", []string{"1:11: machines: must be a list"}},
		{"machines: [x]\n", []string{"1:12: machines[0]: must be a mapping"}},
		{"- a\n- b\n", []string{"1:1: must be a mapping"}},
		{"hello\n", []string{"1:1: must be a mapping"}},
		{"repository: /a\nrepository: /b\n", []string{`2:1: the key "repository" stands here twice`}},
		{"machines: []\nmachines: []\n", []string{`2:1: the key "machines" stands here twice`}},
		{"repository:\n", []string{"1:1: repository: has no value"}},
		{"repository: ''\n", []string{"1:13: repository: must be a word"}},
		{"repository: /a\n---\nrepository: /b\n", []string{"second document"}},
		{"\trepository: /a\n", []string{"q.yaml: not YAML: "}},
		{"repository: [\n", []string{"not YAML: "}},
		{"repository: \"\xff\"\n", []string{"1:1: is not UTF-8"}},
		{"a: &x [1,1]\nb: &y [*x,*x]\nrepository: *y\n", []string{`1:1: there is no key "a"`, `2:1: there is no key "b"`, "3:13: repository: aliases are not read"}},
		{"<<: {repository: /a}\n", []string{"1:1: a key must be a word"}},
		{"? [a]\n: 1\n", []string{"a key must be a word"}},
		{"defaults: {objective: soon, jitter: -1m, freeze: maybe}\n", []string{
			"1:23: defaults.objective: not a duration", "1:37: defaults.jitter: not a duration", "1:50: defaults.freeze: say off"}},
		{"limits: {parallel: -1, requests: many}\n", []string{"1:20: limits.parallel: not a number", "1:34: limits.requests: not a number"}},
		{"limits: {memory: 5, upload: fast, requests: 1.5}\n", []string{"memory: not a size", "upload: not a rate", "requests: not a number"}},
		{"limits:\n  upload:\n    - {from: 8, to: \"25:00\", days: monday, rate: 5}\n", []string{"from: not a time", "to: not a time", "days: not days", "rate: not a rate"}},
		{"limits:\n  upload:\n    - {from: \"08:00\"}\n    - {from: \"08:00\", rate: 1MB/s}\n    - {from: \"08:00\", to: \"08:00\", rate: 1MB/s}\n", []string{
			"3:7: limits.upload[0]: has no rate", "4:7: limits.upload[1]: says from or to alone", "5:7: limits.upload[2]: from and to are the same"}},
		{"machines:\n  - {images: [/vm/a.qcow2], hold: maybe}\n", []string{"2:35: machines[0].hold: must be true or false"}},
		{"machines:\n  - {name: a b, images: [vm/a.qcow2]}\n", []string{"2:6: machines[0].name: not a machine's name", "machines[0].images: must be absolute"}},
		{"machines:\n  - {name: a, images: [/vm/a]}\n  - {name: a, images: {x: raw:/vm//a}}\n", []string{"3:6: machines[1].name: machines[0] has this name", "3:15: machines[1].images: machines[0] has one of these images"}},
		{"machines:\n  - {images: [/vm/a, /vm/b]}\n  - {qmp: /run/a}\n  - {}\n", []string{"2:5: machines[0]: has no name", "3:5: machines[1]: has no name", "4:5: machines[2]: says no machine"}},
		{"machines:\n  - {each: /vm/*, images: [/vm/a], name: x}\n", []string{"images: means nothing beside each", "name: means nothing beside each"}},
		{"machines:\n  - {libvirt: \"web*\", name: x, qmp: /run/q}\n", []string{"name: a pattern finds several", "qmp: means nothing beside libvirt"}},
		{"machines:\n  - {images: [/vm/a], guest_agent: /run/a}\n", []string{"guest_agent: means nothing beside images"}},
		{"machines:\n  - {name: a, qmp: /run/a, freeze: require}\n", []string{"machines[0].freeze: require needs guest_agent"}},
		{"defaults: {schedule: never}\nmachines:\n  - {images: [/vm/a]}\n  - {images: [/vm/b], schedule: never}\n", []string{"1:12: defaults.schedule: not a schedule", "4:23: machines[1].schedule: not a schedule"}},
		{"defaults: {hooks: {before: [hook]}, allow_dirs: [vm]}\n", []string{"defaults.hooks.before[0]: must be an absolute", "defaults.allow_dirs[0]: must be an absolute"}},
		{"repository: nowhere\nstate_dir: here\nscratch_dir: here\n", []string{"no such kind of place", "state_dir: must be", "scratch_dir: must be"}},
		{"credentials: {file: keys, systemd: s3}\n", []string{"credentials.file: must be an absolute", "credentials.systemd: there is a file, too"}},
		{"metrics: {listen: here, textfile: q.prom, tls: {key: /k}, basic_auth: {user: u}}\n", []string{"listen: not an address", "textfile: must be", "tls: needs", "basic_auth: needs"}},
		{"metrics: {listen: unix:sock}\n", []string{"listen: must be an absolute"}},
	} {
		_, err := Parse([]byte(c.text), "q.yaml", checks())
		var faults Faults
		if !errors.As(err, &faults) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := strings.Split(err.Error(), "\n")
		if len(got) != len(c.want) {
			t.Errorf("%q:\n%s\nwant %q", c.text, err, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.HasPrefix(got[i], "q.yaml") || !strings.Contains(got[i], want) {
				t.Errorf("%q: %s\nwant %s", c.text, got[i], want)
			}
		}
	}
}

func TestAFileIsLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "q.yaml")
	if _, err := Load(path, checks()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, Sample, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, checks()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, make([]byte, fileBytesMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, checks()); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "larger than 4MiB") {
		t.Error(err)
	}
}

const canary = "wJalrXUtnFEMI-canary"

func TestNoErrorRepeatsASecret(t *testing.T) {
	for _, text := range []string{
		"credentials: {secret_key: %s}\n", "secret: %s\n", "credentials: %s\n", "credentials: {file: %s}\n", "credentials:\n  aws_secret_access_key: %s\n",
		"repository: s3:https://user:%s@s3.example.org/b\n", "repository: https://%s@x/b\n", "repository: %s nowhere\n", "metrics: {basic_auth: {password: %s}}\n",
		"metrics: {basic_auth: {password_file: %s}}\n", "metrics: {listen: %s}\n", "limits: {memory: %s}\n", "limits: {requests: %s}\n", "defaults: {objective: %s}\n",
		"defaults: {freeze: %s}\n", "defaults: {schedule: never %s}\n", "state_dir: %s\n", "limits: {upload: %s}\n", "limits: {upload: [{days: %s, rate: 1MB/s}]}\n",
		"limits: {upload: [{from: %s, to: \"01:00\", rate: 1MB/s}]}\n", "machines: [{images: [/vm/a], hold: %s}]\n", "machines: [{name: %s x, images: [/vm/a]}]\n", "machines: [%s]\n",
		"defaults: &%s\n  - *%s\n", "\"%s\n", "a: %s: b: c\n\t- x", "%%%s\n", "!!%s x\n", "repository: !<%s> x\n",
	} {
		_, err := Parse([]byte(strings.ReplaceAll(text, "%s", canary)), "q.yaml", checks())
		if err == nil {
			t.Errorf("%q is accepted", text)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWhatIsShownReadsAsTheSameAndHidesSecrets(t *testing.T) {
	c, err := Parse(Sample, "qbackup.yaml", checks())
	if err != nil {
		t.Fatal(err)
	}
	shown, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(shown, "shown", checks())
	if err != nil {
		t.Fatalf("%v in\n%s", err, shown)
	}
	if second, err := again.YAML(); err != nil || string(second) != string(shown) {
		t.Errorf("%v\n%s\nis not\n%s", err, second, shown)
	}
	c.Repository = "s3:https://user:" + canary + "@s3.example.org/b"
	shown, _ = c.YAML()
	plain, err := json.Marshal(c.Plain())
	if err != nil || strings.Contains(string(shown)+string(plain), canary) || !strings.Contains(string(plain), "s3.example.org/b") {
		t.Errorf("%v\n%s\n%s", err, shown, plain)
	}
}

func TestTheSchemaHasEveryKeyWithAWordAboutIt(t *testing.T) {
	raw, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(raw), fmt.Sprintf("%q: {", key)) {
			t.Errorf("the schema does not know %s", key)
		}
	}
	if strings.Contains(string(raw), `"description": ""`) {
		t.Error("a key is not explained")
	}
}

func TestSecretsMustNotBeReadByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := CheckSecret(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: true, 0o644: false, 0o602: false, 0o666: false} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		err := CheckSecret(path)
		if fine != (err == nil) || !fine && (!errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "chmod 0600 "+path)) {
			t.Errorf("%04o: %v", mode, err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Sample)
	f.Add([]byte("machines: [{images: {a: /b}, upload: [{}]}]\n---\n"))
	f.Add([]byte("a: &x [*x]\n<<: *x\n? {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text, "q.yaml", Checks{})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		shown, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(shown, "shown", Checks{}); err != nil {
			t.Errorf("%v in what is shown:\n%s", err, shown)
		}
	})
}
