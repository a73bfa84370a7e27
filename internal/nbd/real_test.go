package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/guest"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/testtool"
)

// readWhole reads an export in parallel.
func readWhole(t testing.TB, c *Client) []byte {
	t.Helper()
	p := make([]byte, c.Size())
	const step = 1 << 20
	var group sync.WaitGroup
	for start := range int64(3) {
		group.Go(func() {
			for off := start * step; off < c.Size(); off += 3 * step {
				part := p[off:min(off+step, c.Size())]
				if n, err := c.ReadAt(part, off); n != len(part) || err != nil {
					t.Errorf("read %d at %d: %d, %v", len(part), off, n, err)
					return
				}
			}
		})
	}
	group.Wait()
	return p
}

func TestWhatQEMUExportsIsWhatLibnbdReads(t *testing.T) {
	const size = 24<<20 + 512
	contexts := []string{Allocation, DirtyBitmap("b")}
	for seed := range uint64(testtool.Count(2, 20)) {
		image := guestImage(t, 2*seed+1, size, 4096<<(seed%5))
		at := qemuNBD(t, "-r", "-f", "qcow2", "-x", "vda", "-B", "b", image)
		c := mustDial(t, at, Options{Export: "vda", Contexts: contexts})
		if c.Connections() != defaultConnections || c.Size() != size {
			t.Fatalf("%d connections, %d bytes", c.Connections(), c.Size())
		}
		copied := filepath.Join(folder(t), "copy")
		testtool.Run(t, "nbdcopy", at.uri("vda"), copied)
		want, err := os.ReadFile(copied)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readWhole(t, c), want) {
			t.Errorf("seed %d: other bytes than nbdcopy's", seed)
		}
		for _, name := range contexts {
			if got, want := collectStatus(t, c, name, 0, size), nbdinfoMap(t, at.uri("vda"), name); !slices.Equal(got, want) {
				t.Errorf("seed %d, %s:\n got %v\nwant %v", seed, name, got, want)
			}
		}
		for e, err := range c.Zeros(t.Context(), 0, size) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Zero && len(bytes.Trim(want[e.Off:e.End()], "\x00")) > 0 {
				t.Errorf("seed %d: %v is not zero", seed, e)
			}
		}
		dirty, err := extent.Total(c.Dirty(t.Context(), DirtyBitmap("b"), 0, size))
		if err != nil || dirty == 0 || dirty == size {
			t.Errorf("seed %d: %d bytes are dirty, %v", seed, dirty, err)
		}
	}
}

// TestABitmapOfManyExtentsIsReadWhole has more of them than QEMU sends in one
// reply, 131,072.
func TestABitmapOfManyExtentsIsReadWhole(t *testing.T) {
	const granule, count = 512, 200_000
	const size = 2*granule*count + granule
	path := filepath.Join(folder(t), "d.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size))
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(granule), path, "b")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk, err := guest.Open(qcow2.NewOSFile(f))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(count) {
		if err := disk.Discard((2*i+1)*granule, granule); err != nil { // sets a bit and writes nothing
			t.Fatal(err)
		}
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	at := qemuNBD(t, "-r", "-f", "qcow2", "-B", "b", path)
	c := mustDial(t, at, Options{Contexts: []string{Allocation, DirtyBitmap("b")}})
	i := int64(0)
	for e, err := range c.Dirty(t.Context(), DirtyBitmap("b"), 0, c.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if want := (extent.Extent{Off: (2*i + 1) * granule, Len: granule}); e != want {
			t.Fatalf("extent %d is %v, want %v", i, e, want)
		}
		i++
	}
	if i != count {
		t.Errorf("%d extents, want %d", i, count)
	}
}

func TestWhatQEMUDoesNotHaveIsNamed(t *testing.T) {
	path := filepath.Join(folder(t), "d.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	at := qemuNBD(t, "-r", "-f", "qcow2", "-x", "vda", path)
	_, err := Dial(t.Context(), at, Options{Export: "vdb"})
	wantError(t, err, ErrNoExport)
	_, err = Dial(t.Context(), at, Options{Export: "vdb", Contexts: []string{Allocation}})
	wantError(t, err, ErrNoExport)
	_, err = Dial(t.Context(), at, Options{Export: "vda", Contexts: []string{Allocation, DirtyBitmap("b")}})
	wantError(t, err, ErrNoContext)
	mustDial(t, at, Options{Export: "vda", Contexts: []string{Allocation}})
}

func TestAStorageDaemonExportsSeveralBitmaps(t *testing.T) {
	const size = 8 << 20
	image := guestImage(t, 77, size, 65536)
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "4096", image, "c")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 1M 4k", image)
	testtool.Run(t, "qemu-img", "bitmap", "--disable", image, "b")
	testtool.Run(t, "qemu-img", "bitmap", "--disable", image, "c")
	at := Address{Network: "unix", Address: filepath.Join(folder(t), "s")}
	serve(t, at, "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=f,filename="+image, "--blockdev", "driver=qcow2,node-name=d,file=f",
		"--nbd-server", "addr.type=unix,addr.path="+at.Address,
		"--export", "type=nbd,id=one,node-name=d,name=one,bitmaps.0=b,bitmaps.1=c", "--export", "type=nbd,id=two,node-name=d,name=two")
	one := mustDial(t, at, Options{Export: "one", Contexts: []string{DirtyBitmap("c"), DirtyBitmap("b"), Allocation}})
	two := mustDial(t, at, Options{Export: "two", Contexts: []string{Allocation}})
	if _, err := Dial(t.Context(), at, Options{Export: "two", Contexts: []string{DirtyBitmap("b")}}); !errors.Is(err, ErrNoContext) {
		t.Errorf("bitmap of another export: %v", err)
	}
	want := []extent.Extent{{Off: 1 << 20, Len: 4096}}
	if got, err := extent.Collect(one.Dirty(t.Context(), DirtyBitmap("c"), 0, size)); err != nil || !slices.Equal(got, want) {
		t.Errorf("dirty: %v, %v", got, err)
	}
	if got, want := collectStatus(t, one, DirtyBitmap("b"), 0, size), nbdinfoMap(t, at.uri("one"), DirtyBitmap("b")); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := collectStatus(t, one, Allocation, 0, size), collectStatus(t, two, Allocation, 0, size); !slices.Equal(got, want) {
		t.Errorf("allocation: %v by one export, %v by the other", got, want)
	}
	if !bytes.Equal(readWhole(t, one), readWhole(t, two)) {
		t.Error("two exports of one disk differ")
	}
}

func TestTheThirtyThirdMebibyteIsAskedForSeparately(t *testing.T) {
	path := filepath.Join(folder(t), "d")
	if err := os.WriteFile(path, pattern(0, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c := mustDial(t, qemuNBD(t, "-r", "-f", "raw", path), Options{RequestBytes: 1 << 40})
	wantPattern(t, c, 0, 40<<20)
}

func TestAServerThatIsKilledIsLost(t *testing.T) {
	at := Address{Network: "unix", Address: filepath.Join(folder(t), "s")}
	cmd := serve(t, at, "nbdkit", "-f", "-U", at.Address, "--filter=delay", "pattern", "1G", "rdelay=20ms")
	c := mustDial(t, at, Options{Contexts: []string{Allocation}})
	var group sync.WaitGroup
	started := make(chan struct{}, 10)
	for range 4 {
		group.Go(func() {
			p := make([]byte, 4<<20)
			for {
				if _, err := c.ReadAt(p, 0); err != nil {
					wantError(t, err, ErrLost)
					return
				}
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	<-started
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	wantError(t, c.Err(), ErrLost)
	_, err := extent.Collect(c.Zeros(t.Context(), 0, c.Size()))
	wantError(t, err, ErrLost)
}

func TestNbdkitWithSimpleReplies(t *testing.T) {
	at := nbdkit(t, "--no-sr", "pattern", "10M")
	c := mustDial(t, at, Options{})
	structured := mustDial(t, nbdkit(t, "pattern", "10M"), Options{Contexts: []string{Allocation}})
	if !bytes.Equal(readWhole(t, c), readWhole(t, structured)) {
		t.Error("simple and structured replies differ")
	}
	_, err := Dial(t.Context(), at, Options{Contexts: []string{Allocation}})
	wantError(t, err, ErrNoContext)
}

func TestNbdkitWithErrors(t *testing.T) {
	trigger := filepath.Join(folder(t), "on")
	for _, more := range [][]string{nil, {"--no-sr"}} {
		c := mustDial(t, nbdkit(t, append(more, "--filter=error", "pattern", "10M", "error-pread=ENOSPC", "error-pread-rate=100%", "error-pread-file="+trigger)...), Options{})
		p := make([]byte, 1<<20)
		if _, err := c.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(trigger, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := c.ReadAt(p, 0)
		var refused *Error
		if !errors.As(err, &refused) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error %v", err)
		}
		if err := os.Remove(trigger); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(p, 0); err != nil || c.Err() != nil {
			t.Errorf("afterwards: %v, %v", err, c.Err())
		}
	}
}

func TestNbdkitWithBlocks(t *testing.T) {
	plain := readWhole(t, mustDial(t, nbdkit(t, "pattern", "10M"), Options{}))
	for _, policy := range []string{"blocksize-minimum=512", "blocksize-minimum=4096", "blocksize-minimum=65536"} {
		at := nbdkit(t, "--filter=blocksize-policy", "pattern", "10M", policy, "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error")
		c := mustDial(t, at, Options{Contexts: []string{Allocation}})
		if !bytes.Equal(readWhole(t, c), plain) {
			t.Errorf("%s: other bytes", policy)
		}
		for _, r := range [][2]int64{{1, 1}, {511, 2}, {4095, 70_000}, {65_535, 300_000}, {10<<20 - 1, 1}} {
			p := make([]byte, r[1])
			if _, err := c.ReadAt(p, r[0]); err != nil || !bytes.Equal(p, plain[r[0]:][:r[1]]) {
				t.Errorf("%s: read %v: %v", policy, r, err)
			}
			if got := collectStatus(t, c, Allocation, r[0], r[1]); !slices.Equal(got, []StatusExtent{{Off: r[0], Len: r[1]}}) {
				t.Errorf("%s: status %v: %v", policy, r, got)
			}
		}
	}
}

func TestNbdkitWithoutManyConnections(t *testing.T) {
	c := mustDial(t, nbdkit(t, "--filter=multi-conn", "pattern", "10M", "multi-conn-mode=disable"), Options{Connections: 4})
	if c.Connections() != 1 {
		t.Errorf("%d connections", c.Connections())
	}
	readWhole(t, c)
}

func TestASlowServerIsWaitedForAndCanBeLeft(t *testing.T) {
	c := mustDial(t, nbdkit(t, "--filter=delay", "memory", "10M", "rdelay=300ms", "delay-extents=300ms"), Options{Contexts: []string{Allocation}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := extent.Collect(c.Zeros(ctx, 0, c.Size()))
	wantError(t, err, context.DeadlineExceeded)
	p := make([]byte, 10<<20)
	start := time.Now()
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	// 40 requests in 16 places.
	if took := time.Since(start); took < 600*time.Millisecond {
		t.Errorf("took %v", took)
	}
	done := make(chan error)
	go func() {
		_, err := c.ReadAt(p, 0)
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	start = time.Now()
	c.Close()
	wantError(t, <-done, ErrClosed)
	if took := time.Since(start); took > 200*time.Millisecond {
		t.Errorf("Close took %v", took)
	}
}

func TestServersWithTLS(t *testing.T) {
	const size = 5 << 20
	path := filepath.Join(folder(t), "d")
	if err := os.WriteFile(path, pattern(0, size), 0o600); err != nil {
		t.Fatal(err)
	}
	ours, theirs := newAuthority(t), newAuthority(t)
	certificates := ours.folder(t)
	with := func(at Address, config *tls.Config) Address { at.TLS = config; return at }
	good := &tls.Config{RootCAs: ours.pool, ServerName: "localhost"}

	port := freePort(t)
	overTCP := Address{Network: "tcp", Address: "localhost:" + port}
	creds := "tls-creds-x509,id=t,endpoint=server,verify-peer=%s,dir=" + certificates
	serve(t, overTCP, "qemu-nbd", "-t", "-e", "16", "-b", "localhost", "-p", port, "-r", "-f", "raw", "--object", fmt.Sprintf(creds, "off"), "--tls-creds", "t", path)
	overUnix := qemuNBD(t, "-r", "-f", "raw", "--object", fmt.Sprintf(creds, "on"), "--tls-creds", "t", path)
	kit := nbdkit(t, "--tls=require", "--tls-certificates="+certificates, "-r", "file", path)
	withoutTLS := qemuNBD(t, "-r", "-f", "raw", path)

	for name, at := range map[string]Address{
		"QEMU on TCP":                          with(overTCP, &tls.Config{RootCAs: ours.pool}), // the name is that of the address
		"QEMU on TCP, TLS 1.2":                 with(overTCP, &tls.Config{RootCAs: ours.pool, MaxVersion: tls.VersionTLS12}),
		"QEMU on a socket, wants to know us":   with(overUnix, &tls.Config{RootCAs: ours.pool, ServerName: "localhost", Certificates: []tls.Certificate{ours.leaf(t)}}),
		"nbdkit on a socket":                   with(kit, good),
		"nbdkit, name of no interest":          with(kit, &tls.Config{InsecureSkipVerify: true}),
		"QEMU without TLS, to compare with it": withoutTLS,
	} {
		t.Run(name, func(t *testing.T) {
			c := mustDial(t, at, Options{Contexts: []string{Allocation}})
			if c.Connections() != defaultConnections {
				t.Errorf("%d connections", c.Connections())
			}
			if !bytes.Equal(readWhole(t, c), pattern(0, size)) {
				t.Error("wrong bytes")
			}
			if got := collectStatus(t, c, Allocation, 0, size); len(got) == 0 || got[len(got)-1].End() != size {
				t.Errorf("status %v", got)
			}
		})
	}

	_, err := Dial(t.Context(), with(overTCP, nil), Options{})
	wantError(t, err, ErrTLSRequired)
	_, err = Dial(t.Context(), with(kit, nil), Options{})
	wantError(t, err, ErrTLSRequired)
	_, err = Dial(t.Context(), with(withoutTLS, good), Options{})
	wantError(t, err, ErrTLSRefused)
	_, err = Dial(t.Context(), with(nbdkit(t, "--tls=off", "pattern", "1M"), good), Options{})
	wantError(t, err, ErrTLSRefused)
	var unknown *tls.CertificateVerificationError
	_, err = Dial(t.Context(), with(overTCP, &tls.Config{RootCAs: theirs.pool}), Options{})
	if !errors.As(err, &unknown) {
		t.Errorf("an authority that is not ours: %v", err)
	}
	var otherName x509.HostnameError
	_, err = Dial(t.Context(), with(overTCP, &tls.Config{RootCAs: ours.pool, ServerName: "elsewhere"}), Options{})
	if !errors.As(err, &otherName) {
		t.Errorf("a certificate of another name: %v", err)
	}
	c, err := Dial(t.Context(), with(overUnix, good), Options{})
	if err == nil {
		c.Close()
		t.Error("QEMU took a client without a certificate")
	}
}

// TestBytesBehindStartTLSAreNotBelieved has somebody on the wire who answers
// STARTTLS and the next option in one go, in plain text.
func TestBytesBehindStartTLSAreNotBelieved(t *testing.T) {
	s := &script{size: 1 << 20, onOption: func(s *scriptSession, option uint32, _ []byte) bool {
		if option != optionStartTLS {
			return false
		}
		s.put(optionReply(option, replyAck, nil), optionReply(optionStructuredReply, replyAck, nil), s.infos(), optionReply(optionGo, replyAck, nil))
		_, _ = io.Copy(io.Discard, s.Conn)
		panic(hangUp{})
	}}
	at := s.listen(t)
	at.TLS = &tls.Config{InsecureSkipVerify: true}
	_, err := Dial(t.Context(), at, Options{})
	if err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("error %v", err)
	}
}
