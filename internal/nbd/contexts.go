package nbd

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// selectContexts asks for all contexts at once, and wants them all. It gives
// their places in o.Contexts by the ids that the server calls them.
func (h *handshake) selectContexts(o Options) (map[uint32]int, error) {
	data := appendString(nil, o.Export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(o.Contexts)))
	for _, name := range o.Contexts {
		data = appendString(data, name)
	}
	if err := h.send(optionSetMetaContext, data); err != nil {
		return nil, err
	}
	found := make(map[uint32]int, len(o.Contexts))
	missing := slices.Clone(o.Contexts)
	for {
		kind, data, err := h.answer(optionSetMetaContext)
		if err != nil {
			return nil, about(err, fmt.Sprintf("export %q", o.Export))
		}
		switch kind {
		case replyMetaContext:
			if len(data) < contextIDBytes {
				return nil, violation("a meta context of %d bytes", len(data))
			}
			id, name := binary.BigEndian.Uint32(data), string(data[contextIDBytes:])
			place := slices.Index(missing, name)
			if place < 0 {
				return nil, violation("meta context %q was not asked for, or comes twice", name)
			}
			if _, taken := found[id]; taken {
				return nil, violation("two meta contexts with id %d", id)
			}
			found[id] = place
			missing[place] = ""
		case replyAck:
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == "" })
			if len(data) > 0 {
				return nil, violation("%d bytes where the list of meta contexts ends", len(data))
			}
			if len(missing) > 0 {
				return nil, fmt.Errorf("%w: export %q lacks %s; `nbdinfo` shows what it has", ErrNoContext, o.Export, strings.Join(missing, ", "))
			}
			return found, nil
		default:
			return nil, violation("reply %#x to SET_META_CONTEXT", kind)
		}
	}
}

// appendString appends a string behind its length.
func appendString(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}
