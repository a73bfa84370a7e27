package qcow2

import (
	"encoding/binary"
	"fmt"
)

// extensionPlace says where in the first cluster the bitmaps extension is, or
// where it can be put.
//
// A present one, valid or stale, is overwritten while the autoclear bit is off.
// A new one replaces the end marker, 8 zero bytes that are followed by a new end
// marker: its length and its data are written behind the marker's type, where no
// reader looks, and made durable; then its type is written. All mixes of the old
// and the new type are extensions that nobody knows, with a valid length.
//
// A backing file's name directly behind the end marker is moved first. Its copy
// is put to an offset that differs from the old one in a single byte of the
// header's field, so that the move is the write of one byte.
type extensionPlace struct {
	payload int64 // where the data of 24 bytes is, or will be
	present bool
	last    bool  // present, and nothing but the end marker follows
	nameTo  int64 // new offset of the backing file's name; 0: it stays
}

// bitmapsExtensionRoom is an extension with its data and the next end marker.
const bitmapsExtensionRoom = extensionHeaderBytes + bitmapsExtensionBytes + extensionHeaderBytes

// placeExtension finds the place, or refuses. It is not needed when no bitmap
// is to be left and there is no extension.
func (s *state) placeExtension(needed bool) (extensionPlace, error) {
	h := s.header
	for _, x := range h.Extensions {
		if x.Type == extensionBitmaps {
			payload := x.Offset + extensionHeaderBytes
			return extensionPlace{payload: payload, present: true, last: h.ExtensionsEnd == payload+bitmapsExtensionBytes}, nil
		}
	}
	if !needed {
		return extensionPlace{}, nil
	}
	end := h.ExtensionsEnd
	place := extensionPlace{payload: end + extensionHeaderBytes}
	if end+extensionHeaderBytes > h.ExtensionsLimit {
		return place, s.noRoom()
	}
	if n := binary.BigEndian.Uint32(s.first[end+4:]); n != 0 && n != bitmapsExtensionBytes {
		return place, unsupported("header", end+4, "let QEMU rewrite the header: start and stop the machine once", "end marker of length %d", n)
	}
	if end+bitmapsExtensionRoom <= h.ExtensionsLimit {
		return place, nil
	}
	if h.BackingFileOffset == 0 {
		return place, s.noRoom()
	}
	nameBytes := int64(binary.BigEndian.Uint32(s.first[headerBackingBytes:]))
	for to := max(end+bitmapsExtensionRoom, h.BackingFileOffset+nameBytes); to+nameBytes <= h.ClusterBytes(); to++ {
		if nonZeroBytes(uint64(to)^uint64(h.BackingFileOffset)) == 1 {
			place.nameTo = to
			return place, nil
		}
	}
	return place, s.noRoom()
}

func (s *state) noRoom() error {
	return &Error{Structure: "header", Offset: s.header.ExtensionsEnd, Err: fmt.Errorf("no room for the bitmaps extension: %w", ErrNoSpace),
		Hint: "a shorter name of the backing file, or larger clusters, make room"}
}

// write puts bytes into the first cluster, of which only those that differ are
// written, and makes them durable.
func (s *state) write(b []byte, at int64) error {
	before := s.first[at : at+int64(len(b))]
	if err := writeChanged(s.file, before, b, at, "header"); err != nil {
		return err
	}
	copy(before, b)
	return syncFile(s.file)
}

// setAutoclear turns the bit that says that bitmaps are valid on or off.
func (s *state) setAutoclear(on bool) error {
	at := int64(headerAutoclear + 7)
	b := s.first[at] &^ autoclearBitmaps
	if on {
		b |= autoclearBitmaps
	}
	if b == s.first[at] {
		return nil
	}
	return s.write([]byte{b}, at)
}

// linkDirectory makes the header refer to a directory.
func (s *state) linkDirectory(place extensionPlace, d directory) error {
	if err := s.setAutoclear(false); err != nil {
		return err
	}
	extension := appendBitmapsExtension(nil, d)
	if place.present {
		if err := s.write(extension[extensionHeaderBytes:], place.payload); err != nil {
			return err
		}
		return s.setAutoclear(true)
	}
	if place.nameTo != 0 {
		if err := s.moveBackingName(place.nameTo); err != nil {
			return err
		}
	}
	withEnd := append(extension, make([]byte, extensionHeaderBytes)...)
	if err := s.write(withEnd[4:], place.payload-4); err != nil {
		return err
	}
	if err := s.write(withEnd[:4], place.payload-extensionHeaderBytes); err != nil {
		return err
	}
	return s.setAutoclear(true)
}

// appendBitmapsExtension appends the header extension that refers to a
// directory.
func appendBitmapsExtension(b []byte, d directory) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, extensionBitmaps)
	b = be.AppendUint32(b, bitmapsExtensionBytes)
	b = be.AppendUint32(b, uint32(d.count))
	b = be.AppendUint32(b, 0)
	b = be.AppendUint64(b, uint64(d.bytes))
	return be.AppendUint64(b, uint64(d.offset))
}

// moveBackingName copies the name of the backing file, then changes the byte of
// its offset that differs.
func (s *state) moveBackingName(to int64) error {
	from := s.header.BackingFileOffset
	n := int64(binary.BigEndian.Uint32(s.first[headerBackingBytes:]))
	name := append([]byte(nil), s.first[from:from+n]...)
	if err := s.write(name, to); err != nil {
		return err
	}
	return s.write(binary.BigEndian.AppendUint64(nil, uint64(to)), headerBackingOffset)
}

// unlinkDirectory takes the bitmaps extension away, when it is the last one: its
// type becomes an end marker. One that others follow stays behind with the
// autoclear bit off, and QEMU drops it when it next writes to the image.
func (s *state) unlinkDirectory(place extensionPlace) error {
	if err := s.setAutoclear(false); err != nil || !place.last {
		return err
	}
	if err := s.write(make([]byte, 4), place.payload-extensionHeaderBytes); err != nil {
		return err
	}
	return s.write(make([]byte, 4+bitmapsExtensionBytes), place.payload-4)
}
