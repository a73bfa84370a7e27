package metrics

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Listen says where and to whom metrics are served.
type Listen struct {
	Address string // HOST:PORT or unix:PATH
	// Certificate and Key are files; without, there is no TLS.
	Certificate, Key string
	// User and Password are asked for; without a user, nobody is.
	User, Password string
}

// ErrListen: metrics cannot be served at that address.
var ErrListen = errors.New("metrics are not served")

const (
	readTimeout = 10 * time.Second
	endTimeout  = 3 * time.Second
	socketMode  = 0o660
)

// Server serves /metrics and /healthz.
type Server struct {
	listener net.Listener
	server   http.Server
	ended    chan struct{}
}

// Serve begins to serve, and returns. Failures from then on are told to say.
func Serve(l Listen, c prometheus.Collector, say func(error)) (*Server, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	listener, err := l.open()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	s := &Server{listener: listener, ended: make(chan struct{})}
	s.server = http.Server{Handler: l.guarded(mux), ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout}
	go func() {
		defer close(s.ended)
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			say(fmt.Errorf("%w any more: %w", ErrListen, err))
		}
	}()
	return s, nil
}

// Address is where the server listens.
func (s *Server) Address() net.Addr { return s.listener.Addr() }

// Close ends the server; scrapes that are under way may end.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.server.Close())
	}
	<-s.ended
	return err
}

func (l Listen) open() (net.Listener, error) {
	listener, err := l.listen()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w: %s is in use; another agent may serve there, or choose another address with metrics.listen", ErrListen, l.Address)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	case l.Certificate == "":
		return listener, nil
	}
	pair, err := tls.LoadX509KeyPair(l.Certificate, l.Key)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: read the certificate and its key: %w", ErrListen, err), listener.Close())
	}
	return tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}), nil
}

func (l Listen) listen() (net.Listener, error) {
	path, unix := strings.CutPrefix(l.Address, "unix:")
	if !unix {
		return net.Listen("tcp", l.Address)
	}
	// A socket that nobody answers is one that a dead process left.
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, syscall.EADDRINUSE
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// guarded asks for name and password, where there are any.
func (l Listen) guarded(next http.Handler) http.Handler {
	if l.User == "" {
		return next
	}
	want := sha256.Sum256([]byte(l.User + "\x00" + l.Password))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		// Hashes have one length: the time of a comparison says nothing of either.
		if got := sha256.Sum256([]byte(user + "\x00" + password)); subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="qbackup"`)
			http.Error(w, "name and password, please", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// WriteFile writes a file for node_exporter's textfile collector, which sees the old one
// or the new one. It has no histograms: what one process counts is gone with it.
func WriteFile(path string, s Source) error {
	s.Store, s.Running = nil, nil
	registry := prometheus.NewRegistry()
	if err := registry.Register(New(s)); err != nil {
		return err
	}
	if err := prometheus.WriteToTextfile(path, registry); err != nil {
		return fmt.Errorf("write the metrics file %s: %w", path, err)
	}
	return nil
}
