package nbd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unicode"
)

// What can be the matter with a server, an export or a connection.
var (
	// ErrLost is behind every error of a client whose connection has ended
	// without Close: the server went away, the network broke, or the server broke
	// the protocol. All that is left is Close.
	ErrLost = errors.New("connection to the NBD server lost")
	// ErrClosed is reported by a client after Close, and by what Close interrupts.
	ErrClosed = errors.New("NBD client is closed")
	// ErrProtocol is reported for a server that breaks the protocol.
	ErrProtocol = errors.New("the NBD server breaks the protocol")
	// ErrNoExport is reported for an export that the server does not have.
	ErrNoExport = errors.New("no such NBD export")
	// ErrNoContext is reported for a meta context that the export does not have,
	// or that was not asked for in Dial.
	ErrNoContext = errors.New("no such NBD meta context")
	// ErrTLSRequired is reported when the server wants TLS and Address has none.
	ErrTLSRequired = errors.New("the NBD server demands TLS")
	// ErrTLSRefused is reported when Address has TLS and the server does not do it.
	// The data is never read without TLS then.
	ErrTLSRefused = errors.New("the NBD server refuses TLS")
	// ErrRefused is reported when the server refuses the session for any other
	// reason, such as its shutdown.
	ErrRefused = errors.New("the NBD server refuses")
	// ErrInvalid is reported for an Address or Options that cannot be right.
	ErrInvalid = errors.New("invalid NBD address or option")
)

// Error is a request that the server could not do. The connection goes on.
type Error struct {
	// Errno is the number on the wire: 5 for an I/O error, as on Linux.
	Errno uint32
	// Text is what the server says about it, made printable; mostly empty.
	Text string
}

// Error gives the reason, and the server's words.
func (e *Error) Error() string {
	text := "NBD server: "
	if errno := e.errno(); errno != 0 {
		text += errno.Error()
	} else {
		text += fmt.Sprintf("error %d", e.Errno)
	}
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text
}

// Unwrap gives the error of the operating system that the number stands for, nil
// for a number that the protocol does not have.
func (e *Error) Unwrap() error {
	if errno := e.errno(); errno != 0 {
		return errno
	}
	return nil
}

// errno translates: the numbers on the wire are those of Linux on most machines.
func (e *Error) errno() syscall.Errno {
	switch e.Errno {
	case 1:
		return syscall.EPERM
	case 5:
		return syscall.EIO
	case 12:
		return syscall.ENOMEM
	case 22:
		return syscall.EINVAL
	case 28:
		return syscall.ENOSPC
	case 75:
		return syscall.EOVERFLOW
	case 95:
		return syscall.ENOTSUP
	case 108:
		return syscall.ESHUTDOWN
	}
	return 0
}

// violation makes the error for a server that breaks the protocol.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// errHungUp takes the place of io.EOF, which must not be found in an error of
// ReadAt: there it means the end of the disk.
var errHungUp = errors.New("the server closed the connection")

// printable makes a server's text fit for a terminal.
func printable(text []byte) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(text))
	return strings.TrimSpace(clean)
}
