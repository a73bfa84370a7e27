package sim

import (
	"io"
	"math/rand/v2"
	"slices"
)

// File is an image file, or what stands for one.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() (int64, error)
}

// Image adds an image that holds content, which is durable.
func (l *Log) Image(name string, content []byte) {
	l.add(&device{name: name, kind: imageDevice, image: slices.Clone(content)})
}

// File records what is done to an image that was added. An image can be opened
// several times.
func (l *Log) File(name string, f File) File { return &imageFile{f, l, name} }

type imageFile struct {
	File
	log  *Log
	name string
}

func (f *imageFile) WriteAt(p []byte, off int64) (n int, err error) {
	e := Effect{Device: f.name, Verb: Write, Offset: off, Data: slices.Clone(p)}
	err = f.log.do(e, func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *imageFile) Sync() error {
	return f.log.do(Effect{Device: f.name, Verb: Sync}, f.File.Sync)
}

// sectorBytes is what a disk writes as one.
const sectorBytes = 512

// imageAfter returns what an image holds when each sector that was written after
// the last sync has reached the disk by chance.
func imageAfter(base []byte, effects []Effect, chance float64, random *rand.Rand) []byte {
	last := -1
	for i, e := range effects {
		if e.Verb == Sync {
			last = i
		}
	}
	content := slices.Clone(base)
	for i, e := range effects {
		if e.Verb != Write {
			continue
		}
		if i < last || chance >= 1 {
			content = apply(content, e.Offset, e.Data)
			continue
		}
		for from := int64(0); from < int64(len(e.Data)); {
			to := min(from+sectorBytes-(e.Offset+from)%sectorBytes, int64(len(e.Data)))
			if random.Float64() < chance {
				content = apply(content, e.Offset+from, e.Data[from:to])
			}
			from = to
		}
	}
	return content
}
