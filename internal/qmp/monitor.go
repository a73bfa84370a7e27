package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Version is what QEMU says of itself when it greets. What QEMU can do is asked of
// Schema: distributions carry changes back.
type Version struct {
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
	Micro   int    `json:"micro"`
	Package string `json:"-"` // the distribution's own words, "" where there are none
}

// String gives "7.2.22 (Debian 1:7.2+dfsg-7)".
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Package != "" {
		s += " (" + v.Package + ")"
	}
	return s
}

// Monitor is a connection to QEMU.
type Monitor struct {
	path     string
	conn     net.Conn
	version  Version
	peer     peer
	replyFor time.Duration

	outgoing chan *call
	done     chan struct{} // closed when the connection is over; err is set then
	workers  sync.WaitGroup

	// session begins all our ids. QEMU executes what a client has sent also after that
	// client has gone, and gives the replies to the next one.
	session string

	mu            sync.Mutex
	err           error
	last          int // the newest number in an id
	waiting       map[string]*call
	subscriptions map[*Subscription]struct{}

	schemaTurn chan struct{} // holds one token: who has it may use schema
	schema     *Schema
}

// call is a command under way.
type call struct {
	id    string
	line  []byte
	file  *os.File     // goes with the line; nil: none
	reply chan message // takes one
}

func newMonitor(conn net.Conn, s *stream, path string, g *greeting, o Options) *Monitor {
	m := &Monitor{
		path: path, conn: conn, version: g.Version.QEMU, peer: peerOf(conn), replyFor: o.Reply,
		outgoing: make(chan *call), done: make(chan struct{}),
		session: fmt.Sprintf("qb-%016x-", rand.Uint64()), waiting: map[string]*call{}, subscriptions: map[*Subscription]struct{}{},
		schemaTurn: make(chan struct{}, 1),
	}
	m.version.Package = g.Version.Package
	m.workers.Go(func() { m.read(s) })
	m.workers.Go(m.write)
	return m
}

// Version is the one that QEMU greeted with.
func (m *Monitor) Version() Version { return m.version }

// PeerUID is the user that QEMU opens files as, -1 when that is not known. Where
// another program made the socket and handed it to QEMU, it is that program's user.
func (m *Monitor) PeerUID() int { return m.peer.uid() }

// PeerPID is the process that listens at the monitor's socket, 0 when that is not
// known.
func (m *Monitor) PeerPID() int { return m.peer.pid() }

// Lost is closed when the connection is over; Err says why.
func (m *Monitor) Lost() <-chan struct{} { return m.done }

// Err is nil while the connection stands, and an ErrLost afterwards, also after Close.
func (m *Monitor) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Close ends the connection and waits for the goroutines. QEMU lets the next client
// in then. It may be called more than once.
func (m *Monitor) Close() error {
	m.fail(fmt.Errorf("%w: it was closed", ErrLost))
	m.workers.Wait()
	return nil
}

// Execute sends a command and waits for its reply. arguments is encoded as JSON, nil
// for none; the reply is decoded into result, unless that is nil. When QEMU refuses,
// the error is an *Error. Any other error leaves open whether the command was or
// will be executed: that of ctx, ErrSilent, ErrLost. A reply that comes later than
// that is dropped.
func (m *Monitor) Execute(ctx context.Context, command string, arguments, result any) error {
	return m.execute(ctx, nil, command, arguments, result)
}

// PassFile gives QEMU a descriptor of its own of an open file, under a name by which
// commands can use it. QEMU keeps it, also when the monitor closes, until it is told
// otherwise (CloseFile). A name that QEMU knows gets the new file.
func (m *Monitor) PassFile(ctx context.Context, name string, f *os.File) error {
	return m.execute(ctx, f, "getfd", map[string]string{"fdname": name}, nil)
}

// CloseFile makes QEMU close what PassFile gave it.
func (m *Monitor) CloseFile(ctx context.Context, name string) error {
	return m.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil)
}

func (m *Monitor) execute(ctx context.Context, file *os.File, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, m.replyFor)
	defer cancel()
	reply, err := m.exchange(ctx, file, command, arguments)
	if err != nil {
		return fmt.Errorf("ask QEMU for %s: %w", command, err)
	}
	if reply.Error != nil {
		return &Error{Command: command, Class: reply.Error.Class, Desc: reply.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("reply to %s: %w: %w", command, ErrProtocol, err)
	}
	return nil
}

func (m *Monitor) exchange(ctx context.Context, file *os.File, command string, arguments any) (message, error) {
	c, err := m.newCall(command, arguments)
	if err != nil {
		return message{}, err
	}
	c.file = file
	defer m.forget(c)
	select {
	case m.outgoing <- c:
	case <-ctx.Done():
		return message{}, silent(ctx)
	case <-m.done:
		return message{}, m.Err()
	}
	select {
	case reply := <-c.reply:
		return reply, nil
	case <-ctx.Done():
		return message{}, silent(ctx)
	case <-m.done:
	}
	select {
	case reply := <-c.reply: // it came before the end
		return reply, nil
	default:
		return message{}, m.Err()
	}
}

// silent is the error for a call whose time is over or that was given up.
func silent(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrSilent, ctx.Err())
	}
	return ctx.Err()
}

func (m *Monitor) newCall(command string, arguments any) (*call, error) {
	m.mu.Lock()
	m.last++
	c := &call{id: m.session + strconv.Itoa(m.last), reply: make(chan message, 1)}
	m.waiting[c.id] = c
	m.mu.Unlock()
	var err error
	if c.line, err = request(c.id, command, arguments); err != nil {
		m.forget(c)
		return nil, err
	}
	return c, nil
}

func (m *Monitor) forget(c *call) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, c.id)
}

// write sends one command after the other. QEMU stops reading when it has many; then
// this goroutine waits, and callers leave when their time is over. A line that was
// begun is always finished: half a command would spoil the next.
func (m *Monitor) write() {
	for {
		select {
		case c := <-m.outgoing:
			if err := c.send(m.conn); err != nil {
				m.fail(fmt.Errorf("%w: write to QEMU: %w", ErrLost, err))
				return
			}
		case <-m.done:
			return
		}
	}
}

// send writes the line. A file goes with its first bytes.
func (c *call) send(conn net.Conn) error {
	if c.file == nil {
		_, err := conn.Write(c.line)
		return err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("no file can be sent to a monitor that is no unix socket")
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	failed := raw.Control(func(fd uintptr) { n, _, err = u.WriteMsgUnix(c.line, unix.UnixRights(int(fd)), nil) })
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	_, err = conn.Write(c.line[n:])
	return err
}

// read takes what QEMU sends, and never waits for anybody but QEMU.
func (m *Monitor) read(s *stream) {
	for {
		got, err := s.next()
		if err == nil {
			err = m.take(got)
		}
		if err != nil {
			m.fail(ended(err))
			return
		}
	}
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: QEMU has closed it", ErrLost)
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// take hands a message to the one that waits for it. A reply that nobody waits for came
// late, or is for an earlier client.
func (m *Monitor) take(got message) error {
	if got.Event != "" {
		m.publish(got)
		return nil
	}
	if got.Greeting != nil {
		return fmt.Errorf("%w: a second greeting", ErrProtocol)
	}
	var id string
	if json.Unmarshal(got.ID, &id) != nil {
		return nil // not one of ours
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.waiting[id]; c != nil {
		delete(m.waiting, id)
		c.reply <- got
	}
	return nil
}

// fail ends the connection, once.
func (m *Monitor) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = err
	close(m.done)
	_ = m.conn.Close()
}
