package format

import (
	"bytes"
	"errors"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
	"github.com/zeebo/blake3"
)

// textBlocks gives blocks that compress to a part of their size.
func textBlocks(n int) []byte {
	words := []byte("the quick brown fox jumps over the lazy dog and does it again until the block is full of words ")
	noise := fixedBytes(7, n)
	out := make([]byte, n)
	for i := range out {
		out[i] = words[(i+int(noise[i/16])%40)%len(words)]
	}
	return out
}

func TestFramesOfEveryGeometryComeBack(t *testing.T) {
	for blockBytes := int64(MinBlockBytes); blockBytes <= MaxBlockBytes; blockBytes *= 2 {
		codec := fixedCodec(t, blockBytes)
		for _, n := range []int{1, 2, FrameBlocks(blockBytes)} {
			if n > FrameBlocks(blockBytes) {
				continue
			}
			size := n * int(blockBytes)
			for name, plain := range map[string][]byte{"zeros": make([]byte, size), "noise": fixedBytes(8, size), "text": textBlocks(size)} {
				buf := make([]byte, 0, MaxFrameBytes(int64(size)))
				frame := codec.Compress(buf, plain)
				if int64(len(frame)) > MaxFrameBytes(int64(size)) || &frame[0] != &buf[:1][0] {
					t.Errorf("%s of %d bytes took %d", name, size, len(frame))
				}
				got, err := codec.Decompress([]byte("before"), frame, n)
				if err != nil || !bytes.Equal(got, append([]byte("before"), plain...)) {
					t.Errorf("%s of %d bytes did not come back: %v", name, size, err)
				}
				exact := make([]byte, 0, size)
				if got, err = codec.Decompress(exact, frame, n); err != nil || &got[0] != &exact[:1][0] {
					t.Errorf("%s of %d bytes was moved: %v", name, size, err)
				}
			}
		}
	}
}

func TestFramesThatLieAboutTheirSizeAreCorrupt(t *testing.T) {
	codec := fixedCodec(t, MinBlockBytes)
	two := codec.Compress(nil, make([]byte, 2*MinBlockBytes))
	short := codec.Compress(nil, make([]byte, MinBlockBytes-1))
	one := codec.Compress(nil, textBlocks(MinBlockBytes))
	bomb := codec.Compress(nil, make([]byte, 64<<20))
	letter, _ := letterFrame(0, 0, "A")
	lying := bytes.Clone(letter.Compressed)
	lying[7] = 0x23 // its RLE block now has other than 16 KiB
	skippable := appendSkippable(nil, skippableHeaderMagic, 4)
	for name, frame := range map[string][]byte{
		"empty": nil, "not zstd": []byte("hello, world"), "two for one": two, "one byte short": short,
		"cut": one[:len(one)-1], "two frames": append(bytes.Clone(one), one...), "bomb": bomb, "lying": lying,
		"skippable": append(skippable, 0, 0, 0, 0), "skippable before": append(append(skippable, 0, 0, 0, 0), one...),
	} {
		if out, err := codec.Decompress(nil, frame, 1); !errors.Is(err, ErrCorrupt) || out != nil {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
	for _, n := range []int{-1, 0, 17} {
		if _, err := codec.Decompress(nil, one, n); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d blocks: %v", n, err)
		}
	}
}

func TestABombTakesNoMemory(t *testing.T) {
	codec := fixedCodec(t, MinBlockBytes)
	bomb := codec.Compress(nil, make([]byte, 64<<20))
	// The same frame, but promising one block: the second check has to stop it.
	letter, _ := letterFrame(0, 0, "AAAAAAAA")
	liar := bytes.Clone(letter.Compressed)
	liar[5], liar[6] = 0x00, 0x3f
	for _, frame := range [][]byte{bomb, liar} {
		dst := make([]byte, 0, MinBlockBytes)
		var before, after runtime.MemStats
		const rounds = 100
		runtime.ReadMemStats(&before)
		for range rounds {
			if _, err := codec.Decompress(dst, frame, 1); !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 64<<10 {
			t.Errorf("%d bytes were allocated for a block of %d", each, MinBlockBytes)
		}
	}
}

func TestCodecAndHasherWorkInParallel(t *testing.T) {
	codec, hasher := fixedCodec(t, MinBlockBytes), fixedHasher()
	var group sync.WaitGroup
	for seed := range byte(8) {
		group.Go(func() {
			plain := fixedBytes(seed, MinBlockBytes)
			want := hasher.Sum(plain)
			for range 20 {
				got, err := codec.Decompress(nil, codec.Compress(nil, plain), 1)
				if err != nil || hasher.Sum(got) != want {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
		})
	}
	group.Wait()
}

func TestCodecRefusesOtherBlockSizes(t *testing.T) {
	for _, n := range []int64{0, -1, 8 << 10, 2 << 20, 65537} {
		if _, err := NewCodec(n, 1); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v", n, err)
		}
	}
	if c, err := NewCodec(DefaultBlockBytes, 0); err != nil || c.BlockBytes() != DefaultBlockBytes {
		t.Error(err)
	}
}

func TestBlockHashIsTheStartOfKeyedBLAKE3(t *testing.T) {
	key, block := fixedBytes(1, 32), fixedBytes(2, MinBlockBytes)
	keyed, err := blake3.NewKeyed(key)
	if err != nil {
		t.Fatal(err)
	}
	keyed.Write(block)
	want := BlockHash(keyed.Sum(nil)[:16])
	hasher := NewBlockHasher(HashKey(key))
	for range 3 {
		if got := hasher.Sum(block); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	if NewBlockHasher(HashKey{1}).Sum(block) == want {
		t.Error("the key does not matter")
	}
}

func TestZstdGivesTheBlocksOfAPackWithoutQbackup(t *testing.T) {
	zstd := testtool.Need(t, "zstd")
	w := NewPackWriter(fixedPackHeader(t, 0, DefaultBlockBytes), 4<<20)
	codec := fixedCodec(t, DefaultBlockBytes)
	var want []byte
	for i, n := range []int{1, 16, 3} {
		plain := textBlocks(n * DefaultBlockBytes)
		plain[0] = byte(i)
		if i == 2 {
			plain = fixedBytes(9, n*DefaultBlockBytes)
		}
		f := Frame{FirstBlock: int64(i) * 16, Compressed: codec.Compress(nil, plain), Hashes: make([]BlockHash, n)}
		if _, err := w.AppendFrame(f); err != nil {
			t.Fatal(err)
		}
		want = append(want, plain...)
	}
	p, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), zstd, "-dc")
	cmd.Stdin = bytes.NewReader(p.Bytes)
	got, err := cmd.Output()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("zstd gave %d bytes where %d were packed: %v", len(got), len(want), err)
	}
}

func BenchmarkCompressWindow(b *testing.B) {
	codec := fixedCodec(b, DefaultBlockBytes)
	plain := textBlocks(WindowBytes)
	buf := make([]byte, 0, MaxFrameBytes(WindowBytes))
	b.SetBytes(WindowBytes)
	for b.Loop() {
		codec.Compress(buf, plain)
	}
}

func BenchmarkDecompressWindow(b *testing.B) {
	codec := fixedCodec(b, DefaultBlockBytes)
	frame := codec.Compress(nil, textBlocks(WindowBytes))
	buf := make([]byte, 0, WindowBytes)
	b.SetBytes(WindowBytes)
	for b.Loop() {
		if _, err := codec.Decompress(buf, frame, 16); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHashBlock(b *testing.B) {
	hasher, block := fixedHasher(), fixedBytes(1, DefaultBlockBytes)
	b.SetBytes(DefaultBlockBytes)
	for b.Loop() {
		hasher.Sum(block)
	}
}
