package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestConnectionsCanBeKept(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", image, "1M")
	at := qemuNBD(t, "-f", "raw", image)
	var kept []*os.File
	c, err := Dial(t.Context(), at, Options{Connections: 1, Whole: true, Keep: func(conn net.Conn) error {
		f, err := conn.(*net.UnixConn).File()
		kept = append(kept, f)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.ReadAt(make([]byte, 1<<20), 0); n != 1<<20 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if err := c.Close(); err != nil || len(kept) != 1 {
		t.Fatalf("%d kept, %v", len(kept), err)
	}
	// The server still believes in the connection: nothing has told it otherwise.
	conn, err := net.FileConn(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer kept[0].Close()
	if _, err := conn.Write(be(uint32(magicRequest), uint16(commandWhole), uint16(commandRead), uint64(77), uint64(0), uint32(512))); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, structuredBytes)
	if _, err := io.ReadFull(conn, head); err != nil || !bytes.Equal(head[8:16], be(uint64(77))) {
		t.Errorf("answered %x, %v", head, err)
	}
}

func TestAConnectionThatCannotBeKeptIsNotMade(t *testing.T) {
	refused := errors.New("refused")
	image := filepath.Join(t.TempDir(), "a.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", image, "1M")
	if _, err := Dial(t.Context(), qemuNBD(t, "-f", "raw", image), Options{Keep: func(net.Conn) error { return refused }}); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
}
