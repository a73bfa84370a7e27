package nbd

// request is one command at the server. Whoever made it hands it over with
// conn.send; from then on the goroutine that reads replies owns it, until it
// calls done.
type request struct {
	command uint16
	off, n  int64
	caller  caller

	// Of a read.
	p       []byte // where the bytes go; n long
	arrived coverage

	// Of a block status.
	status *statusReply

	refused     *Error // the first error chunk
	errorChunks int
}

// caller is who waits for a request.
type caller interface {
	// done is called once, when the request at off has its answer and its memory
	// is left alone from here on.
	done(off int64, err error)
}

// outcome tells how a request ended whose last chunk is there. An answer that
// lacks something breaks the protocol.
func (r *request) outcome() (err error, broken error) {
	switch {
	case r.refused != nil:
		return r.refused, nil
	case r.command == commandRead && !r.arrived.whole(r.off, r.n):
		return nil, violation("the reply to a read of %d bytes at %d lacks bytes", r.n, r.off)
	case r.command == commandBlockStatus && !r.status.whole():
		return nil, violation("the reply to a block status at %d lacks a meta context", r.off)
	}
	return nil, nil
}

// refuse notes an error chunk.
func (r *request) refuse(errno uint32, text []byte) error {
	if errno == 0 {
		return violation("an error with number 0")
	}
	if r.errorChunks++; r.errorChunks > maxErrorChunks {
		return violation("more than %d errors about one request", maxErrorChunks)
	}
	if r.refused == nil {
		r.refused = &Error{Errno: errno, Text: printable(text)}
	}
	return nil
}
