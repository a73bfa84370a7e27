package nbd

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"
)

// Names of meta contexts, and what their flags say.
const (
	// Allocation is the context of the protocol itself. FlagZero says that the
	// range reads as zeros.
	Allocation = "base:allocation"
	FlagZero   = stateZero

	dirtyBitmapPrefix = "qemu:dirty-bitmap:"
	// FlagDirty is the flag of a dirty bitmap's context.
	FlagDirty = stateDirty
)

// DirtyBitmap gives the name of the meta context that QEMU has for a bitmap.
func DirtyBitmap(name string) string { return dirtyBitmapPrefix + name }

// Address is where a server listens.
type Address struct {
	// Network is "unix" or "tcp".
	Network string
	// Address is a path or host:port.
	Address string
	// TLS, when it is set, must be what the server speaks: there is no session
	// without it. ServerName is taken from a host when it is empty; a unix socket
	// needs it, or InsecureSkipVerify.
	TLS *tls.Config
}

// String shows the address as in "unix:/run/vm.nbd".
func (a Address) String() string { return a.Network + ":" + a.Address }

func (a Address) check() error {
	switch a.Network {
	case "unix", "tcp", "tcp4", "tcp6":
	default:
		return fmt.Errorf("%w: network %q is neither unix nor tcp", ErrInvalid, a.Network)
	}
	if a.Address == "" {
		return fmt.Errorf("%w: the address is empty", ErrInvalid)
	}
	if a.TLS != nil && a.Network == "unix" && a.TLS.ServerName == "" && !a.TLS.InsecureSkipVerify {
		return fmt.Errorf("%w: %s: TLS on a unix socket needs the name in the server's certificate", ErrInvalid, a)
	}
	return nil
}

// tls gives the configuration with the name that the certificate must have.
func (a Address) tls() *tls.Config {
	if a.TLS.ServerName != "" || a.TLS.InsecureSkipVerify {
		return a.TLS
	}
	config := a.TLS.Clone()
	if host, _, err := net.SplitHostPort(a.Address); err == nil {
		config.ServerName = host
	}
	return config
}

// Options are the choices of Dial. The zero value reads the default export.
type Options struct {
	// Export is the name of the export; empty is the server's default.
	Export string
	// Contexts are the meta contexts that Status is called with. Dial fails when
	// the export lacks one of them.
	Contexts []string
	// Connections is how many connections there are where the server says that
	// several show the same disk, 2 when zero; otherwise it is one.
	Connections int
	// InFlight is how many requests each connection has at the server at once, 8
	// when zero. QEMU works on 16 at most.
	InFlight int
	// RequestBytes is how much one request reads, 256 KiB when zero. The server's
	// limits for blocks come first.
	RequestBytes int64
	// Timeout bounds connecting and the handshake, 30 s when zero. Requests have no
	// bound: a server may take long, and Close interrupts them.
	Timeout time.Duration
	// Keep is called with each connection before anything is sent over it, and may
	// make the other end of it outlive the client. The server is not told then when
	// the client ends: who keeps the connections decides. Nil: nobody does.
	Keep func(net.Conn) error
	// Whole makes the server send what it reads as it is, where it can: without
	// looking for holes first, which costs it time and is another moment than the
	// reading.
	Whole bool
}

// The server is one thread in QEMU: with two connections it always has something
// to send, and more than two or eight requests were not faster (BenchmarkReadAt).
const (
	defaultConnections  = 2
	defaultInFlight     = 8
	defaultRequestBytes = 256 << 10
	defaultTimeout      = 30 * time.Second

	mostConnections = 16
	mostInFlight    = 256
)

// resolve puts the defaults in, and refuses what cannot be right.
func (o Options) resolve() (Options, error) {
	invalid := func(format string, args ...any) (Options, error) {
		return o, fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if o.Connections < 0 || o.InFlight < 0 || o.RequestBytes < 0 || o.Timeout < 0 {
		return invalid("a negative number of connections, requests, bytes or seconds")
	}
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.InFlight == 0 {
		o.InFlight = defaultInFlight
	}
	if o.RequestBytes == 0 {
		o.RequestBytes = defaultRequestBytes
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	o.Connections = min(o.Connections, mostConnections)
	o.InFlight = min(o.InFlight, mostInFlight)
	if err := checkName(o.Export); err != nil {
		return invalid("export %v", err)
	}
	if len(o.Contexts) > maxContexts {
		return invalid("%d meta contexts, more than %d", len(o.Contexts), maxContexts)
	}
	for i, name := range o.Contexts {
		if err := checkName(name); err != nil {
			return invalid("meta context %v", err)
		}
		if !strings.Contains(name, ":") {
			return invalid("meta context %q has no namespace", name)
		}
		for _, other := range o.Contexts[:i] {
			if other == name {
				return invalid("meta context %q is named twice", name)
			}
		}
	}
	return o, nil
}

// checkName refuses what is no string of the protocol.
func checkName(name string) error {
	if len(name) > maxString {
		return fmt.Errorf("%.40q... has %d bytes, more than %d", name, len(name), maxString)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%q contains a zero byte", name)
	}
	return nil
}
