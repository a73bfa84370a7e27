package format

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Codec compresses and decompresses frames. It may be used from several
// goroutines; more than its workers wait for one another. Each worker holds about
// 2 MiB of memory.
//
// The fastest level: the next one took 29 % more time for 7 % of the ratio in
// frames of 64 KiB (docs/decisions/0106-codec.md). Windows of 1 MiB: no frame is
// larger, and the memory of an encoder grows with its window. No checksum inside of
// frames: every block has its own hash, and every pack one over all its bytes.
type Codec struct {
	blockBytes int64
	encoder    *zstd.Encoder
	decoder    *zstd.Decoder
}

// NewCodec makes a codec for blocks of this size and so many workers (at least 1).
func NewCodec(blockBytes int64, workers int) (*Codec, error) {
	if err := CheckBlockBytes(blockBytes); err != nil {
		return nil, err
	}
	workers = max(workers, 1)
	encoder, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(workers),
		zstd.WithWindowSize(WindowBytes),
		zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("set up the zstd encoder: %w", err)
	}
	decoder, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(workers),
		zstd.WithDecoderMaxMemory(WindowBytes),
		zstd.WithDecoderMaxWindow(WindowBytes),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("set up the zstd decoder: %w", err)
	}
	return &Codec{blockBytes: blockBytes, encoder: encoder, decoder: decoder}, nil
}

// BlockBytes gives the block size that the codec was made for.
func (c *Codec) BlockBytes() int64 { return c.blockBytes }

// Compress appends one zstd frame that holds the given whole blocks to dst. A dst
// with MaxFrameBytes(len(blocks)) of free capacity is never moved.
func (c *Codec) Compress(dst, blocks []byte) []byte { return c.encoder.EncodeAll(blocks, dst) }

// Decompress appends the blocks of one frame to dst. The frame must say that it
// holds exactly that many, and must do so; no more memory than that is taken
// whatever the frame contains. The caller owns both slices.
func (c *Codec) Decompress(dst, frame []byte, blocks int) ([]byte, error) {
	if blocks < 1 || blocks > FrameBlocks(c.blockBytes) {
		return nil, invalid("frame", "%d blocks of %d bytes do not make a frame", blocks, c.blockBytes)
	}
	want := blocks * int(c.blockBytes)
	var header zstd.Header
	if err := header.Decode(frame); err != nil {
		return nil, corrupt("frame", 0, "no zstd header: %v", err)
	}
	if header.Skippable || !header.HasFCS || header.FrameContentSize != uint64(want) {
		return nil, corrupt("frame", 0, "its header does not promise the %d bytes of %d blocks", want, blocks)
	}
	start := len(dst)
	if cap(dst)-start < want {
		dst = append(make([]byte, 0, start+want), dst...)
	}
	out, err := c.decoder.DecodeAll(frame, dst[:start:start+want])
	if err != nil {
		return nil, corrupt("frame", 0, "it does not decompress: %v", err)
	}
	if len(out) != start+want {
		return nil, corrupt("frame", 0, "it decompresses to %d bytes where its header promises %d", len(out)-start, want)
	}
	return out, nil
}
