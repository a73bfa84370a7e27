package format

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// page gives the normative page.
func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash("../../../docs/format/repository.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fences gives the fenced parts of the page whose first line is "```WORD NAME".
func fences(t *testing.T, word string) map[string]string {
	t.Helper()
	out := map[string]string{}
	parts := strings.Split(page(t), "```"+word+" ")
	for _, part := range parts[1:] {
		body, _, closed := strings.Cut(part, "\n```\n")
		name, text, ok := strings.Cut(body, "\n")
		if !closed || !ok || out[name] != "" {
			t.Fatalf("the fence %s %q is not closed, empty or there twice", word, name)
		}
		out[name] = text + "\n"
	}
	return out
}

var (
	dumpLine   = regexp.MustCompile(`^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)(?: +(\S.*))?$`)
	dumpNumber = regexp.MustCompile(`= (0x[0-9A-F]+|[0-9]+)( \(little-endian\))?$`)
	dumpText   = regexp.MustCompile(`^"([^"]*)"`)
)

// readDump gives the bytes of a dump, and checks each number and text that is
// written beside bytes against them.
func readDump(t *testing.T, name, text string) []byte {
	t.Helper()
	var all []byte
	numbers := 0
	for line := range strings.Lines(text) {
		m := dumpLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			t.Fatalf("%s: %q is not a line of a dump", name, line)
		}
		if at, _ := strconv.ParseUint(m[1], 16, 32); at != uint64(len(all)) {
			t.Fatalf("%s: %q should begin at %04x", name, line, len(all))
		}
		b, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		all = append(all, b...)
		if s := dumpText.FindStringSubmatch(m[3]); s != nil && s[1] != string(b) {
			t.Errorf("%s: %q stands beside %q", name, s[1], b)
		}
		n := dumpNumber.FindStringSubmatch(m[3])
		if n == nil {
			continue
		}
		numbers++
		want, err := strconv.ParseUint(n[1], 0, 64)
		var wide [8]byte
		copy(wide[8-len(b):], b)
		got := binary.BigEndian.Uint64(wide[:])
		if n[2] != "" {
			wide = [8]byte{}
			copy(wide[:], b)
			got = binary.LittleEndian.Uint64(wide[:])
		}
		if err != nil || got != want {
			t.Errorf("%s: %q says %d where the bytes say %d", name, line, want, got)
		}
	}
	if numbers < 3 {
		t.Errorf("%s: only %d numbers were checked", name, numbers)
	}
	return all
}

func TestDumpsOfThePageAreTheseObjects(t *testing.T) {
	dumps := fences(t, "hexdump")
	documents := fences(t, "document")
	for _, o := range fixedObjects(t) {
		b := []byte(documents[o.name])
		if text, ok := dumps[o.name]; ok {
			b = readDump(t, o.name, text)
		}
		if len(b) == 0 {
			t.Errorf("the page shows no %s", o.name)
			continue
		}
		got, err := o.parse(b)
		if err != nil || !reflect.DeepEqual(got, o.want) {
			t.Errorf("the %s of the page is read as %+v, %v", o.name, got, err)
		}
		if !bytes.Equal(b, o.bytes) {
			t.Errorf("the %s of the page is not what the code writes", o.name)
		}
		delete(dumps, o.name)
		delete(documents, o.name)
	}
	if len(dumps)+len(documents) > 0 {
		t.Errorf("examples that no test decodes: %v %v", dumps, documents)
	}
}

func TestTablesOfThePageLeaveNoGap(t *testing.T) {
	tables := 0
	next := -1
	for line := range strings.Lines(page(t)) {
		cells := strings.Split(line, "|")
		switch {
		case strings.HasPrefix(line, "| offset | size |"):
			tables, next = tables+1, 0
		case next < 0 || strings.HasPrefix(line, "|---"):
		case len(cells) < 4:
			next = -1
		default:
			at, err1 := strconv.Atoi(strings.TrimSpace(cells[1]))
			size, err2 := strconv.Atoi(strings.TrimSpace(cells[2]))
			if err1 != nil || err2 != nil || at != next {
				t.Errorf("%q should begin at %d", line, next)
			}
			next = at + size
		}
	}
	if tables != 11 {
		t.Errorf("%d tables of offsets, want 11", tables)
	}
}

func TestThePageNamesEveryFieldOfEveryDocument(t *testing.T) {
	text := page(t)
	var walk func(v reflect.Type)
	walk = func(v reflect.Type) {
		switch {
		case v.Kind() == reflect.Slice:
			walk(v.Elem())
		case v.Kind() != reflect.Struct || v == reflect.TypeFor[time.Time]():
		default:
			for i := range v.NumField() {
				f := v.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" && !f.Anonymous {
					t.Errorf("%s.%s has no name", v, f.Name)
				}
				if name != "" && !strings.Contains(text, "`"+name+"`") {
					t.Errorf("the page does not name the field %q of %s", name, v)
				}
				walk(f.Type)
			}
		}
	}
	for _, v := range []any{Descriptor{}, Machine{}, Intent{}, Record{}, Abort{}, Mark{}, Verdict{}} {
		walk(reflect.TypeOf(v))
	}
}

func TestThePageStatesTheLimitsOfTheCode(t *testing.T) {
	text := page(t)
	for phrase, ok := range map[string]bool{
		"document | 65,535 bytes; a string in it 4,096":  MaxDocumentBytes == 65535 && MaxTextBytes == 4096,
		"pack, map object, manifest | 32 MiB":            MaxObjectBytes == 32<<20,
		"block size | 16 KiB to 1 MiB, a power of two":   MinBlockBytes == 16<<10 && MaxBlockBytes == 1<<20,
		"blocks of a frame | 16, and what one window of": MaxFrameBlocks == 16 && WindowBytes == 1<<20,
		"blocks of a disk | 2^49":                        MaxDiskBlocks == 1<<49,
		"levels of a map | 5":                            MaxLevels == 5,
		"node | 65,560 bytes":                            MaxNodeBytes == 65560,
		"sequence numbers, generations | 99,999,999":     MaxSeq == 99999999 && MaxGeneration == 99999999,
		"renewals and verdicts of a run | 9,999":         MaxNumber == 9999,
		"65,536 besides its own":                         MaxDependencies == 65536,
		"Header, 128 bytes":                              PackHeaderBytes == 128,
		"Footer, 88 bytes":                               PackFooterBytes == 88,
		"*n* + *n*/128 + 512":                            MaxFrameBytes(65536) == 65536+512+512,
	} {
		if !ok || !strings.Contains(text, phrase) {
			t.Errorf("page and code do not agree on %q", phrase)
		}
	}
}
