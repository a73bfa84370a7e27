package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// handshake is the part of a session before the first request: the server
// answers one option after the other.
//
// It reads exactly what belongs to it and nothing ahead, because what follows
// STARTTLS and GO is read by others. Bytes that somebody slipped in behind the
// answer to STARTTLS so end as a failed TLS handshake.
type handshake struct {
	rw io.ReadWriter
}

// session is what the handshake has agreed on.
type session struct {
	export     export
	structured bool
	contexts   map[uint32]int // place in Options.Contexts by the server's id
}

// greet reads what the server says first, and answers with the flags that it
// knows.
func (h *handshake) greet() error {
	var p [greetingBytes]byte
	if err := h.read(p[:8]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(p[:]); got != magicServer {
		return violation("it is no NBD server: it begins with %q", p[:8])
	}
	if err := h.read(p[8:]); err != nil {
		return err
	}
	switch got := binary.BigEndian.Uint64(p[8:]); got {
	case magicOption:
	case magicOld:
		return violation("it speaks the oldstyle handshake; start it without the option that asks for it")
	default:
		return violation("second magic %#x", got)
	}
	flags := binary.BigEndian.Uint16(p[16:])
	if flags&flagFixedNewstyle == 0 {
		return violation("it does not speak the fixed newstyle handshake (flags %#x)", flags)
	}
	answer := uint32(flagFixedNewstyle | flags&flagNoZeroes)
	return h.write(binary.BigEndian.AppendUint32(make([]byte, 0, clientFlagsBytes), answer))
}

// agree goes from the greeting to the first request.
func (h *handshake) agree(o Options) (session, error) {
	var s session
	var err error
	if s.structured, err = h.structuredReplies(); err != nil {
		return s, err
	}
	if len(o.Contexts) > 0 {
		if !s.structured {
			return s, fmt.Errorf("%w: the server has none at all, because it has no structured replies", ErrNoContext)
		}
		if s.contexts, err = h.selectContexts(o); err != nil {
			return s, err
		}
	}
	s.export, err = h.enter(o.Export)
	return s, err
}

// structuredReplies asks for them. A server that is too old for the option has
// simple ones.
func (h *handshake) structuredReplies() (bool, error) {
	err := h.ask(optionStructuredReply, nil)
	var no *refusal
	if errors.As(err, &no) && no.kind != replyTLSRequired && no.kind != replyShutdown {
		return false, nil
	}
	return err == nil, err
}

// ask sends an option that is answered by yes or no.
func (h *handshake) ask(option uint32, data []byte) error {
	if err := h.send(option, data); err != nil {
		return err
	}
	kind, data, err := h.answer(option)
	if err != nil {
		return err
	}
	if kind != replyAck || len(data) > 0 {
		return violation("reply %#x of %d bytes to option %d", kind, len(data), option)
	}
	return nil
}

// abort tells the server that there will be no session. Nobody waits for it, and
// nobody minds when it does not arrive.
func (h *handshake) abort() { _ = h.send(optionAbort, nil) }

// send sends an option.
func (h *handshake) send(option uint32, data []byte) error {
	p := make([]byte, 0, optionBytes+len(data))
	p = binary.BigEndian.AppendUint64(p, magicOption)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return h.write(append(p, data...))
}

// answer reads one reply to an option. A refusal is an error.
func (h *handshake) answer(option uint32) (kind uint32, data []byte, err error) {
	var p [optionReplyBytes]byte
	if err := h.read(p[:]); err != nil {
		return 0, nil, err
	}
	if got := binary.BigEndian.Uint64(p[:]); got != magicReply {
		return 0, nil, violation("magic %#x of a reply to option %d", got, option)
	}
	if got := binary.BigEndian.Uint32(p[8:]); got != option {
		return 0, nil, violation("reply to option %d when %d was sent", got, option)
	}
	kind = binary.BigEndian.Uint32(p[12:])
	n := binary.BigEndian.Uint32(p[16:])
	if n > maxOptionReply {
		return 0, nil, violation("%d bytes of reply %#x to option %d", n, kind, option)
	}
	data = make([]byte, n)
	if err := h.read(data); err != nil {
		return 0, nil, err
	}
	if kind&replyError != 0 {
		return 0, nil, &refusal{option: option, kind: kind, text: printable(data)}
	}
	return kind, data, nil
}

func (h *handshake) read(p []byte) error {
	if _, err := io.ReadFull(h.rw, p); err != nil {
		return broken("read from", err)
	}
	return nil
}

func (h *handshake) write(p []byte) error {
	if _, err := h.rw.Write(p); err != nil {
		return broken("write to", err)
	}
	return nil
}

// broken makes the error for a connection that does not carry any more.
func broken(verb string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errHungUp
	}
	return fmt.Errorf("%w: %s it: %w", ErrLost, verb, err)
}
