package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/qbackup/qbackup/internal/qcow2"
)

const (
	inUse = 1 << 0

	autoclearByte = 95 // the last byte of the field; bit 0 of it says that bitmaps are valid
	autoclearBit  = 1
)

// bitmap is one bitmap of the image.
type bitmap struct {
	entry qcow2.Bitmap
	table []uint64
	// bits are those in memory, as stored: bit n is bit n%8 of byte n/8. They
	// are nil for a bitmap that was in use when the machine started, which
	// nobody can make good.
	bits []byte
}

// loadBitmaps reads the bitmaps and marks them as in use: bit off, directory in
// place, bit on, each made durable.
func (d *Disk) loadBitmaps(image *qcow2.Image) error {
	if !d.header.BitmapsValid() {
		return nil
	}
	list, err := image.Bitmaps()
	if err != nil {
		return err
	}
	for _, entry := range list {
		b := &bitmap{entry: entry}
		if !entry.InUse {
			if b.table, err = image.BitmapTable(entry); err != nil {
				return err
			}
			if err := d.loadBits(b); err != nil {
				return err
			}
		}
		d.bitmaps = append(d.bitmaps, b)
	}
	if !slices.ContainsFunc(d.bitmaps, func(b *bitmap) bool { return b.bits != nil }) {
		return nil
	}
	var directory []byte
	for _, b := range d.bitmaps {
		b.entry.Flags |= inUse
		directory = appendEntry(directory, b.entry)
	}
	if int64(len(directory)) != d.header.Bitmaps.DirectoryBytes {
		return errors.New("the directory has names with zero bytes")
	}
	if err := d.setValid(false); err != nil {
		return err
	}
	if _, err := d.file.WriteAt(directory, d.header.Bitmaps.DirectoryOffset); err != nil {
		return err
	}
	if err := d.file.Sync(); err != nil {
		return err
	}
	return d.setValid(true)
}

// loadBits reads the bits of a bitmap into memory.
func (d *Disk) loadBits(b *bitmap) error {
	granules := (d.Size() + b.entry.GranularityBytes - 1) / b.entry.GranularityBytes
	b.bits = make([]byte, (granules+63)/64*8)
	for i, entry := range b.table {
		at := int64(i) * d.clusterBytes
		chunk := b.bits[at:min(at+d.clusterBytes, int64(len(b.bits)))]
		switch entry {
		case qcow2.BitmapAllClean:
		case qcow2.BitmapAllDirty:
			for k := range chunk {
				chunk[k] = 0xff
			}
		default:
			if _, err := d.file.ReadAt(chunk, int64(entry)); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read bitmap %q: %w", b.entry.Name, err)
			}
		}
	}
	// Bits behind the last granule mean nothing.
	for n := granules; n < int64(len(b.bits))*8; n++ {
		b.bits[n/8] &^= 1 << (n % 8)
	}
	return nil
}

// setValid turns the autoclear bit on or off.
func (d *Disk) setValid(on bool) error {
	b := make([]byte, 1)
	if _, err := d.file.ReadAt(b, autoclearByte); err != nil {
		return err
	}
	b[0] &^= autoclearBit
	if on {
		b[0] |= autoclearBit
	}
	if _, err := d.file.WriteAt(b, autoclearByte); err != nil {
		return err
	}
	return d.file.Sync()
}

// record marks a range as dirty in every bitmap that records.
func (d *Disk) record(off, n int64) {
	if n == 0 {
		return
	}
	for _, b := range d.bitmaps {
		if b.bits == nil || !b.entry.Enabled {
			continue
		}
		shift := bits.TrailingZeros64(uint64(b.entry.GranularityBytes))
		for g := off >> shift; g <= (off+n-1)>>shift; g++ {
			b.bits[g/8] |= 1 << (g % 8)
		}
	}
}

// Close shuts the machine down: the bitmaps are saved into new clusters, the
// header is switched to a new directory, then what they lay in is freed. Bitmaps
// that were in use before the machine started stay so.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("stop guest: the machine is off")
	}
	d.closed = true
	if err := d.save(); err != nil {
		return fmt.Errorf("stop guest: %w", err)
	}
	return nil
}

func (d *Disk) save() error {
	if !slices.ContainsFunc(d.bitmaps, func(b *bitmap) bool { return b.bits != nil }) {
		return d.file.Sync()
	}
	var directory []byte
	var saved []*bitmap
	for _, b := range d.bitmaps {
		entry := b.entry
		if b.bits != nil {
			entry.Flags &^= inUse
			var err error
			if entry.TableOffset, err = d.saveBits(b); err != nil {
				return err
			}
			saved = append(saved, b)
		}
		directory = appendEntry(directory, entry)
	}
	place, err := d.put(directory)
	if err != nil {
		return err
	}
	if err := d.file.Sync(); err != nil {
		return err
	}
	x := d.header.Bitmaps
	if err := d.switchDirectory(int64(len(directory)), place); err != nil {
		return err
	}
	if err := d.refs.free(x.DirectoryOffset, d.clusters(x.DirectoryBytes)); err != nil {
		return err
	}
	for _, b := range saved {
		if err := d.freeBits(b); err != nil {
			return err
		}
	}
	return d.file.Sync()
}

func (d *Disk) clusters(n int64) int64 { return (n + d.clusterBytes - 1) / d.clusterBytes }

// put writes p into new clusters.
func (d *Disk) put(p []byte) (int64, error) {
	place, err := d.refs.allocateAll(d.clusters(int64(len(p))))
	if err != nil {
		return 0, err
	}
	padded := make([]byte, d.clusters(int64(len(p)))*d.clusterBytes)
	copy(padded, p)
	_, err = d.file.WriteAt(padded, place)
	return place, err
}

// saveBits writes the chunks with set bits and a table, and returns its offset.
func (d *Disk) saveBits(b *bitmap) (int64, error) {
	var table []byte
	for at := 0; at < len(b.bits); at += int(d.clusterBytes) {
		chunk := b.bits[at:min(at+int(d.clusterBytes), len(b.bits))]
		place := int64(0)
		if slices.ContainsFunc(chunk, func(v byte) bool { return v != 0 }) {
			var err error
			if place, err = d.put(chunk); err != nil {
				return 0, err
			}
		}
		table = binary.BigEndian.AppendUint64(table, uint64(place))
	}
	return d.put(table)
}

// freeBits frees the clusters that a bitmap was loaded from.
func (d *Disk) freeBits(b *bitmap) error {
	for _, entry := range b.table {
		if entry > qcow2.BitmapAllDirty {
			if err := d.refs.free(int64(entry), 1); err != nil {
				return err
			}
		}
	}
	return d.refs.free(b.entry.TableOffset, d.clusters(int64(len(b.table))*8))
}

// switchDirectory writes the first cluster with the new place of the directory,
// as one write, as QEMU does.
func (d *Disk) switchDirectory(n, place int64) error {
	first := make([]byte, d.clusterBytes)
	if _, err := d.file.ReadAt(first, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	payload := first[d.header.Bitmaps.PayloadOffset:]
	binary.BigEndian.PutUint64(payload[8:], uint64(n))
	binary.BigEndian.PutUint64(payload[16:], uint64(place))
	first[autoclearByte] |= autoclearBit
	if _, err := d.file.WriteAt(first, 0); err != nil {
		return err
	}
	return d.file.Sync()
}

// appendEntry appends a directory entry.
func appendEntry(p []byte, b qcow2.Bitmap) []byte {
	be := binary.BigEndian
	p = be.AppendUint64(p, uint64(b.TableOffset))
	p = be.AppendUint32(p, b.TableEntries)
	p = be.AppendUint32(p, b.Flags)
	p = append(p, b.Type, byte(bits.TrailingZeros64(uint64(b.GranularityBytes))))
	p = be.AppendUint16(p, uint16(len(b.Name)))
	p = be.AppendUint32(p, 0)
	p = append(p, b.Name...)
	return append(p, make([]byte, -len(p)&7)...)
}
