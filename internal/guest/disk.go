package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/qbackup/qbackup/internal/qcow2"
)

// L1 and L2 entries.
const (
	offsetMask = 0x00fffffffffffe00
	copied     = 1 << 63
	compressed = 1 << 62
	readsZero  = 1
)

// Disk is the disk of a running machine.
type Disk struct {
	mu           sync.Mutex
	file         qcow2.File
	header       *qcow2.Header
	clusterBytes int64
	l1           []uint64
	l2           map[int64][]uint64 // by L1 slot; every change is written at once
	refs         *refcounts
	bitmaps      []*bitmap
	closed       bool
}

// Open starts the machine. The bitmaps of the image are in use from here on. The
// caller keeps f, and closes it after Close.
func Open(f qcow2.File) (*Disk, error) {
	image, err := qcow2.OpenImage(f, qcow2.ImageOptions{})
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	h := image.Header()
	if err := checkPlayable(h); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	d := &Disk{file: f, header: h, clusterBytes: h.ClusterBytes(), l2: map[int64][]uint64{}}
	if d.l1, err = readWords(f, h.L1Offset, int64(h.L1Entries)); err != nil {
		return nil, fmt.Errorf("start guest: read L1 table: %w", err)
	}
	if d.refs, err = openRefcounts(f, h); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	if err := d.loadBitmaps(image); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	return d, nil
}

func checkPlayable(h *qcow2.Header) error {
	if err := h.CheckTrust(); err != nil {
		return err
	}
	if h.Version != 3 || h.RefcountBits != 16 || h.ExtendedL2() || h.ExternalData() || h.BackingFileOffset != 0 || h.SnapshotCount > 0 || h.UnknownAutoclear() != 0 {
		return errors.New("the image is not version 3 with 16-bit refcounts, alone in one file")
	}
	return nil
}

// Size returns the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.header.SizeBytes }

// Flush makes what was written durable, as a guest's flush does.
func (d *Disk) Flush() error { return d.file.Sync() }

// checkRange refuses what is outside the disk.
func (d *Disk) checkRange(off, n int64) error {
	if d.closed {
		return errors.New("the machine is off")
	}
	if off < 0 || n < 0 || off > d.Size()-n {
		return fmt.Errorf("%d bytes at %d are outside the disk of %d bytes", n, off, d.Size())
	}
	return nil
}

// ReadAt reads as io.ReaderAt says.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := len(p)
	if off >= 0 && off <= d.Size() {
		p = p[:min(int64(len(p)), d.Size()-off)]
	}
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		piece := p[done:min(len(p), done+int(d.clusterBytes-(off+int64(done))%d.clusterBytes))]
		if err := d.readCluster(piece, off+int64(done)); err != nil {
			return done, err
		}
		done += len(piece)
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readCluster reads within one cluster.
func (d *Disk) readCluster(p []byte, off int64) error {
	entry, err := d.entry(off / d.clusterBytes)
	if err != nil {
		return err
	}
	clear(p)
	if entry&offsetMask == 0 || entry&readsZero != 0 {
		return nil
	}
	_, err = d.file.ReadAt(p, int64(entry&offsetMask)+off%d.clusterBytes)
	if errors.Is(err, io.EOF) {
		err = nil // files are not padded
	}
	return err
}

// WriteAt writes all of p.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.record(off, int64(len(p)))
	for done := 0; done < len(p); {
		n, err := d.writeSome(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// writeSome writes the start of p: in place into a cluster that has a place, or
// into as many new ones as are needed and can be had in a row.
func (d *Disk) writeSome(p []byte, off int64) (int, error) {
	cluster, within := off/d.clusterBytes, off%d.clusterBytes
	entry, err := d.entry(cluster)
	if err != nil {
		return 0, err
	}
	if place := int64(entry & offsetMask); place != 0 && entry&readsZero == 0 {
		n := min(int64(len(p)), d.clusterBytes-within)
		_, err := d.file.WriteAt(p[:n], place+within)
		return int(n), err
	}
	count := int64(1)
	for need := (within + int64(len(p)) + d.clusterBytes - 1) / d.clusterBytes; count < need; count++ {
		next, err := d.entry(cluster + count)
		if err != nil {
			return 0, err
		}
		if next&offsetMask != 0 {
			break
		}
	}
	place := int64(entry & offsetMask)
	if place != 0 {
		count = 1 // a zero cluster that kept its place
	} else if place, count, err = d.refs.allocate(count); err != nil {
		return 0, err
	}
	n := min(int64(len(p)), count*d.clusterBytes-within)
	if err := d.writePadded(p[:n], place, within, count); err != nil {
		return 0, err
	}
	for i := range count {
		if err := d.setEntry(cluster+i, uint64(place+i*d.clusterBytes)|copied); err != nil {
			return 0, err
		}
	}
	return int(n), nil
}

// writePadded writes new clusters whole: p, and zeros around it.
func (d *Disk) writePadded(p []byte, place, within, count int64) error {
	if int64(len(p)) < count*d.clusterBytes {
		whole := make([]byte, count*d.clusterBytes)
		copy(whole[within:], p)
		p = whole
	}
	_, err := d.file.WriteAt(p, place)
	return err
}

// Zero makes a range read as zeros: whole clusters without a place in the file,
// the rest by writing.
func (d *Disk) Zero(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	d.record(off, n)
	return d.drop(off, n, func(at, n int64) error {
		entry, err := d.entry(at / d.clusterBytes)
		if err != nil || entry&offsetMask == 0 || entry&readsZero != 0 {
			return err
		}
		_, err = d.file.WriteAt(make([]byte, n), int64(entry&offsetMask)+at%d.clusterBytes)
		return err
	})
}

// Discard gives a range back: whole clusters read as zeros, the rest stays.
func (d *Disk) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	d.record(off, n)
	return d.drop(off, n, func(int64, int64) error { return nil })
}

// drop takes whole clusters of a range out of the file, and calls rest for what
// is less than a cluster. The last cluster of the disk counts as whole.
func (d *Disk) drop(off, n int64, rest func(at, n int64) error) error {
	for end := off + n; off < end; {
		next := min((off/d.clusterBytes+1)*d.clusterBytes, d.Size())
		stop := min(next, end)
		var err error
		if off%d.clusterBytes == 0 && stop == next {
			err = d.dropCluster(off / d.clusterBytes)
		} else {
			err = rest(off, stop-off)
		}
		if err != nil {
			return err
		}
		off = stop
	}
	return nil
}

func (d *Disk) dropCluster(cluster int64) error {
	entry, err := d.entry(cluster)
	if err != nil || entry == 0 || entry == readsZero {
		return err
	}
	if err := d.setEntry(cluster, readsZero); err != nil {
		return err
	}
	return d.refs.free(int64(entry&offsetMask), 1)
}

// readWords reads a table of count big-endian words; beyond the end of the file
// they are zero.
func readWords(r io.ReaderAt, off, count int64) ([]uint64, error) {
	raw := make([]byte, count*8)
	if _, err := r.ReadAt(raw, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	words := make([]uint64, count)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(raw[i*8:])
	}
	return words, nil
}
