package configs

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/operations/configuration.md anew")

// reference writes a row for each key of a type.
func reference(b *strings.Builder, t reflect.Type, path string) {
	for i := range t.NumField() {
		f := t.Field(i)
		key := f.Tag.Get("yaml")
		if key == ",inline" {
			fmt.Fprintf(b, "| `%s` | | every key of `defaults`, for this machine; `hooks` replace those of the defaults as a whole |\n", strings.TrimSuffix(path, ".")+".*")
			continue
		}
		at, kind := path+key, kindOf(f.Type)
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, kind, f.Tag.Get("doc"))
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner, at = inner.Elem(), at+"[]"
		}
		if inner.Kind() == reflect.Struct {
			reference(b, inner, at+".")
		}
	}
}

func kindOf(t reflect.Type) string {
	switch reflect.New(t).Interface().(type) {
	case *Duration:
		return "duration: 90s, 15m, 26h, 7d, 4w"
	case *Count:
		return "number"
	case *Bytes:
		return "size: 256MiB, 10GB"
	case *Rate:
		return "rate: 20MB/s, unlimited"
	case *Freeze:
		return "off, try, require"
	case *Images:
		return "list, or mapping"
	case *Timetable:
		return "rate, or list"
	case *clock:
		return `time of day: "08:00"`
	case *Days:
		return "days: mon-fri"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list"
	case reflect.Struct:
		return ""
	case reflect.Bool:
		return "true, false"
	default:
		return "word"
	}
}

func TestTheManualListsEveryKey(t *testing.T) {
	const path = "../docs/operations/configuration.md"
	var b strings.Builder
	b.WriteString(`# Configuration

The file is ` + "`" + DefaultPath + "`" + `, or another one named by ` + "`--config` or `$QBACKUP_CONFIG`" + `. A flag goes before the environment, and the environment before the file. ` +
		"`qbackup config sample`" + ` prints a file with every key and a word about
each, ` + "`qbackup config check`" + ` says what is wrong with one, with line, column and cure, ` + "`qbackup config show`" + ` what it comes to, and ` + "`qbackup config schema`" + ` prints a JSON schema for editors.

The file is read strictly: a key that is not known, a value of the wrong kind and a secret that stands in it are errors, and every command but those of ` + "`config`" + ` and ` + "`thaw`" + ` ends with exit code 64. The keys of an S3 store are in a file
in the format of the AWS tools (` + "`credentials.file`" + `), which nobody but its owner and group may read, or in a systemd credential; the variables of the AWS tools go before both.

A machine is one of: ` + "`images`" + ` (off, or opened by nobody), ` + "`qmp`" + ` (running; with ` + "`images`" + ` beside it also off), ` + "`libvirt`" + ` (running or off), ` + "`each`" + ` (one machine for each file). An entry by name goes before a pattern that finds the same machine.

| key | value | meaning |
|---|---|---|
`)
	reference(&b, reflect.TypeFor[Config](), "")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != b.String() {
		t.Errorf("%s is not what the types say (%v); go test ./configs -update writes it", path, err)
	}
}
