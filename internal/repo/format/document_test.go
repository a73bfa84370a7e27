package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

// seal gives a document of any text with a sound hash.
func seal(first, body string) []byte {
	text := first + "\n" + body + "\n"
	return fmt.Appendf(nil, "%sblake3 %s\n", text, SumHash([]byte(text)))
}

func bodyOf(t *testing.T, b []byte) string {
	t.Helper()
	lines := strings.Split(string(b), "\n")
	if len(lines) != 4 || lines[3] != "" {
		t.Fatalf("not three lines: %q", b)
	}
	return lines[1]
}

func TestDocumentIsThreeLinesOfText(t *testing.T) {
	b, err := AppendAbort([]byte("before"), fixedAbort(t))
	if err != nil || !strings.HasPrefix(string(b), "beforeqbackup abort 1\n{") {
		t.Fatalf("%q, %v", b, err)
	}
	b = b[len("before"):]
	if !json.Valid([]byte(bodyOf(t, b))) {
		t.Error("the body is not JSON")
	}
	if kind, err := DocumentKind(b); err != nil || kind != KindAbort {
		t.Errorf("%v, %v", kind, err)
	}
}

func TestDocumentsOfAnotherFormAreCorrupt(t *testing.T) {
	i := fixedIntent(t)
	good, err := AppendIntent(nil, i)
	if err != nil {
		t.Fatal(err)
	}
	body := bodyOf(t, good)
	bad := map[string][]byte{
		"empty":          nil,
		"line end only":  []byte("\n"),
		"kind missing":   seal("qbackup 1", body),
		"other word":     seal("backup intent 1", body),
		"two spaces":     seal("qbackup  intent 1", body),
		"no body":        seal("qbackup intent 1", ""),
		"two bodies":     seal("qbackup intent 1", body+"\n"+body),
		"not JSON":       seal("qbackup intent 1", "hello"),
		"array":          seal("qbackup intent 1", "[]"),
		"null":           seal("qbackup intent 1", "null"),
		"two values":     seal("qbackup intent 1", body+body),
		"not UTF-8":      seal("qbackup intent 1", `{"host":"`+"\xff"+`"}`),
		"wrong type":     seal("qbackup intent 1", `{"host":1}`),
		"short run":      seal("qbackup intent 1", strings.Replace(body, i.Run.String(), i.Run.String()[1:], 1)),
		"upper-case id":  seal("qbackup intent 1", strings.Replace(body, i.Nonce.String(), strings.ToUpper(i.Nonce.String()), 1)),
		"no nonce":       seal("qbackup intent 1", strings.Replace(body, i.Nonce.String(), Nonce{}.String(), 1)),
		"bad disk":       seal("qbackup intent 1", strings.Replace(body, `"vda"`, `"../vda"`, 1)),
		"other kind":     seal("qbackup abort 1", body),
		"hash of others": append(append([]byte{}, good[:len(good)-10]...), "123456789\n"...),
		"upper hash":     []byte(strings.Replace(string(good), string(good[len(good)-60:]), strings.ToUpper(string(good[len(good)-60:])), 1)),
		"too long":       seal("qbackup intent 1", `{"host":"`+strings.Repeat("x", MaxDocumentBytes)+`"}`),
	}
	for name, b := range bad {
		if got, err := ParseIntent(b, i.Identity, i.Number); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestDocumentsOfALaterVersionNameIt(t *testing.T) {
	i := fixedIntent(t)
	good, _ := AppendIntent(nil, i)
	for _, b := range [][]byte{
		seal("qbackup intent 2", "anything"),
		seal("qbackup intent 1", strings.Replace(bodyOf(t, good), "{", `{"must_read":["encryption"],`, 1)),
	} {
		_, err := ParseIntent(b, i.Identity, i.Number)
		if !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%q gave %v", b[:20], err)
		}
	}
	_, err := ParseIntent(seal("qbackup intent 1", `{"must_read":["encryption"]}`), i.Identity, i.Number)
	if err == nil || !strings.Contains(err.Error(), "encryption") {
		t.Errorf("the message does not name the feature: %v", err)
	}
}

func TestUnknownFieldsOfDocumentsAreIgnored(t *testing.T) {
	i := fixedIntent(t)
	good, _ := AppendIntent(nil, i)
	b := seal("qbackup intent 1", strings.Replace(bodyOf(t, good), "{", `{"later":{"x":[1,2]},"must_read":[],`, 1))
	if got, err := ParseIntent(b, i.Identity, i.Number); err != nil || !reflect.DeepEqual(got, i) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDocumentsReadUnderAnotherNameAreMisplaced(t *testing.T) {
	at := fixedIdentity(t)
	others := map[string]Identity{"machine": at, "run": at, "repository": at, "machine id": at}
	for part, o := range others {
		switch part {
		case "machine":
			o.Machine = "web-2"
		case "run":
			o.Run = fixedRun(t, 9)
		case "repository":
			o.Repository[0] ^= 1
		case "machine id":
			o.MachineID[0] ^= 1
		}
		others[part] = o
	}
	intent, _ := AppendIntent(nil, fixedIntent(t))
	abort, _ := AppendAbort(nil, fixedAbort(t))
	tombstone, _ := AppendMark(nil, KindTombstone, fixedTombstone(t))
	record, _ := AppendRecord(nil, fixedRecord(t))
	verdict, _ := AppendVerdict(nil, fixedVerdict(t))
	for part, o := range others {
		for name, err := range map[string]error{
			"intent":    second(ParseIntent(intent, o, 1)),
			"abort":     second(ParseAbort(abort, o)),
			"tombstone": second(ParseMark(tombstone, KindTombstone, o, 0)),
			"record":    second(ParseRecord(record, o)),
			"verdict":   second(ParseVerdict(verdict, o, 3)),
		} {
			if !errors.Is(err, ErrMisplaced) {
				t.Errorf("%s with another %s: %v", name, part, err)
			}
		}
	}
	for name, err := range map[string]error{
		"intent":     second(ParseIntent(intent, at, 2)),
		"verdict":    second(ParseVerdict(verdict, at, 4)),
		"descriptor": second(ParseDescriptor(mustBytes(AppendDescriptor(nil, fixedDescriptor(t))), 2)),
		"machine":    second(ParseMachine(mustBytes(AppendMachine(nil, fixedMachine(t))), at.Repository, "web-2")),
		"repository": second(ParseMachine(mustBytes(AppendMachine(nil, fixedMachine(t))), RepositoryID{9}, at.Machine)),
	} {
		if !errors.Is(err, ErrMisplaced) {
			t.Errorf("%s with another number or name: %v", name, err)
		}
	}
	only := Identity{Machine: at.Machine, Run: at.Run}
	if _, err := ParseRecord(record, only); err != nil {
		t.Errorf("a record read with only its key known: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func mustBytes(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestSlotHoldsARecordOrAnAbort(t *testing.T) {
	at := fixedIdentity(t)
	record, _ := AppendRecord(nil, fixedRecord(t))
	abort, _ := AppendAbort(nil, fixedAbort(t))
	tombstone, _ := AppendMark(nil, KindTombstone, fixedTombstone(t))
	if r, a, err := ParseSlot(record, at); err != nil || r == nil || a != nil {
		t.Errorf("%v, %v, %v", r, a, err)
	}
	if r, a, err := ParseSlot(abort, at); err != nil || r != nil || a == nil {
		t.Errorf("%v, %v, %v", r, a, err)
	}
	for _, b := range [][]byte{tombstone, record[:len(record)-1], nil} {
		if r, a, err := ParseSlot(b, at); !errors.Is(err, ErrCorrupt) || r != nil || a != nil {
			t.Errorf("%v, %v, %v", r, a, err)
		}
	}
}

func TestDescriptorRefusesWhatItDoesNotKnow(t *testing.T) {
	d := fixedDescriptor(t)
	d.MustWrite = []string{"encryption"}
	b := mustBytes(AppendDescriptor(nil, d))
	got, err := ParseDescriptor(b, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.CheckWrite(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("writing gave %v", err)
	}
	if err := fixedDescriptor(t).CheckWrite(); err != nil {
		t.Error(err)
	}
	body := bodyOf(t, b)
	for name, change := range map[string][2]string{
		"feature": {`"must_write":["encryption"]`, `"must_read":["encryption"]`},
		"codec":   {`"codec":"zstd"`, `"codec":"lz4"`},
	} {
		b := seal("qbackup repository 1", strings.Replace(body, change[0], change[1], 1))
		if _, err := ParseDescriptor(b, 1); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string][2]string{
		"block size": {`"block_bytes":65536`, `"block_bytes":65537`},
		"generation": {`"generation":1`, `"generation":0`},
		"hash key":   {`"hash_key":"`, `"other":"`},
	} {
		b := seal("qbackup repository 1", strings.Replace(body, change[0], change[1], 1))
		if _, err := ParseDescriptor(b, 1); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecordsThatContradictThemselvesAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(r *Record){
		"no nonce":           func(r *Record) { r.Nonce = Nonce{} },
		"no machine":         func(r *Record) { r.Machine = "" },
		"no machine id":      func(r *Record) { r.MachineID = ident.MachineID{} },
		"no disk":            func(r *Record) { r.Disks = nil },
		"two of one name":    func(r *Record) { r.Disks[1].Name = "vda" },
		"two of one ordinal": func(r *Record) { r.Disks[1].Ordinal = 0 },
		"ordinal too large":  func(r *Record) { r.Disks[1].Ordinal = 65535 },
		"disk is a path":     func(r *Record) { r.Disks[0].Name = ".." },
		"unknown mode":       func(r *Record) { r.Disks[0].Mode = "half" },
		"missing with map":   func(r *Record) { r.Disks[1].Map = r.Disks[0].Map },
		"missing, no error":  func(r *Record) { r.Disks[1].Error = "" },
		"tree too low":       func(r *Record) { r.Disks[0].Map.Levels = 1 },
		"tree too high":      func(r *Record) { r.Disks[0].Map.Levels = 6 },
		"node elsewhere":     func(r *Record) { r.Disks[0].Map.Node.Offset = MaxObjectBytes },
		"node too long":      func(r *Record) { r.Disks[0].Map.Node.Length = MaxNodeBytes + 1 },
		"negative size":      func(r *Record) { r.Disks[0].SizeBytes = -1 },
		"negative count":     func(r *Record) { r.Disks[0].StoredBytes = -1 },
		"no manifest":        func(r *Record) { r.Manifest = Reference{} },
		"block size":         func(r *Record) { r.BlockBytes = 1000 },
		"empty extras":       func(r *Record) { r.Extras.Files = nil },
		"extra is a path":    func(r *Record) { r.Extras.Files[0].Name = "../x" },
		"extra twice":        func(r *Record) { r.Extras.Files[1].Name = r.Extras.Files[0].Name },
		"extra too long":     func(r *Record) { r.Extras.Files[1].Bytes = MaxExtrasBytes + 1 },
		"extras too long":    func(r *Record) { r.Extras.Files[0].Bytes, r.Extras.Files[1].Bytes = MaxExtrasBytes, 1 },
		"extra negative":     func(r *Record) { r.Extras.Files[0].Bytes = -1 },
		"extras' tree":       func(r *Record) { r.Extras.Map.Levels = 9 },
		"text is not UTF-8":  func(r *Record) { r.Disks[0].Image.Path = "/a\xffb" },
		"text too long":      func(r *Record) { r.Disks[0].Reason = strings.Repeat("x", MaxTextBytes+1) },
		"too many disks": func(r *Record) {
			for i := range 500 {
				r.Disks = append(r.Disks, DiskRecord{Name: fmt.Sprintf("d%d", i), Ordinal: i + 2, Mode: ModeMissing, Error: "no such file"})
			}
		},
	} {
		r := recordWithExtras(t)
		change(r)
		if b, err := AppendRecord(nil, r); !errors.Is(err, ErrInvalid) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExtrasOfARecordAreMappedLikeADiskAfterTheDisks(t *testing.T) {
	r := recordWithExtras(t)
	b, err := AppendRecord(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseRecord(b, r.Identity)
	if err != nil {
		t.Fatal(err)
	}
	mapped := back.Mapped()
	if len(mapped) != 2 || mapped[0].Name != "vda" || mapped[1].Ordinal != ExtrasOrdinal {
		t.Fatalf("mapped are %+v", mapped)
	}
	// The second file begins with the block after the first one's only block.
	if off, size := back.Extras.Offset(1, DefaultBlockBytes), mapped[1].SizeBytes; off != 65536 || size != 65536+540672 {
		t.Errorf("the second file lies at %d of %d bytes", off, size)
	}
}

func TestAZeroMapRootStandsForADiskOfZeros(t *testing.T) {
	r := fixedRecord(t)
	r.Disks[0].Map = MapRoot{}
	got, err := ParseRecord(mustBytes(AppendRecord(nil, r)), r.Identity)
	if err != nil || !got.Disks[0].Map.Node.IsZero() {
		t.Fatal(err)
	}
	if got.Complete() || got.Disk("vda") != &got.Disks[0] || got.Disk("sda") != nil {
		t.Error("disks are not found, or a missing one is not")
	}
	got.Disks = got.Disks[:1]
	if !got.Complete() {
		t.Error("a point with all disks is not complete")
	}
}

func TestTimesAreWrittenInUTC(t *testing.T) {
	a := fixedAbort(t)
	utc := mustBytes(AppendAbort(nil, a))
	a.Time = a.Time.Local()
	if local := mustBytes(AppendAbort(nil, a)); string(local) != string(utc) {
		t.Errorf("%s differs from %s", local, utc)
	}
}
