package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// export is what the server says of the disk.
type export struct {
	size      int64
	multiConn bool
	canWhole  bool // it answers reads in one piece when asked to
	// minBlock divides every offset and length of a request, but for the end of the
	// disk; maxBlock is the longest read.
	minBlock, maxBlock int64
}

// enter asks for an export, and with it for the end of the handshake.
func (h *handshake) enter(name string) (export, error) {
	e := export{minBlock: 1, maxBlock: defaultMaxBlock}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	data = append(data, name...)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	if err := h.send(optionGo, data); err != nil {
		return e, err
	}
	known := false
	for range maxInfos {
		kind, data, err := h.answer(optionGo)
		if err != nil {
			return e, about(err, fmt.Sprintf("export %q", name))
		}
		switch kind {
		case replyInfo:
			sized, err := e.info(data)
			if err != nil {
				return e, err
			}
			if sized && known {
				return e, violation("it describes the export twice")
			}
			known = known || sized
		case replyAck:
			if !known || len(data) > 0 {
				return e, violation("it does not say how large the export is")
			}
			return e, e.check()
		default:
			return e, violation("reply %#x to GO", kind)
		}
	}
	return e, violation("more than %d informations about the export", maxInfos)
}

// info takes one piece of information; sized tells that it had the size.
func (e *export) info(data []byte) (sized bool, err error) {
	if len(data) < 2 {
		return false, violation("information of %d bytes", len(data))
	}
	switch kind := binary.BigEndian.Uint16(data); kind {
	case infoExport:
		if len(data) != infoExportBytes {
			return false, violation("%d bytes of information about the export", len(data))
		}
		size := binary.BigEndian.Uint64(data[2:])
		if size > math.MaxInt64 {
			return false, violation("an export of %d bytes", size)
		}
		flags := binary.BigEndian.Uint16(data[10:])
		if flags&exportHasFlags == 0 {
			return false, violation("transmission flags %#x", flags)
		}
		e.size, e.multiConn, e.canWhole = int64(size), flags&exportCanMultiConn != 0, flags&exportSendDF != 0
		return true, nil
	case infoBlockSize:
		if len(data) != infoBlockSizeBytes {
			return false, violation("%d bytes of information about block sizes", len(data))
		}
		e.minBlock = int64(binary.BigEndian.Uint32(data[2:]))
		e.maxBlock = int64(binary.BigEndian.Uint32(data[10:]))
	}
	return false, nil // others are for others
}

// check looks at the block sizes, and cuts the largest one to what we ask for at
// most.
func (e *export) check() error {
	if bits.OnesCount64(uint64(e.minBlock)) != 1 || e.minBlock > maxMinBlock || e.maxBlock < e.minBlock {
		return violation("blocks of %d to %d bytes", e.minBlock, e.maxBlock)
	}
	e.maxBlock = min(e.maxBlock, defaultMaxBlock)
	return nil
}

// about says what an option was about, when the server refused it.
func about(err error, what string) error {
	var no *refusal
	if errors.As(err, &no) {
		no.about = what
	}
	return err
}
