package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// message is all that QEMU can send. It is exactly one of greeting, reply, refusal
// and event.
type message struct {
	Greeting  *greeting       `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *refusal        `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	ID        json.RawMessage `json:"id"`
	Timestamp timestamp       `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU    Version `json:"qemu"`
		Package string  `json:"package"`
	} `json:"version"`
}

type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// stream reads messages. They are told apart by their JSON and not by lines, because
// a monitor with pretty=on spreads one message over many lines.
type stream struct {
	limited *limitedReader
	decoder *json.Decoder
	bytes   int
}

func newStream(r io.Reader, messageBytes int) *stream {
	limited := &limitedReader{r: r}
	return &stream{limited: limited, decoder: json.NewDecoder(limited), bytes: messageBytes}
}

// next returns the next message, or an error after which the stream is of no more use:
// of the reader, io.EOF when it ended between messages, or ErrProtocol.
func (s *stream) next() (message, error) {
	// What the decoder has read ahead is not counted: a message may be longer by that.
	s.limited.left = s.bytes
	var raw json.RawMessage
	var syntax *json.SyntaxError
	err := s.decoder.Decode(&raw)
	switch {
	case errors.As(err, &syntax):
		return message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	case errors.Is(err, errTooLong):
		return message{}, fmt.Errorf("%w: a message is longer than %d bytes", ErrProtocol, s.bytes)
	case err != nil:
		return message{}, err
	}
	return parseMessage(raw)
}

func parseMessage(raw json.RawMessage) (message, error) {
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w in %s", ErrProtocol, err, shorten(raw))
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, fmt.Errorf("%w: %s", ErrProtocol, shorten(raw))
	}
	return m, nil
}

// shorten gives the beginning of what came, for an error.
func shorten(raw []byte) string {
	const most = 80
	if len(raw) > most {
		return fmt.Sprintf("%q and %d bytes more", raw[:most], len(raw)-most)
	}
	return fmt.Sprintf("%q", raw)
}

var errTooLong = errors.New("too long")

// limitedReader gives up when a message takes more than it was given to read.
type limitedReader struct {
	r    io.Reader
	left int
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// request makes the line of a command. Arguments that are nil are left out.
func request(id any, command string, arguments any) ([]byte, error) {
	var b bytes.Buffer
	err := json.NewEncoder(&b).Encode(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        any    `json:"id,omitempty"`
	}{command, arguments, id})
	return b.Bytes(), err
}
