package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestAConnectionThatWasLeftIsSettled(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", image, "1M")
	at := qemuNBD(t, "-f", "raw", "--shared", "10", image)
	greet := func(c net.Conn) error {
		_, err := io.ReadFull(c, make([]byte, greetingBytes))
		return err
	}
	flags := be(uint32(flagFixedNewstyle | flagNoZeroes))
	for name, c := range map[string]struct {
		greeted bool
		sent    []byte
	}{
		"nothing was said":         {},
		"nothing but flags":        {true, flags},
		"an option":                {true, append(flags, be(uint64(magicOption), uint32(optionStructuredReply), uint32(0))...)},
		"the beginning of one":     {true, append(flags, be(uint64(magicOption), uint32(optionGo), uint32(200))...)},
		"half of the flags":        {true, flags[:2]},
		"an option for an unknown": {true, append(flags, be(uint64(magicOption), uint32(optionGo), uint32(7), uint32(1), uint8('x'), uint16(0))...)},
	} {
		conn, err := net.Dial(at.Network, at.Address)
		if err != nil {
			t.Fatal(err)
		}
		if c.greeted {
			if err := greet(conn); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conn.Write(c.sent); err != nil {
			t.Fatal(err)
		}
		if err := Settle(conn, 5*time.Second); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The server has hung up.
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server still believes in it", name)
		}
		conn.Close()
	}
}

func TestAConnectionThatIsUsedStaysAsItIs(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", image, "1M")
	k, err := connect(t.Context(), qemuNBD(t, "-f", "raw", image), Options{Contexts: []string{Allocation}, Timeout: time.Minute}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer k.raw.Close()
	// A reader that died had asked for a lot.
	for range 12 {
		if _, err := k.raw.Write(be(uint32(magicRequest), uint16(0), uint16(commandRead), uint64(5), uint64(0), uint32(1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := Settle(k.raw, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	_ = k.raw.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := io.Copy(io.Discard, k.raw); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it was ended: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := Settle(c, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
