package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
)

// syncMark is a byte that no JSON has. The agent drops what it has of an unfinished
// command when it comes, and sends it before the reply to guest-sync-delimited.
const syncMark = 0xff

const (
	syncCommand   = "guest-sync-delimited"
	pingCommand   = "guest-ping"
	freezeCommand = "guest-fsfreeze-freeze"
	thawCommand   = "guest-fsfreeze-thaw"
	statusCommand = "guest-fsfreeze-status"
)

// Agent is a connection to the agent in a guest. A call that fails leaves it usable,
// unless the error is ErrLost: the next call first finds the place where the agent's
// answers begin anew.
type Agent struct {
	path   string
	o      Options
	conn   net.Conn
	reader *bufio.Reader
	turn   chan struct{} // holds one token: who has it may use what is below
	synced bool          // what comes next is the reply to what is sent next
	lost   error
}

// DialAgent connects to an agent's socket and waits until the agent has answered. The
// error is ErrNobody, ErrAgent, ErrLost, ErrProtocol, that of ctx, or about the path.
// The caller closes the agent.
func DialAgent(ctx context.Context, path string, o Options) (*Agent, error) {
	o = o.withDefaults(agentReplyDefault, agentBytesDefault)
	within, cancel := context.WithTimeout(ctx, o.Greeting)
	defer cancel()
	conn, err := dialAgentSocket(within, path)
	if err != nil {
		return nil, err
	}
	a := &Agent{path: path, o: o, conn: conn, reader: bufio.NewReader(conn), turn: make(chan struct{}, 1)}
	if err := a.Ping(within); err != nil {
		_ = a.Close()
		return nil, err
	}
	return a, nil
}

// dialAgentSocket connects, and comes again while too many wait at the socket.
func dialAgentSocket(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := dialSocket(path)
		if !errors.Is(err, errBusy) {
			return conn, err
		}
		switch {
		case pause(ctx):
		case errors.Is(ctx.Err(), context.Canceled):
			return nil, fmt.Errorf("connect to %s: %w", path, ctx.Err())
		default:
			return nil, fmt.Errorf("connect to %s: %w: %w, too many clients wait for it (%s)", path, ErrAgent, ctx.Err(), hintAgentNotThere)
		}
	}
}

// Close ends the connection. The agent lets the next client in then.
func (a *Agent) Close() error { return a.conn.Close() }

// Ping asks the agent whether it is there.
func (a *Agent) Ping(ctx context.Context) error { return a.call(ctx, pingCommand, nil) }

// Status tells whether the guest's file systems are frozen.
func (a *Agent) Status(ctx context.Context) (frozen bool, err error) {
	var word string
	if err := a.call(ctx, statusCommand, &word); err != nil {
		return false, err
	}
	switch word {
	case "frozen":
		return true, nil
	case "thawed":
		return false, nil
	}
	return false, fmt.Errorf("%s: %w: status %s", statusCommand, ErrProtocol, shorten([]byte(word)))
}

// Freeze flushes and freezes the guest's file systems and returns how many. After an
// *Error nothing is frozen by this call; after any other error it is unknown, and Thaw
// must be called.
func (a *Agent) Freeze(ctx context.Context) (count int, err error) {
	err = a.call(ctx, freezeCommand, &count)
	return count, err
}

// Thaw thaws all file systems and returns how many were frozen until now. When it is
// less than Freeze returned, some were thawed before: Windows does so by itself after
// ten seconds. It is harmless when nothing is frozen.
func (a *Agent) Thaw(ctx context.Context) (count int, err error) {
	err = a.call(ctx, thawCommand, &count)
	return count, err
}

// call sends one command and waits for its reply.
func (a *Agent) call(ctx context.Context, command string, result any) error {
	within, cancel := context.WithTimeout(ctx, a.o.Reply)
	defer cancel()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-within.Done():
		return a.failed(ctx, command, within.Err())
	}
	if a.lost != nil {
		return a.failed(ctx, command, a.lost)
	}
	var reply message
	err := watched(within, a.conn, func() (err error) {
		reply, err = a.exchange(command)
		return err
	})
	if err != nil {
		a.synced = false
		return a.failed(ctx, command, err)
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

// failed gives an error its class, and remembers when the connection is over.
func (a *Agent) failed(ctx context.Context, command string, err error) error {
	switch {
	case errors.Is(err, ErrProtocol) || errors.Is(err, ErrLost):
	case errors.Is(err, context.Canceled):
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w in time: %w (%s)", ErrAgent, err, hintAgentNotThere)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		a.lost = fmt.Errorf("%w: it was closed at the other end", ErrLost)
		err = a.lost
	case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed):
		a.lost = fmt.Errorf("%w: it was closed", ErrLost)
		err = a.lost
	default:
		a.lost = fmt.Errorf("%w: %w", ErrLost, err)
		err = a.lost
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return fmt.Errorf("%s at %s: %w", command, a.path, err)
}

// exchange finds the place in the stream where needed, sends a command, and reads
// its reply.
//
// A thaw is sent together with the search for the place. So it is on its way behind a
// freeze whose answer did not come, whatever becomes of us. A freeze is only sent when a
// search has succeeded just before: the commands that QEMU and the guest's kernel keep
// for an agent that is not running reach the next one that starts.
func (a *Agent) exchange(command string) (message, error) {
	line, err := request(nil, command, nil)
	if err != nil {
		return message{}, err
	}
	if a.synced && command != freezeCommand {
		return a.send(line)
	}
	id := rand.Int64N(1<<53-1) + 1 // agents have read numbers as floating point
	sync, err := request(nil, syncCommand, map[string]int64{"id": id})
	if err != nil {
		return message{}, err
	}
	sync = append([]byte{syncMark}, sync...)
	together := command == thawCommand
	if together {
		sync = append(sync, line...)
	}
	if _, err := a.conn.Write(sync); err != nil {
		return message{}, err
	}
	if err := findSync(a.reader, id, a.o.MessageBytes); err != nil {
		return message{}, err
	}
	a.synced = true
	if together {
		return readReply(a.reader, a.o.MessageBytes)
	}
	return a.send(line)
}

func (a *Agent) send(line []byte) (message, error) {
	if _, err := a.conn.Write(line); err != nil {
		return message{}, err
	}
	return readReply(a.reader, a.o.MessageBytes)
}

// findSync reads on until the reply to the guest-sync-delimited with our id. What
// comes before is for somebody else: replies to earlier clients, complaints about
// what they left half sent.
func findSync(r *bufio.Reader, id int64, messageBytes int) error {
	for {
		// The longest reply that there is is a file's content, so this skips without
		// keeping.
		if _, err := r.ReadSlice(syncMark); errors.Is(err, bufio.ErrBufferFull) {
			continue
		} else if err != nil {
			return err
		}
		reply, err := readReply(r, messageBytes)
		if errors.Is(err, ErrProtocol) {
			continue
		}
		if err != nil {
			return err
		}
		var got int64
		if reply.Return != nil && json.Unmarshal(reply.Return, &got) == nil && got == id {
			return nil
		}
	}
}

// readReply reads one line, which is what an agent sends for a command.
func readReply(r *bufio.Reader, messageBytes int) (message, error) {
	line, err := readLine(r, messageBytes)
	if err != nil {
		return message{}, err
	}
	m, err := parseMessage(line)
	if err == nil && m.Return == nil && m.Error == nil {
		err = fmt.Errorf("%w: no reply: %s", ErrProtocol, shorten(line))
	}
	return m, err
}

// readLine gives a line without its end, that is not empty. A syncMark ends a line
// too, and is left for the next.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		switch {
		case c == syncMark:
			return line, r.UnreadByte()
		case c == '\n' && len(bytes.TrimSpace(line)) > 0:
			return bytes.TrimSpace(line), nil
		case len(line) == limit:
			return nil, fmt.Errorf("%w: a reply is longer than %d bytes", ErrProtocol, limit)
		case c != '\n':
			line = append(line, c)
		}
	}
}
