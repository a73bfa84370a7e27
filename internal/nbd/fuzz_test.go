package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
)

// answered is how a request ended, in the words of both decoders.
type answered struct {
	cookie uint64
	errno  uint32
	bytes  string // of a read that succeeded
	runs   string // of a status that succeeded
}

// fuzzPending are four requests in flight: reads that overlap, and a status.
type fuzzPending struct {
	requests map[uint64]*request
	buffers  map[uint64][]byte // with guards around what is read
	ended    []answered
}

const guardBytes = 16

var fuzzContexts = map[uint32]int{firstID: 0, firstID + 1: 1}

func newFuzzPending() *fuzzPending {
	f := &fuzzPending{requests: map[uint64]*request{}, buffers: map[uint64][]byte{}}
	for cookie, r := range map[uint64]*request{
		1: {command: commandRead, off: 1000, n: 1000},
		2: {command: commandRead, off: 0, n: 16},
		3: {command: commandBlockStatus, off: 1000, n: 1000, status: &statusReply{want: 1, expected: 3}},
		4: {command: commandRead, off: 1500, n: 64},
	} {
		if r.command == commandRead {
			b := bytes.Repeat([]byte{0xcc}, int(r.n)+2*guardBytes)
			f.buffers[cookie] = b
			r.p = b[guardBytes:][:r.n]
		}
		f.requests[cookie] = r
	}
	return f
}

func (f *fuzzPending) find(cookie uint64) *request { return f.requests[cookie] }

func (f *fuzzPending) finish(cookie uint64, err error) {
	r := f.requests[cookie]
	delete(f.requests, cookie)
	a := answered{cookie: cookie}
	var refused *Error
	switch {
	case errors.As(err, &refused):
		a.errno = refused.Errno
	case r.command == commandRead:
		a.bytes = string(r.p)
	default:
		a.runs = fmt.Sprint(r.status.runs.runs, r.status.runs.room)
	}
	f.ended = append(f.ended, a)
}

// reference decodes in the plainest way: everything in memory, a flag for every
// byte. It panics with what ends the stream.
type reference struct {
	p          []byte
	structured bool
	requests   map[uint64]*referenceRequest
	ended      []answered
}

type referenceRequest struct {
	request
	byte    map[int64]byte
	errno   uint32
	errors  int
	context map[uint32][]uint32
}

func decodePlainly(p []byte, structured bool) (ended []answered, end error) {
	d := &reference{p: p, structured: structured, requests: map[uint64]*referenceRequest{}}
	for cookie, r := range newFuzzPending().requests {
		d.requests[cookie] = &referenceRequest{request: *r, byte: map[int64]byte{}, context: map[uint32][]uint32{}}
	}
	defer func() {
		end = recover().(error)
		ended = d.ended
	}()
	for {
		d.next()
	}
}

func (d *reference) take(n int64) []byte {
	if int64(len(d.p)) < n {
		panic(ErrLost)
	}
	p := d.p[:n]
	d.p = d.p[n:]
	return p
}

func (d *reference) must(ok bool) {
	if !ok {
		panic(ErrProtocol)
	}
}

func (d *reference) request(cookie uint64) *referenceRequest {
	r := d.requests[cookie]
	d.must(r != nil)
	return r
}

func (d *reference) next() {
	magic := binary.BigEndian.Uint32(d.take(4))
	switch magic {
	case magicSimple:
		head := d.take(12)
		errno, cookie := binary.BigEndian.Uint32(head), binary.BigEndian.Uint64(head[4:])
		r := d.request(cookie)
		if errno != 0 {
			r.fail(d, errno)
		} else {
			d.must(!d.structured && r.command == commandRead)
			for i, b := range d.take(r.n) {
				r.byte[r.off+int64(i)] = b
			}
		}
		d.finish(cookie, r)
	case magicStructured:
		head := d.take(16)
		d.must(d.structured)
		cookie := binary.BigEndian.Uint64(head[4:])
		r := d.request(cookie)
		done := binary.BigEndian.Uint16(head)&1 != 0
		d.chunk(binary.BigEndian.Uint16(head[2:]), int64(binary.BigEndian.Uint32(head[12:])), done, r)
		if done {
			d.finish(cookie, r)
		}
	default:
		d.must(false)
	}
}

func (r *referenceRequest) fail(d *reference, errno uint32) {
	d.must(errno != 0)
	r.errors++
	d.must(r.errors <= maxErrorChunks)
	if r.errno == 0 {
		r.errno = errno
	}
}

func (d *reference) chunk(kind uint16, n int64, done bool, r *referenceRequest) {
	read := r.command == commandRead
	switch {
	case kind == 0:
		d.must(n == 0 && done)
	case kind == 1 && read:
		d.must(n > 8)
		off := binary.BigEndian.Uint64(d.take(8))
		d.fresh(r, off, uint64(n-8))
		for i, b := range d.take(n - 8) {
			r.byte[int64(off)+int64(i)] = b
		}
	case kind == 2 && read:
		d.must(n == 12)
		p := d.take(12)
		off, n := binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:]))
		d.fresh(r, off, n)
		for i := range n {
			r.byte[int64(off+i)] = 0
		}
	case kind == 5 && !read:
		d.must(n >= 12 && n%8 == 4 && n <= 4+8<<20)
		d.status(r, n)
	case kind >= 1<<15:
		d.must(n >= 6 && n <= maxErrorPayload)
		p := d.take(n)
		text := int64(binary.BigEndian.Uint16(p[4:]))
		d.must(6+text <= n)
		if kind == 1<<15+2 {
			d.must(14+text == n)
			at := binary.BigEndian.Uint64(p[6+text:])
			d.must(at >= uint64(r.off) && at < uint64(r.off+r.n))
		}
		r.fail(d, binary.BigEndian.Uint32(p))
	default:
		d.must(false)
	}
}

// fresh wants a range of the request of which no byte has come.
func (d *reference) fresh(r *referenceRequest, off, n uint64) {
	d.must(n > 0 && n <= uint64(r.n) && off >= uint64(r.off) && off-uint64(r.off) <= uint64(r.n)-n)
	for i := range n {
		_, came := r.byte[int64(off+i)]
		d.must(!came)
	}
}

func (d *reference) status(r *referenceRequest, n int64) {
	id := binary.BigEndian.Uint32(d.take(4))
	_, came := r.context[id]
	d.must((id == firstID || id == firstID+1) && !came)
	total := int64(0)
	runs := []uint32{}
	for rest := n - 4; rest > 0; rest -= min(rest, statusScratch) { // what is found first depends on it
		for p := d.take(min(rest, statusScratch)); len(p) > 0; p = p[8:] {
			length := int64(binary.BigEndian.Uint32(p))
			d.must(length > 0 && total < r.n)
			total += length
			runs = append(runs, uint32(length), binary.BigEndian.Uint32(p[4:]))
		}
	}
	r.context[id] = runs
}

func (d *reference) finish(cookie uint64, r *referenceRequest) {
	a := answered{cookie: cookie, errno: r.errno}
	if r.errno == 0 && r.command == commandRead {
		d.must(int64(len(r.byte)) == r.n)
		for _, at := range slices.Sorted(maps.Keys(r.byte)) {
			a.bytes += string([]byte{r.byte[at]})
		}
	} else if r.errno == 0 {
		d.must(len(r.context) == 2)
		a.runs = referenceRuns(r.context[firstID+1], r.n)
	}
	delete(d.requests, cookie)
	d.ended = append(d.ended, a)
}

// referenceRuns merges and cuts descriptors flag by flag of every byte.
func referenceRuns(descriptors []uint32, n int64) string {
	var runs []statusRun
	room := n
	for i := 0; i < len(descriptors); i += 2 {
		for range min(int64(descriptors[i]), room) {
			room--
			if last := len(runs) - 1; last >= 0 && runs[last].flags == descriptors[i+1] {
				runs[last].n++
			} else {
				runs = append(runs, statusRun{1, descriptors[i+1]})
			}
		}
	}
	return fmt.Sprint(runs, room)
}

// FuzzReplies compares the decoder with the plain one: which requests have ended,
// how, and what ended the stream. Nothing beside the buffers is touched.
func FuzzReplies(f *testing.F) {
	read, second := query{cookie: 1, off: 1000, n: 1000}, query{cookie: 2, n: 16}
	status, third := query{cookie: 3, off: 1000, n: 1000}, query{cookie: 4, off: 1500, n: 64}
	for _, lie := range readLies {
		f.Add(lie(read), true)
		f.Add(lie(read), false)
	}
	for _, lie := range statusLies {
		f.Add(lie(status), true)
	}
	f.Add(be(read.data(0, 1500, 500), second.hole(0, 0, 8), read.hole(0, 1000, 500), second.data(chunkDone, 8, 8), read.none(),
		status.status(0, firstID+1, 500, 1, 400, 0, 200, 1), status.status(chunkDone, firstID, 10, 3), third.refuse(chunkDone, 5, "text")), true)
	f.Add(be(simpleReply(0, 1), pattern(1000, 1000), simpleReply(5, 4), simpleReply(0, 2), pattern(0, 16)), false)
	f.Fuzz(func(t *testing.T, stream []byte, structured bool) {
		pending := newFuzzPending()
		buffers := maps.Clone(pending.buffers)
		d := newReplies(bytes.NewReader(stream), session{structured: structured, contexts: fuzzContexts}, pending)
		var end error
		for end == nil {
			end = d.next()
		}
		want, wantEnd := decodePlainly(stream, structured)
		if !slices.Equal(pending.ended, want) {
			t.Fatalf("got  %+v\nwant %+v", pending.ended, want)
		}
		if errors.Is(end, ErrProtocol) != errors.Is(wantEnd, ErrProtocol) || errors.Is(end, ErrLost) != errors.Is(wantEnd, ErrLost) {
			t.Fatalf("ended by %v, want %v", end, wantEnd)
		}
		for cookie, b := range buffers {
			guard := bytes.Repeat([]byte{0xcc}, guardBytes)
			if !bytes.Equal(b[:guardBytes], guard) || !bytes.Equal(b[len(b)-guardBytes:], guard) {
				t.Fatalf("request %d: bytes beside the buffer were written", cookie)
			}
		}
	})
}

// FuzzStatus takes descriptors in two parts, and compares with flags for every
// byte.
func FuzzStatus(f *testing.F) {
	f.Add(be([]uint32{500, 1, 400, 1, 200, 0}), uint16(1000), uint16(8))
	f.Add(be([]uint32{1<<32 - 1, 3}), uint16(1000), uint16(0))
	f.Add(be([]uint32{0, 3}), uint16(1000), uint16(0))
	f.Add(be([]uint32{10, 3, 1, 0}), uint16(10), uint16(8))
	f.Fuzz(func(t *testing.T, p []byte, asked, cut uint16) {
		n := int64(asked) + 1
		p = p[:len(p)-len(p)%descriptorBytes]
		first := min(int(cut)*descriptorBytes, len(p))
		runs := statusRuns{room: n}
		err := runs.take(p[:first])
		if err == nil {
			err = runs.take(p[first:])
		}
		var descriptors []uint32
		bad, total := false, int64(0)
		for ; len(p) > 0; p = p[descriptorBytes:] {
			length := int64(binary.BigEndian.Uint32(p))
			bad = bad || length == 0 || total >= n
			total += length
			descriptors = append(descriptors, uint32(length), binary.BigEndian.Uint32(p[4:]))
		}
		if bad != errors.Is(err, ErrProtocol) || bad == (err == nil) {
			t.Fatalf("error %v for %v of %d", err, descriptors, n)
		}
		if err == nil && fmt.Sprint(runs.runs, runs.room) != referenceRuns(descriptors, n) {
			t.Fatalf("got %v, %d, want %s", runs.runs, runs.room, referenceRuns(descriptors, n))
		}
	})
}

// wire is a server that has said everything already, and hears nothing.
type wire struct{ io.Reader }

func (wire) Write(p []byte) (int, error) { return len(p), nil }

// FuzzHandshake reads a handshake. What comes out of one that succeeds is whole.
func FuzzHandshake(f *testing.F) {
	o := Options{Export: "vda", Contexts: []string{Allocation, testContext}}
	greeting := be(uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes))
	structured := optionReply(optionStructuredReply, replyAck, nil)
	contexts := be(optionReply(optionSetMetaContext, replyMetaContext, be(uint32(9), testContext)),
		optionReply(optionSetMetaContext, replyMetaContext, be(uint32(4), Allocation)), optionReply(optionSetMetaContext, replyAck, nil))
	enter := be((&script{size: 1 << 20, blocks: []uint32{512, 4096, 1 << 20}}).infos(), optionReply(optionGo, replyAck, nil))
	f.Add(be(greeting, structured, contexts, enter))
	f.Add(be(greeting, optionReply(optionStructuredReply, replyUnsupported, []byte("no"))))
	for _, lie := range optionLies {
		before := map[uint32][]byte{optionStructuredReply: greeting, optionSetMetaContext: be(greeting, structured), optionGo: be(greeting, structured, contexts)}
		f.Add(be(before[lie.option], lie.answer))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, o := range []Options{o, {}} {
			h := &handshake{rw: wire{bytes.NewReader(stream)}}
			err := h.greet()
			var s session
			if err == nil {
				s, err = h.agree(o)
			}
			if err != nil {
				known := false
				for _, class := range []error{ErrProtocol, ErrLost, ErrNoExport, ErrNoContext, ErrTLSRequired, ErrRefused} {
					known = known || errors.Is(err, class)
				}
				if !known || errors.Is(err, io.EOF) {
					t.Fatalf("error %v", err)
				}
				continue
			}
			e := s.export
			if e.size < 0 || e.minBlock < 1 || e.minBlock > maxMinBlock || e.minBlock&(e.minBlock-1) != 0 || e.maxBlock < e.minBlock || e.maxBlock > defaultMaxBlock {
				t.Fatalf("export %+v", e)
			}
			if len(o.Contexts) > 0 && !s.structured || len(s.contexts) != len(o.Contexts) {
				t.Fatalf("session %+v", s)
			}
			places := slices.Sorted(maps.Values(s.contexts))
			for i, place := range places {
				if place != i {
					t.Fatalf("places %v", places)
				}
			}
		}
	})
}
