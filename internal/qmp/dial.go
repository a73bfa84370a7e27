package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Options of Dial and DialAgent. The zero value is ready for use.
type Options struct {
	// Greeting is how long to wait for the first word; 0: 10 s. It covers all of
	// Dial and of DialAgent.
	Greeting time.Duration
	// Reply is how long a call waits at most, whatever its context says; 0: 5 min
	// for QEMU, which may have to wait for storage, 30 s for the agent.
	Reply time.Duration
	// MessageBytes bounds one message; 0: 64 MiB from QEMU, 1 MiB from the agent.
	MessageBytes int
}

const (
	greetingDefault      = 10 * time.Second
	monitorReplyDefault  = 5 * time.Minute
	agentReplyDefault    = 30 * time.Second
	monitorBytesDefault  = 64 << 20
	agentBytesDefault    = 1 << 20
	redialPause          = 50 * time.Millisecond
	socketPathBytesMax   = 107 // sun_path of Linux with its NUL
	capabilitiesCommand  = "qmp_capabilities"
	schemaCommand        = "query-qmp-schema"
	hintOwnMonitor       = "give qbackup a monitor of its own with -qmp unix:PATH,server=on,wait=off, or stop the other program"
	hintMachineOff       = "the machine is off, or its QEMU was started with another path"
	hintNotTheRightUser  = "run as root or as the user that QEMU runs as"
	hintNotTheRightKind  = "name the unix socket of a QMP monitor"
	hintAgentNotThere    = "is qemu-guest-agent running in the guest, and does no other program hold its socket?"
	hintSocketPathLength = "a socket's path may have 107 bytes: name it from a nearer folder, or by a shorter link"
)

func (o Options) withDefaults(reply time.Duration, messageBytes int) Options {
	if o.Greeting <= 0 {
		o.Greeting = greetingDefault
	}
	if o.Reply <= 0 {
		o.Reply = reply
	}
	if o.MessageBytes <= 0 {
		o.MessageBytes = messageBytes
	}
	return o
}

// errBusy: the queue of those who wait at the socket is full.
var errBusy = errors.New("too many wait there")

// dialSocket connects to a unix socket, which never waits. The error is ErrNobody or
// errBusy or says what is wrong with the path.
func dialSocket(path string) (net.Conn, error) {
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, unix.EAGAIN):
		return nil, errBusy
	case len(path) > socketPathBytesMax:
		return nil, fmt.Errorf("connect to %s: %w (%s)", path, err, hintSocketPathLength)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to %s: %w (%s)", path, fs.ErrPermission, hintNotTheRightUser)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("connect to %s: %w: no such file (%s)", path, ErrNobody, hintMachineOff)
	case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET):
		// The system says the same of files that are no sockets.
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("connect to %s: %w: it is no socket (%s)", path, ErrProtocol, hintNotTheRightKind)
		}
		return nil, fmt.Errorf("connect to %s: %w (%s)", path, ErrNobody, hintMachineOff)
	}
	return nil, fmt.Errorf("connect to %s: %w", path, err)
}

// pause waits a little before a socket is tried again; false when ctx ends meanwhile.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(redialPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watched runs f, which reads from or writes to conn, and makes it fail when ctx ends
// first. Deadlines of conn are its own business.
func watched(ctx context.Context, conn net.Conn, f func() error) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = conn.SetDeadline(time.Unix(1, 0)) // in the past
	})
	err := f()
	if !stop() {
		<-ended
		_ = conn.SetDeadline(time.Time{})
		if err != nil {
			return ctx.Err()
		}
	}
	return err
}

// Dial connects to the monitor at path, waits for its greeting, and makes it ready for
// commands. The error is ErrNobody, ErrTaken, ErrLost, ErrProtocol, that of ctx, or
// about the path. The caller closes the monitor.
func Dial(ctx context.Context, path string, o Options) (*Monitor, error) {
	o = o.withDefaults(monitorReplyDefault, monitorBytesDefault)
	greetCtx, cancel := context.WithTimeout(ctx, o.Greeting)
	defer cancel()
	m, err := dialGreeted(greetCtx, path, o)
	if err == nil {
		if err = m.negotiate(greetCtx); err != nil {
			_ = m.Close()
			err = fmt.Errorf("begin with %s: %w", path, err)
		}
	}
	switch {
	case err == nil:
		return m, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, fmt.Errorf("connect to %s: %w", path, ctx.Err())
	case errors.Is(err, errNotGreeted):
		return nil, fmt.Errorf("connect to %s: %w: no greeting in time; QEMU serves another client, or hangs (%s)", path, ErrTaken, hintOwnMonitor)
	}
	return nil, err
}

// negotiate makes QEMU take commands. When its reply is there, no command of an earlier
// client will be executed any more.
func (m *Monitor) negotiate(ctx context.Context) error {
	err := m.Execute(ctx, capabilitiesCommand, nil, nil)
	var refused *Error
	if errors.As(err, &refused) && refused.Class == ClassCommandNotFound {
		return nil // the same command of an earlier client was executed for us
	}
	return err
}

// errNotGreeted: the time for the greeting is over.
var errNotGreeted = errors.New("not greeted")

// dialGreeted tries until there is a greeting or ctx ends. Who waits at a socket is
// served when the one before goes; who finds the queue full must come again.
func dialGreeted(ctx context.Context, path string, o Options) (*Monitor, error) {
	for garbled := 0; ; {
		conn, err := dialSocket(path)
		if err == nil {
			var m *Monitor
			if m, err = greeted(ctx, conn, path, o); err == nil {
				return m, nil
			}
			_ = conn.Close()
		}
		if errors.Is(err, errGarbled) {
			garbled++
		}
		ended := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
		switch {
		case ctx.Err() != nil:
			return nil, errNotGreeted
		case errors.Is(err, errGarbled) && garbled < garbledMax:
			pause(ctx)
		case errors.Is(err, errBusy) || ended: // QEMU may have ended: the next try says so
			if !pause(ctx) && ended {
				return nil, fmt.Errorf("connect to %s: %w before the greeting, again and again", path, ErrLost)
			}
		default:
			return nil, err
		}
	}
}

// errGarbled: what comes before the greeting is not the protocol. It may be the second
// half of a reply to an earlier client, so it is tried again, garbledMax times in all.
var errGarbled = errors.New("before the greeting")

const garbledMax = 4

// greeted reads the greeting and makes a monitor of the connection. Replies to an
// earlier client may come before.
func greeted(ctx context.Context, conn net.Conn, path string, o Options) (*Monitor, error) {
	s := newStream(conn, o.MessageBytes)
	var g *greeting
	err := watched(ctx, conn, func() error {
		for g == nil {
			m, err := s.next()
			if err != nil {
				return err
			}
			g = m.Greeting
		}
		return nil
	})
	if err == nil {
		return newMonitor(conn, s, path, g, o), nil
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends in the middle of a message", ErrProtocol)
	}
	if errors.Is(err, ErrProtocol) {
		err = fmt.Errorf("connect to %s: %w, %w (%s)", path, err, errGarbled, hintNotTheRightKind)
	}
	return nil, err
}
