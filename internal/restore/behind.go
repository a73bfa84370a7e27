package restore

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
)

const (
	// behindMinBytes is the least write that is followed: tables of images come in small ones and are written again.
	behindMinBytes = 64 << 10
	// behindBytes is what may be on its way to the disk.
	behindBytes = 64 << 20
)

// writeBehind sends what is written into a file on its way to the disk at once, and takes it out of the page cache when it
// has arrived. So a restore does not fill the memory of the host, which other machines need, the same few pages serve
// all of it, and the sync at the end has little left to wait for. Leaving it to the kernel cost ten times the processor
// time for writing in a virtual host, where every page used for the first time is expensive.
//
// It says nothing about durability: that is what the sync at the end is for.
type writeBehind struct {
	f        *os.File
	maxBytes int64 // that may be on their way

	mu      sync.Mutex
	sent    []stretch // oldest first
	bytes   int64     // of sent
	refused bool      // this kind of file cannot do it
}

func newWriteBehind(f *os.File) *writeBehind { return &writeBehind{f: f, maxBytes: behindBytes} }

// stretch is bytes [off, off+n) of the file.
type stretch struct{ off, n int64 }

// WriteAt may be called in parallel for different ranges. An error may be about an earlier write.
func (w *writeBehind) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.f.WriteAt(p, off)
	if err != nil || n < behindMinBytes {
		return n, err
	}
	if err := w.follow(stretch{off, int64(n)}); err != nil {
		return 0, err
	}
	return n, nil
}

// follow sends a stretch and waits for the oldest ones when there are too many.
func (w *writeBehind) follow(s stretch) error {
	w.mu.Lock()
	refused := w.refused
	w.mu.Unlock()
	if refused {
		return nil
	}
	if err := w.sync(s, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return err
	}
	for _, old := range w.push(s) {
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := w.sync(old, wait); err != nil {
			return err
		}
		_ = unix.Fadvise(int(w.f.Fd()), old.off, old.n, unix.FADV_DONTNEED) // a refusal costs memory only
	}
	return nil
}

// push gives the stretches that the caller is to wait for.
func (w *writeBehind) push(s stretch) (old []stretch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, s)
	w.bytes += s.n
	for w.bytes > w.maxBytes {
		old = append(old, w.sent[0])
		w.bytes -= w.sent[0].n
		w.sent = w.sent[1:]
	}
	return old
}

// sync is sync_file_range(2). A failure to write is reported by it once and not by the fsync that comes later, so it must
// not get lost.
func (w *writeBehind) sync(s stretch, flags int) error {
	err := unix.SyncFileRange(int(w.f.Fd()), s.off, s.n, flags)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) || errors.Is(err, unix.ENOTSUP) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.refused = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %d bytes at %d to the disk: %w", s.n, s.off, err)
	}
	return nil
}

// imageFile is the file of an image under construction, written with writeBehind.
type imageFile struct {
	qcow2.File
	behind *writeBehind
}

func (f imageFile) WriteAt(p []byte, off int64) (int, error) { return f.behind.WriteAt(p, off) }
