package format

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew: only together with a new version of the format")

func TestGoldenFilesAreReadAndWrittenByteForByte(t *testing.T) {
	for _, o := range fixedObjects(t) {
		path := filepath.Join("testdata", "golden", o.name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, o.bytes, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(golden, o.bytes) {
			t.Errorf("%s is written differently than in its golden file", o.name)
		}
		got, err := o.parse(golden)
		if err != nil || !reflect.DeepEqual(got, o.want) {
			t.Errorf("the golden %s is read as %+v, %v", o.name, got, err)
		}
	}
}

// Nodes and map objects carry no hash of their own: whoever refers to them has it.
func TestEveryFlippedBitOfEveryObjectIsNoticed(t *testing.T) {
	for _, o := range fixedObjects(t) {
		stored := SumHash(o.bytes)
		b := bytes.Clone(o.bytes)
		for bit := range len(b) * 8 {
			b[bit/8] ^= 1 << (bit % 8)
			_, err := o.parse(b)
			switch {
			case err == nil && (o.name != "leaf" && o.name != "inner" && o.name != "map" || SumHash(b) == stored):
				t.Fatalf("%s with bit %d of byte %d flipped was accepted", o.name, bit%8, bit/8)
			case err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported):
				t.Fatalf("%s with bit %d of byte %d flipped: %v has no class", o.name, bit%8, bit/8, err)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestNodeReferencesVerifyLengthAndHash(t *testing.T) {
	m, nodes := fixedMap(t)
	for _, n := range nodes {
		raw := bytes.Clone(m.Bytes[n.Ref.Offset:][:n.Ref.Length])
		if err := n.Ref.Verify(raw); err != nil {
			t.Fatal(err)
		}
		if err := n.Ref.Verify(raw[1:]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a shorter node gave %v", err)
		}
		raw[9] ^= 1
		if err := n.Ref.Verify(raw); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a flipped bit gave %v", err)
		}
	}
}
