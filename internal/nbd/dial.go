package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// moreTimeout is how long connections beyond the first may take. A server that
// serves only so many clients at a time lets the others wait unanswered.
const moreTimeout = 3 * time.Second

// Dial connects to an export. All of o.Contexts are there when it succeeds.
//
// The first connection says whether there may be more. Those that the server does
// not answer soon are done without, so a server that serves few clients at a time
// is read over fewer connections than were asked for.
//
// Errors match ErrNoExport, ErrNoContext, ErrTLSRequired, ErrTLSRefused,
// ErrRefused, ErrProtocol, ErrLost, ErrInvalid, or are those of the operating
// system, of crypto/tls or of ctx.
func Dial(ctx context.Context, at Address, o Options) (*Client, error) {
	if err := at.check(); err != nil {
		return nil, err
	}
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	first, err := connect(ctx, at, o, o.Timeout)
	if err != nil {
		return nil, err
	}
	conns := []*conn{first}
	if first.export.multiConn && o.Connections > 1 {
		more, err := connectMore(ctx, at, o, first.export)
		conns = append(conns, more...)
		if err != nil {
			for _, k := range conns {
				k.leave()
				k.raw.Close()
			}
			return nil, err
		}
	}
	return newClient(at, o, conns), nil
}

// connectMore makes the connections beyond the first, as far as they can be had.
// An error comes with those that were made.
func connectMore(ctx context.Context, at Address, o Options, first export) ([]*conn, error) {
	made := make([]*conn, o.Connections-1)
	var group errgroup.Group
	for i := range made {
		group.Go(func() error {
			k, err := connect(ctx, at, o, min(moreTimeout, o.Timeout))
			switch {
			case ctx.Err() != nil || errors.Is(err, ErrProtocol):
				return err
			case err != nil:
				return nil
			}
			made[i] = k
			if k.export != first {
				return fmt.Errorf("connect to %s: %w", at, violation("the export is %+v on one connection and %+v on another", first, k.export))
			}
			return nil
		})
	}
	err := group.Wait()
	var conns []*conn
	for _, k := range made {
		if k != nil {
			conns = append(conns, k)
		}
	}
	return conns, err
}

// connect makes one connection, up to the end of the handshake.
func connect(ctx context.Context, at Address, o Options, timeout time.Duration) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	defer cancel()
	k, err := open(ctx, at, o)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to %s: %w", at, err)
	}
	return k, nil
}

// errNoAnswer is the error of a handshake that took too long.
var errNoAnswer = fmt.Errorf("no answer from the NBD server; it may be busy with another client: %w", context.DeadlineExceeded)

func open(ctx context.Context, at Address, o Options) (*conn, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, at.Network, at.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	k := &conn{raw: raw, stream: raw}
	if o.Keep != nil {
		k.kept, err = true, o.Keep(raw)
	}
	if err == nil {
		err = k.shakeHands(ctx, at, o)
	}
	k.whole = o.Whole && k.export.canWhole
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if k.kept {
			_ = Settle(raw, farewell) // closing it would not end it
		}
		raw.Close()
		return nil, err
	}
	return k, nil
}

// shakeHands does the whole handshake on a fresh connection.
func (k *conn) shakeHands(ctx context.Context, at Address, o Options) error {
	h := &handshake{rw: k.raw}
	if err := h.greet(); err != nil {
		return err
	}
	if at.TLS != nil {
		if err := h.ask(optionStartTLS, nil); err != nil {
			return k.giveUp(h, err)
		}
		secure := tls.Client(k.raw, at.tls())
		if err := secure.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		k.stream = secure
		h.rw = secure
	}
	var err error
	if k.session, err = h.agree(o); err != nil {
		return k.giveUp(h, err)
	}
	return nil
}

// giveUp ends a handshake that the server still believes in.
func (k *conn) giveUp(h *handshake, err error) error {
	if !errors.Is(err, ErrLost) {
		_ = k.raw.SetWriteDeadline(time.Now().Add(farewell))
		h.abort()
	}
	return err
}
