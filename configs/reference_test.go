package configs

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/operations/configuration.md anew")

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
	for _, k := range Reference() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.Path, k.Value, k.Doc)
	}
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
