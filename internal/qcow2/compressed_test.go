package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// mixedBytes are bytes that pack well in parts.
func mixedBytes(n int) []byte {
	r := rand.New(rand.NewPCG(8, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		if i/700%2 == 0 {
			b[i] = byte(r.Uint32())
		} else {
			b[i] = byte(i / 700)
		}
	}
	return b
}

func testUnpacker(kind Compression, clusterBits uint8) *unpacker {
	return newUnpacker(&Header{Compression: kind, ClusterBits: clusterBits})
}

func TestUnpackStopsAfterOneCluster(t *testing.T) {
	for _, bits := range []uint8{9, 16, 21} {
		plain := mixedBytes(1 << bits)
		deflate := deflated(t, plain)
		garbage := bytes.Repeat([]byte{0xff}, 511)
		whole := zstandard(t, plain, zstd.WithEncoderCRC(true))
		skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}
		third := len(plain) / 3
		frames := append(zstandard(t, plain[:third]), zstandard(t, plain[third:])...)
		for name, c := range map[string]struct {
			kind   Compression
			packed []byte
		}{
			"deflate":                       {Deflate, deflate},
			"deflate, then garbage":         {Deflate, append(bytes.Clone(deflate), garbage...)},
			"deflate of more":               {Deflate, deflated(t, append(bytes.Clone(plain), plain...))},
			"zstd":                          {Zstd, whole},
			"zstd, then garbage":            {Zstd, append(bytes.Clone(whole), garbage...)},
			"zstd, then another frame":      {Zstd, append(bytes.Clone(whole), whole...)},
			"zstd in two frames":            {Zstd, frames},
			"zstd after a skippable frame":  {Zstd, append(bytes.Clone(skippable), whole...)},
			"zstd frames, then a torn one":  {Zstd, append(bytes.Clone(frames), whole[:20]...)},
			"zstd with a large window":      {Zstd, zstandard(t, plain, zstd.WithWindowSize(8<<20), zstd.WithSingleSegment(false))},
			"zstd without a checksum":       {Zstd, zstandard(t, plain, zstd.WithEncoderCRC(false))},
			"zstd with an empty frame last": {Zstd, append(bytes.Clone(whole), zstandard(t, nil, zstd.WithZeroFrames(true))...)},
		} {
			got := make([]byte, len(plain))
			if err := testUnpacker(c.kind, bits).unpack(got, c.packed); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("2^%d %s: %v", bits, name, err)
			}
		}
	}
}

func TestUnpackAcceptsADeflateStreamWithoutItsEnd(t *testing.T) {
	plain := mixedBytes(65536)
	// A stored block that is not the last one, and nothing behind it.
	packed := append([]byte{0x00, 0xff, 0xff, 0x00, 0x00}, plain[:65535]...)
	got := make([]byte, 65535)
	if err := testUnpacker(Deflate, 16).unpack(got, packed); err != nil || !bytes.Equal(got, plain[:65535]) {
		t.Fatal(err)
	}
}

func TestUnpackRefusesWhatIsNotOneCluster(t *testing.T) {
	const bits = 16
	plain := mixedBytes(1 << bits)
	deflate, frame := deflated(t, plain), zstandard(t, plain)
	flipped := bytes.Clone(frame)
	flipped[len(flipped)-1] ^= 1 // of its checksum
	for name, c := range map[string]struct {
		kind   Compression
		packed []byte
	}{
		"nothing":                {Deflate, nil},
		"torn deflate":           {Deflate, deflate[:len(deflate)/2]},
		"short deflate":          {Deflate, deflated(t, plain[1:])},
		"zstd read as deflate":   {Deflate, frame},
		"nothing of zstd":        {Zstd, nil},
		"torn zstd":              {Zstd, frame[:len(frame)/2]},
		"zstd without last byte": {Zstd, frame[:len(frame)-1]},
		"short zstd":             {Zstd, zstandard(t, plain[1:])},
		"long zstd":              {Zstd, zstandard(t, append(bytes.Clone(plain), 1))},
		"huge zstd":              {Zstd, zstandard(t, make([]byte, 64<<20))},
		"wrong zstd checksum":    {Zstd, flipped},
		"deflate read as zstd":   {Zstd, deflate},
	} {
		got := make([]byte, len(plain))
		if err := testUnpacker(c.kind, bits).unpack(got, c.packed); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// craftCompressed puts packed bytes behind an image whose only cluster they
// are, beginning at an odd byte.
func craftCompressed(clusterBits uint32, incompatible uint64, packed []byte) craft {
	cluster := 1 << clusterBits
	b := craftImage(clusterBits, uint64(cluster), 0, incompatible)
	if incompatible&incompatCompression != 0 {
		b[headerCompressionType] = compressionZstd
	}
	host := len(b) + 13
	b = append(append(b, make([]byte, 13)...), packed...)
	sectors := (host%512+len(packed)+511)/512 - 1
	b.put64(craftL2Cluster*cluster, l2Compressed|uint64(sectors)<<(62-(clusterBits-8))|uint64(host))
	return b
}

func TestPartsOfACompressedClusterAreUnpackedOnce(t *testing.T) {
	plain := mixedBytes(1 << 16)
	file := &memoryFile{bytes: craftCompressed(16, incompatCompression, zstandard(t, plain))}
	d, err := OpenDisk(file, "image", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	p := make([]byte, 1000)
	var after int64
	for off := 0; off < len(plain); off += len(p) {
		n, err := d.ReadAt(p, int64(off))
		if n < len(p) && off+n < len(plain) {
			t.Fatal(n, err)
		}
		got = append(got, p[:n]...)
		if off == 0 {
			after = file.reads.Load()
		}
	}
	if !bytes.Equal(got, plain) {
		t.Fatal("other bytes")
	}
	if file.reads.Load() != after {
		t.Error("the packed bytes were read again")
	}
}

func TestADamagedCompressedClusterNamesItsPlace(t *testing.T) {
	packed := deflated(t, mixedBytes(1<<16))
	b := craftCompressed(16, 0, packed[:len(packed)/2])
	d, err := OpenDisk(&memoryFile{bytes: b}, "image", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := d.ReadAt(make([]byte, 10), 100)
	if n != 0 {
		t.Error("bytes were read")
	}
	checkPlace(t, err, "compressed cluster", int64(len(b)-len(packed)/2), "packed bytes are damaged")
}

func FuzzDecompress(f *testing.F) {
	plain := mixedBytes(1 << 12)
	f.Add(false, uint8(3), deflated(f, plain))
	f.Add(true, uint8(3), zstandard(f, plain))
	f.Add(true, uint8(3), append(zstandard(f, plain[:100]), zstandard(f, plain[100:])...))
	f.Add(true, uint8(3), zstandard(f, make([]byte, 1<<21)))
	f.Add(true, uint8(0), []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff})
	unpackers := map[bool][]*unpacker{}
	for bits := uint8(minClusterBits); bits <= maxClusterBits; bits++ {
		unpackers[false] = append(unpackers[false], testUnpacker(Deflate, bits))
		unpackers[true] = append(unpackers[true], testUnpacker(Zstd, bits))
	}
	f.Fuzz(func(t *testing.T, zstandard bool, bits uint8, packed []byte) {
		i := int(bits) % (maxClusterBits - minClusterBits + 1)
		// Bytes behind the cluster must stay as they are.
		cluster := 1 << (minClusterBits + i)
		dst := bytes.Repeat([]byte{0xa5}, cluster+64)
		err := unpackers[zstandard][i].unpack(dst[:cluster], packed)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if !bytes.Equal(dst[cluster:], bytes.Repeat([]byte{0xa5}, 64)) {
			t.Fatal("wrote behind the cluster")
		}
	})
}
