package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testContext = "qemu:dirty-bitmap:b"

// optionLies are answers to one option that no server may give.
var optionLies = []struct {
	name   string
	option uint32
	answer []byte
}{
	{"magic of a reply", optionStructuredReply, be(uint64(magicReply+1), uint32(optionStructuredReply), uint32(replyAck), uint32(0))},
	{"reply to another option", optionStructuredReply, optionReply(optionGo, replyAck, nil)},
	{"huge reply", optionStructuredReply, be(uint64(magicReply), uint32(optionStructuredReply), uint32(replyAck), uint32(1<<31))},
	{"huge refusal", optionStructuredReply, be(uint64(magicReply), uint32(optionStructuredReply), uint32(replyUnsupported), uint32(maxOptionReply+1))},
	{"ACK with data", optionStructuredReply, optionReply(optionStructuredReply, replyAck, []byte{1})},
	{"information where ACK belongs", optionStructuredReply, optionReply(optionStructuredReply, replyInfo, nil)},

	{"context that nobody asked for", optionSetMetaContext, optionReply(optionSetMetaContext, replyMetaContext, be(uint32(1), "qemu:dirty-bitmap:c"))},
	{"context twice", optionSetMetaContext, be(
		optionReply(optionSetMetaContext, replyMetaContext, be(uint32(1), testContext)),
		optionReply(optionSetMetaContext, replyMetaContext, be(uint32(2), testContext)))},
	{"one id for two contexts", optionSetMetaContext, be(
		optionReply(optionSetMetaContext, replyMetaContext, be(uint32(1), testContext)),
		optionReply(optionSetMetaContext, replyMetaContext, be(uint32(1), Allocation)))},
	{"context without a name", optionSetMetaContext, optionReply(optionSetMetaContext, replyMetaContext, []byte{0, 0, 1})},
	{"list of contexts ends with data", optionSetMetaContext, optionReply(optionSetMetaContext, replyAck, []byte{1})},
	{"unknown reply about contexts", optionSetMetaContext, optionReply(optionSetMetaContext, 99, nil)},

	{"no size", optionGo, optionReply(optionGo, replyAck, nil)},
	{"ACK of GO with data", optionGo, be((&script{}).infos(), optionReply(optionGo, replyAck, []byte{1}))},
	{"size of 2^63", optionGo, be(optionReply(optionGo, replyInfo, be(uint16(infoExport), uint64(1<<63), uint16(exportHasFlags))))},
	{"no flags", optionGo, be(optionReply(optionGo, replyInfo, be(uint16(infoExport), uint64(1<<20), uint16(0))))},
	{"size twice", optionGo, be((&script{}).infos(), (&script{}).infos())},
	{"information of one byte", optionGo, optionReply(optionGo, replyInfo, []byte{0})},
	{"short information", optionGo, optionReply(optionGo, replyInfo, be(uint16(infoExport), uint64(1<<20)))},
	{"long information", optionGo, optionReply(optionGo, replyInfo, be(uint16(infoExport), uint64(1<<20), uint16(1), uint16(1)))},
	{"short block sizes", optionGo, optionReply(optionGo, replyInfo, be(uint16(infoBlockSize), uint32(1), uint32(1)))},
	{"block of 0 bytes", optionGo, be((&script{blocks: []uint32{0, 512, 4096}}).infos(), optionReply(optionGo, replyAck, nil))},
	{"block of 3 bytes", optionGo, be((&script{blocks: []uint32{3, 512, 4096}}).infos(), optionReply(optionGo, replyAck, nil))},
	{"block of 128 KiB", optionGo, be((&script{blocks: []uint32{128 << 10, 128 << 10, 1 << 20}}).infos(), optionReply(optionGo, replyAck, nil))},
	{"largest block below the smallest", optionGo, be((&script{blocks: []uint32{4096, 4096, 512}}).infos(), optionReply(optionGo, replyAck, nil))},
	{"unknown reply to GO", optionGo, optionReply(optionGo, 99, nil)},
	{"endless information", optionGo, []byte(strings.Repeat(string(optionReply(optionGo, replyInfo, be(uint16(77), "x"))), maxInfos))},
}

func TestALieInTheHandshakeIsFoundOut(t *testing.T) {
	for _, lie := range optionLies {
		t.Run(lie.name, func(t *testing.T) {
			s := &script{size: 1 << 20, contexts: []string{testContext, Allocation}, onOption: func(s *scriptSession, option uint32, _ []byte) bool {
				if option != lie.option {
					return false
				}
				s.put(lie.answer)
				return true
			}}
			_, err := Dial(t.Context(), s.listen(t), Options{Contexts: []string{testContext, Allocation}})
			wantError(t, err, ErrProtocol)
		})
	}
}

func TestAGreetingThatIsNotNBDIsFoundOut(t *testing.T) {
	for name, greeting := range map[string][]byte{
		"HTTP":              []byte("HTTP/1.0 400 Bad Request\r\n\r\n"),
		"oldstyle":          be(uint64(magicServer), uint64(magicOld), make([]byte, 136)),
		"second magic":      be(uint64(magicServer), uint64(1), uint16(flagFixedNewstyle)),
		"not fixed":         be(uint64(magicServer), uint64(magicOption), uint16(flagNoZeroes)),
		"first magic alone": be(uint64(magicServer+1), uint64(magicOption), uint16(flagFixedNewstyle)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Dial(t.Context(), (&script{greeting: greeting}).listen(t), Options{})
			wantError(t, err, ErrProtocol)
		})
	}
}

func TestAHandshakeThatFailsLeavesNothingOpen(t *testing.T) {
	bad := (&script{greeting: []byte("HTTP/1.0 400 Bad Request\r\n\r\n")}).listen(t)
	refused := (&script{size: 1}).listen(t)
	differing := (&script{flags: exportCanMultiConn, contexts: []string{Allocation}, sizeOf: func(connection int) int64 { return int64(connection) }}).listen(t)
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(list)
	}
	// The garbage collector would close them too, and hide what was forgotten.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := files()
	for range 20 {
		for _, at := range []Address{bad, refused, differing} {
			if c, err := Dial(t.Context(), at, Options{Contexts: []string{Allocation}}); err == nil {
				c.Close()
				t.Error("no error")
			}
		}
	}
	// The servers close their side a moment later.
	for deadline := time.Now().Add(5 * time.Second); files() > before && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	if after := files(); after > before {
		t.Errorf("%d files are open, %d before", after, before)
	}
}

func TestARefusalSaysWhatItIs(t *testing.T) {
	tlsOn := &tls.Config{InsecureSkipVerify: true}
	for _, c := range []struct {
		name         string
		option, kind uint32
		tls          *tls.Config
		want         error
	}{
		{"unknown export", optionGo, replyUnknown, nil, ErrNoExport},
		{"unknown export, when contexts are asked for", optionSetMetaContext, replyUnknown, nil, ErrNoExport},
		{"TLS demanded at first", optionStructuredReply, replyTLSRequired, nil, ErrTLSRequired},
		{"TLS demanded for the export", optionGo, replyTLSRequired, nil, ErrTLSRequired},
		{"TLS not supported", optionStartTLS, replyUnsupported, tlsOn, ErrTLSRefused},
		{"TLS forbidden", optionStartTLS, replyPolicy, tlsOn, ErrTLSRefused},
		{"TLS not valid", optionStartTLS, replyInvalid, tlsOn, ErrTLSRefused},
		{"contexts not supported", optionSetMetaContext, replyUnsupported, nil, ErrNoContext},
		{"contexts too many", optionSetMetaContext, replyTooBig, nil, ErrNoContext},
		{"shutdown at first", optionStructuredReply, replyShutdown, nil, ErrRefused},
		{"shutdown at contexts", optionSetMetaContext, replyShutdown, nil, ErrRefused},
		{"shutdown", optionGo, replyShutdown, nil, ErrRefused},
		{"GO not supported", optionGo, replyUnsupported, nil, ErrRefused},
		{"a reason of tomorrow", optionGo, replyError + 777, nil, ErrRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said atomic.Bool
			s := &script{contexts: []string{testContext}, onOption: func(s *scriptSession, option uint32, _ []byte) bool {
				said.Store(said.Load() || option == optionAbort)
				if option != c.option {
					return false
				}
				s.put(optionReply(option, c.kind, []byte("because\x1b[31m")))
				return true
			}}
			at := s.listen(t)
			at.TLS = c.tls
			_, err := Dial(t.Context(), at, Options{Export: "vda", Contexts: []string{testContext}})
			wantError(t, err, c.want)
			if !strings.Contains(err.Error(), "because?[31m") {
				t.Errorf("%q does not say why", err)
			}
			for deadline := time.Now().Add(5 * time.Second); !said.Load() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
			if !said.Load() {
				t.Error("the server was not told that the handshake ends")
			}
		})
	}
}

func TestAContextThatIsNotThereIsNamed(t *testing.T) {
	s := &script{size: 1 << 20, contexts: []string{Allocation}}
	_, err := Dial(t.Context(), s.listen(t), Options{Contexts: []string{Allocation, testContext}})
	wantError(t, err, ErrNoContext)
	if !strings.Contains(err.Error(), testContext) || strings.Contains(err.Error(), Allocation) {
		t.Errorf("%q does not name the one that is missing", err)
	}
}

func TestContextsNeedStructuredReplies(t *testing.T) {
	s := &script{size: 1 << 20, simple: true}
	_, err := Dial(t.Context(), s.listen(t), Options{Contexts: []string{Allocation}})
	wantError(t, err, ErrNoContext)
}

// cutConn passes on what the server writes until it has been enough, and then
// hangs up.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if n := min(len(p), c.left); n > 0 {
		if _, err := c.Conn.Write(p[:n]); err != nil {
			return 0, err
		}
		c.left -= n
	}
	if c.left == 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return len(p), nil
}

// handshakeBytes is how much a script says before the first request.
func handshakeBytes(s *script) int {
	n := greetingBytes + optionReplyBytes // of STRUCTURED_REPLY
	if len(s.contexts) > 0 {
		n += optionReplyBytes
	}
	for _, name := range s.contexts {
		n += optionReplyBytes + contextIDBytes + len(name)
	}
	return n + len(s.infos()) + optionReplyBytes
}

func TestAHandshakeThatIsCutAtAnyByteIsLost(t *testing.T) {
	contexts := []string{testContext, Allocation}
	s := &script{size: 1 << 20, contexts: contexts, blocks: []uint32{512, 4096, 1 << 20}}
	all := handshakeBytes(s)
	var left atomic.Int64
	s.wrap = func(c net.Conn) net.Conn { return &cutConn{c, int(left.Load())} }
	at := s.listen(t)
	for n := range all {
		left.Store(int64(n))
		if n == 0 {
			left.Store(1) // the first byte; without any there is no Write
		}
		_, err := Dial(t.Context(), at, Options{Contexts: contexts})
		if !errors.Is(err, ErrLost) {
			t.Fatalf("cut at %d of %d bytes: %v", n, all, err)
		}
	}
	left.Store(1 << 20)
	c, err := Dial(t.Context(), at, Options{Contexts: contexts})
	if err != nil {
		t.Fatalf("not cut: %v", err)
	}
	c.Close()
}

func TestAHandshakeHasATimeLimit(t *testing.T) {
	for _, option := range []uint32{0, optionStructuredReply, optionSetMetaContext, optionGo} {
		s := &script{contexts: []string{Allocation}, onOption: func(_ *scriptSession, o uint32, _ []byte) bool { return o == option }}
		if option == 0 {
			s.greeting = []byte("NBDM")
		}
		start := time.Now()
		_, err := Dial(t.Context(), s.listen(t), Options{Contexts: []string{Allocation}, Timeout: 50 * time.Millisecond})
		wantError(t, err, context.DeadlineExceeded)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("option %d: took %v", option, took)
		}
	}
}

func TestAHandshakeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &script{onOption: func(*scriptSession, uint32, []byte) bool {
		cancel()
		return true
	}}
	_, err := Dial(ctx, s.listen(t), Options{})
	wantError(t, err, context.Canceled)
}

func TestWhatCannotBeRightIsRefusedBeforeAnyConnection(t *testing.T) {
	at := Address{Network: "unix", Address: "/nowhere"}
	for name, c := range map[string]struct {
		at Address
		o  Options
	}{
		"network":             {Address{Network: "udp", Address: "localhost:1"}, Options{}},
		"no address":          {Address{Network: "unix"}, Options{}},
		"TLS without a name":  {Address{Network: "unix", Address: "/nowhere", TLS: &tls.Config{}}, Options{}},
		"connections":         {at, Options{Connections: -1}},
		"in flight":           {at, Options{InFlight: -1}},
		"request":             {at, Options{RequestBytes: -1}},
		"timeout":             {at, Options{Timeout: -1}},
		"long export":         {at, Options{Export: strings.Repeat("x", maxString+1)}},
		"export with a zero":  {at, Options{Export: "a\x00b"}},
		"context with a zero": {at, Options{Contexts: []string{"a:\x00"}}},
		"no namespace":        {at, Options{Contexts: []string{"bitmap"}}},
		"context twice":       {at, Options{Contexts: []string{Allocation, Allocation}}},
		"too many contexts":   {at, Options{Contexts: make([]string, maxContexts+1)}},
	} {
		if _, err := Dial(t.Context(), c.at, c.o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhereNobodyListensTheSystemsErrorIsGiven(t *testing.T) {
	_, err := Dial(t.Context(), Address{Network: "unix", Address: filepath.Join(folder(t), "s")}, Options{})
	wantError(t, err, os.ErrNotExist)
}

func TestConnectionsAreAsManyAsTheServerAllows(t *testing.T) {
	for _, c := range []struct {
		name  string
		s     script
		asked int
		want  int
	}{
		{"default", script{flags: exportCanMultiConn}, 0, defaultConnections},
		{"four", script{flags: exportCanMultiConn}, 4, 4},
		{"one", script{flags: exportCanMultiConn}, 1, 1},
		{"no flag", script{}, 4, 1},
		{"too many", script{flags: exportCanMultiConn}, 1000, mostConnections},
		{"further ones are refused", script{flags: exportCanMultiConn, onOption: func(s *scriptSession, option uint32, _ []byte) bool {
			if s.number == 0 || option != optionGo {
				return false
			}
			s.put(optionReply(option, replyPolicy, nil))
			return true
		}}, 4, 1},
		{"further ones are cut off", script{flags: exportCanMultiConn, onOption: func(s *scriptSession, _ uint32, _ []byte) bool {
			if s.number > 1 {
				panic(hangUp{})
			}
			return false
		}}, 4, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.size = 1 << 20
			if got := c.s.dial(t, Options{Connections: c.asked}).Connections(); got != c.want {
				t.Errorf("%d connections, want %d", got, c.want)
			}
		})
	}
}

func TestAServerThatLeavesFurtherConnectionsWaitingIsReadOverOne(t *testing.T) {
	block := make(chan struct{})
	s := &script{size: 1 << 20, flags: exportCanMultiConn, onConnect: func(n int) {
		if n > 0 {
			<-block
		}
	}}
	at := s.listen(t)
	t.Cleanup(func() { close(block) })
	start := time.Now()
	c, err := Dial(t.Context(), at, Options{Connections: 4, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Connections() != 1 || time.Since(start) > 5*time.Second {
		t.Errorf("%d connections after %v", c.Connections(), time.Since(start))
	}
	wantPattern(t, c, 0, 4096)
}

func TestConnectionsThatShowDifferentDisksAreRefused(t *testing.T) {
	s := &script{flags: exportCanMultiConn, sizeOf: func(connection int) int64 { return int64(connection+1) << 20 }}
	_, err := Dial(t.Context(), s.listen(t), Options{Connections: 3})
	wantError(t, err, ErrProtocol)
}
