package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// script is a server that a test makes up. Where the test says nothing it is an
// honest one.
type script struct {
	size      int64
	sizeOf    func(connection int) int64 // when they differ
	flags     uint16                     // of the export
	blocks    []uint32                   // minimum, preferred, maximum; nil: not told
	simple    bool                       // no structured replies
	contexts  []string                   // their ids are firstID, firstID+1, ...
	greeting  []byte
	wrap      func(net.Conn) net.Conn
	onConnect func(n int) // before the greeting of connection n
	// onOption answers an option itself when it returns true.
	onOption func(s *scriptSession, option uint32, data []byte) bool
	// onRequest answers a request itself when it returns true.
	onRequest func(s *scriptSession, q query) bool
}

const firstID = 700

// scriptSession is one connection of a script.
type scriptSession struct {
	*script
	net.Conn
	number  int // of the connection
	tb      testing.TB
	writing sync.Mutex
}

// query is a request as the server got it.
type query struct {
	flags, command uint16
	cookie         uint64
	off            int64
	n              int64
}

// hangUp is what a hook panics with to end a session.
type hangUp struct{}

// listen starts a script and returns its address. All of it has ended when the
// test has.
func (s *script) listen(t testing.TB) Address {
	t.Helper()
	at := Address{Network: "unix", Address: filepath.Join(folder(t), "s")}
	l, err := net.Listen(at.Network, at.Address)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	closed := false
	group.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if closed {
				c.Close()
			}
			open = append(open, c)
			mu.Unlock()
			group.Go(func() { s.session(t, c, n) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		closed = true
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return at
}

func (s *script) session(t testing.TB, c net.Conn, n int) {
	defer c.Close()
	if s.wrap != nil {
		c = s.wrap(c)
	}
	defer func() {
		if r := recover(); r != nil && r != (hangUp{}) {
			panic(r)
		}
	}()
	if s.onConnect != nil {
		s.onConnect(n)
	}
	session := &scriptSession{script: s, Conn: c, number: n, tb: t}
	if session.handshake() {
		session.transmission()
	}
}

// get reads n bytes; the session ends when they do not come.
func (s *scriptSession) get(n int) []byte {
	p := make([]byte, n)
	if _, err := io.ReadFull(s.Conn, p); err != nil {
		panic(hangUp{})
	}
	return p
}

// put sends bytes. Several goroutines may do so.
func (s *scriptSession) put(parts ...[]byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, p := range parts {
		if _, err := s.Conn.Write(p); err != nil {
			return // the client has gone
		}
	}
}

func (s *scriptSession) handshake() (transmission bool) {
	greeting := s.greeting
	if greeting == nil {
		greeting = be(uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes))
	}
	s.put(greeting)
	s.get(clientFlagsBytes)
	for {
		head := s.get(optionBytes)
		if binary.BigEndian.Uint64(head) != magicOption {
			s.tb.Error("an option without its magic")
			return false
		}
		option := binary.BigEndian.Uint32(head[8:])
		data := s.get(int(binary.BigEndian.Uint32(head[12:])))
		if s.onOption != nil && s.onOption(s, option, data) {
			continue
		}
		switch option {
		case optionAbort:
			return false
		case optionStructuredReply:
			if s.simple {
				s.put(optionReply(option, replyUnsupported, nil))
			} else {
				s.put(optionReply(option, replyAck, nil))
			}
		case optionSetMetaContext:
			for i, name := range s.contexts {
				s.put(optionReply(option, replyMetaContext, be(uint32(firstID+i), name)))
			}
			s.put(optionReply(option, replyAck, nil))
		case optionGo:
			shown := *s.script
			if s.sizeOf != nil {
				shown.size = s.sizeOf(s.number)
			}
			s.put(shown.infos(), optionReply(option, replyAck, nil))
			return true
		default:
			s.put(optionReply(option, replyUnsupported, nil))
		}
	}
}

// infos is what the script says of its export.
func (s *script) infos() []byte {
	p := optionReply(optionGo, replyInfo, be(uint16(infoExport), uint64(s.size), s.flags|exportHasFlags))
	if s.blocks != nil {
		p = append(p, optionReply(optionGo, replyInfo, be(uint16(infoBlockSize), s.blocks[0], s.blocks[1], s.blocks[2]))...)
	}
	return p
}

func (s *scriptSession) transmission() {
	for {
		p := s.get(requestBytes)
		if binary.BigEndian.Uint32(p) != magicRequest {
			s.tb.Error("a request without its magic")
			return
		}
		q := query{
			flags: binary.BigEndian.Uint16(p[4:]), command: binary.BigEndian.Uint16(p[6:]), cookie: binary.BigEndian.Uint64(p[8:]),
			off: int64(binary.BigEndian.Uint64(p[16:])), n: int64(binary.BigEndian.Uint32(p[24:])),
		}
		if s.onRequest != nil && s.onRequest(s, q) {
			continue
		}
		switch {
		case q.command == commandDisconnect:
			return
		case q.command == commandRead && s.simple:
			s.put(simpleReply(0, q.cookie), pattern(q.off, q.n))
		case q.command == commandRead:
			s.put(q.data(chunkDone, q.off, q.n))
		case q.command == commandBlockStatus:
			for i := range s.contexts {
				s.put(q.status(0, uint32(firstID+i), uint32(q.n), 0))
			}
			s.put(q.none())
		}
	}
}

// pattern is what an honest server has at off: every byte depends on its place.
func pattern(off, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at) ^ byte(at>>8) ^ byte(at>>16) ^ 0x5a
	}
	return p
}

// be is big-endian numbers and strings one after the other.
func be(values ...any) []byte {
	var p []byte
	for _, v := range values {
		switch v := v.(type) {
		case string:
			p = append(p, v...)
		case []byte:
			p = append(p, v...)
		default:
			var err error
			if p, err = binary.Append(p, binary.BigEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return p
}

func optionReply(option, kind uint32, data []byte) []byte {
	return be(uint64(magicReply), option, kind, uint32(len(data)), data)
}

func simpleReply(errno uint32, cookie uint64) []byte {
	return be(uint32(magicSimple), errno, cookie)
}

// chunk is one chunk of a structured reply.
func (q query) chunk(flags, kind uint16, payload []byte) []byte {
	return be(uint32(magicStructured), flags, kind, q.cookie, uint32(len(payload)), payload)
}

func (q query) none() []byte { return q.chunk(chunkDone, chunkNone, nil) }

func (q query) data(flags uint16, off, n int64) []byte {
	return q.chunk(flags, chunkData, be(uint64(off), pattern(off, n)))
}

func (q query) hole(flags uint16, off, n int64) []byte {
	return q.chunk(flags, chunkHole, be(uint64(off), uint32(n)))
}

func (q query) refuse(flags uint16, errno uint32, text string) []byte {
	return q.chunk(flags, chunkError, be(errno, uint16(len(text)), text))
}

// status is a chunk of one context: lengths and flags in turns.
func (q query) status(flags uint16, id uint32, descriptors ...uint32) []byte {
	return q.chunk(flags, chunkStatus, be(id, descriptors))
}

// dial connects to a script with one connection unless o says otherwise.
func (s *script) dial(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), s.listen(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantError wants err to match all of targets.
func wantError(t testing.TB, err error, targets ...error) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %v", targets)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error %q, want %q", err, target)
		}
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("error %q looks like the end of the disk", err)
	}
}
