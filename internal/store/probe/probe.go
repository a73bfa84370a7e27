package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/store"
)

// Raw is the optional interface of a driver that can send what a Store never
// does. The s3 driver has it.
type Raw interface {
	// PutOver puts without the condition.
	PutOver(ctx context.Context, key string, body store.Body) error
	// PutClaiming puts with a checksum that need not be the body's.
	PutClaiming(ctx context.Context, key string, body store.Body, crc32c uint32) error
}

const (
	folder = "probe/"
	// standingKey holds an object for Light; it is made once.
	standingKey  = folder + "standing"
	writers      = 8
	bodyBytes    = 10_000
	standingText = "This object shows that the store refuses to overwrite. It stays.\n"
)

// Full checks every promise. It writes 13 objects of at most 10,000 bytes.
func Full(ctx context.Context, s store.Store) (Verdict, error) {
	v := Verdict{Time: time.Now(), ChecksumRefused: NotAsked, OverwriteRefused: NotAsked}
	p := &prober{s: s, v: &v, at: folder + strings.ToLower(rand.Text()) + "/", written: map[string]int64{}}
	for _, step := range []func(context.Context) error{p.standing, p.sequential, p.parallel, p.reads, p.checksum, p.overwrite} {
		if err := step(ctx); err != nil {
			return Verdict{}, fmt.Errorf("probe the store: %w", err)
		}
	}
	return v, nil
}

// Light checks that the store still refuses to overwrite, by offering an object
// that exists once more with its own bytes, which does no harm where it is taken.
func Light(ctx context.Context, s store.Store) (Verdict, error) {
	v := Verdict{Time: time.Now(), OneWinner: NotAsked, ReadAfterWrite: NotAsked, ChecksumRefused: NotAsked, OverwriteRefused: NotAsked}
	b, err := store.ReadAll(ctx, s, standingKey, bodyBytes)
	if errors.Is(err, store.ErrNotFound) {
		p := &prober{s: s, v: &v}
		if err = p.standing(ctx); err == nil {
			b, err = store.ReadAll(ctx, s, standingKey, bodyBytes)
		}
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("probe the store: %w", err)
	}
	// A retrying store may take equal bytes for its own earlier attempt whose
	// answer was lost, and say nil; not three times in a row.
	for range 3 {
		err = s.Put(ctx, standingKey, store.NewBody(b), store.PutOptions{})
		if err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, store.ErrExists) {
		return Verdict{}, fmt.Errorf("probe the store: %w", err)
	}
	v.set(&v.CreateOnly, err != nil, "a put to an existing object was not refused")
	return v, nil
}

// prober is one run of Full.
type prober struct {
	s       store.Store
	v       *Verdict
	at      string           // prefix of this run's keys
	written map[string]int64 // key to size
}

func (p *prober) put(ctx context.Context, key string, b []byte) error {
	err := p.s.Put(ctx, key, store.NewBody(b), store.PutOptions{})
	if err == nil {
		p.written[key] = int64(len(b))
	}
	return err
}

// body returns bytes that no other call returns.
func body() []byte {
	return []byte(strings.Repeat(rand.Text(), bodyBytes/26))
}

func (p *prober) standing(ctx context.Context) error {
	err := p.s.Put(ctx, standingKey, store.NewBody([]byte(standingText)), store.PutOptions{})
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return err
}

func (p *prober) sequential(ctx context.Context) error {
	key, first := p.at+"create", body()
	if err := p.put(ctx, key, first); err != nil {
		return err
	}
	info, err := p.s.Stat(ctx, key)
	if err != nil {
		return err
	}
	p.v.ClockSkew = time.Until(info.Modified).Round(time.Second)
	second := p.s.Put(ctx, key, store.NewBody(body()), store.PutOptions{})
	if second != nil && !errors.Is(second, store.ErrExists) {
		return second
	}
	got, err := store.ReadAll(ctx, p.s, key, 2*bodyBytes)
	if err != nil {
		return err
	}
	p.v.set(&p.v.CreateOnly, second != nil && bytes.Equal(got, first),
		"a second put to the same key was not refused, or replaced the object: the store ignores the condition")
	if p.v.CreateOnly == No {
		p.written[key] = int64(len(got))
	}
	return nil
}

func (p *prober) parallel(ctx context.Context) error {
	key := p.at + "race"
	bodies := make([][]byte, writers)
	won := make([]bool, writers)
	g, gctx := errgroup.WithContext(ctx)
	for i := range writers {
		bodies[i] = body()
		g.Go(func() error {
			err := p.s.Put(gctx, key, store.NewBody(bodies[i]), store.PutOptions{})
			won[i] = err == nil
			if errors.Is(err, store.ErrExists) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	got, err := store.ReadAll(ctx, p.s, key, 2*bodyBytes)
	if err != nil {
		return err
	}
	p.written[key] = int64(len(got))
	wins, right := 0, false
	for i := range writers {
		if won[i] {
			wins++
			right = bytes.Equal(got, bodies[i])
		}
	}
	p.v.set(&p.v.OneWinner, wins == 1 && right, "of %d parallel puts to one key %d succeeded, and exactly one should", writers, wins)
	return nil
}

// reads compares all ways of seeing objects. The many small ones are there so that
// a listing has something to leave out.
func (p *prober) reads(ctx context.Context) error {
	for i := range writers {
		if err := p.put(ctx, fmt.Sprintf("%slist-%d", p.at, i), body()[:i]); err != nil {
			return err
		}
	}
	key, want := p.at+"range", body()
	if err := p.put(ctx, key, want); err != nil {
		return err
	}
	problem, err := p.compare(ctx, key, want)
	if err != nil {
		return err
	}
	p.v.set(&p.v.ReadAfterWrite, problem == "", "%s", problem)
	return nil
}

// compare returns a sentence about the first difference, or none.
func (p *prober) compare(ctx context.Context, key string, want []byte) (string, error) {
	for _, r := range [][2]int{{0, len(want)}, {0, 1}, {1, 4095}, {4095, 4097}, {len(want) - 1, len(want)}} {
		got, err := p.read(ctx, key, int64(r[0]), int64(r[1]-r[0]))
		if err != nil && !broken(err) {
			return "", err
		}
		if err != nil || !bytes.Equal(got, want[r[0]:r[1]]) {
			return fmt.Sprintf("bytes %d to %d of an object do not read back (%v)", r[0], r[1], err), nil
		}
	}
	listed := map[string]int64{}
	for info, err := range p.s.List(ctx, p.at) {
		if err != nil && !broken(err) {
			return "", err
		}
		if err != nil {
			return fmt.Sprintf("the listing is wrong: %v", err), nil
		}
		listed[info.Key] = info.Size
	}
	for key, size := range p.written {
		info, err := p.s.Stat(ctx, key)
		if err != nil && !broken(err) {
			return "", err
		}
		if err != nil || info.Size != size {
			return fmt.Sprintf("an object of %d bytes looks like %d (%v)", size, info.Size, err), nil
		}
		if got, ok := listed[key]; !ok || got != size {
			return "the listing leaves out an object that was just written, or tells another size", nil
		}
	}
	if len(listed) != len(p.written) {
		return "the listing has objects that nobody wrote", nil
	}
	return "", nil
}

// broken reports that an error is itself a broken promise, not a failure to ask.
func broken(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrRange) || errors.Is(err, store.ErrCorrupt)
}

func (p *prober) read(ctx context.Context, key string, off, n int64) ([]byte, error) {
	r, err := p.s.Get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func (p *prober) checksum(ctx context.Context) error {
	raw, ok := store.As[Raw](p.s)
	if !ok {
		return nil
	}
	key := p.at + "checksum"
	b := store.NewBody(body())
	sent := raw.PutClaiming(ctx, key, b, b.CRC32C()^1)
	if errors.Is(sent, store.ErrTransient) || ctx.Err() != nil {
		return sent
	}
	_, err := p.s.Stat(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	p.v.set(&p.v.ChecksumRefused, sent != nil && err != nil,
		"a body with a wrong checksum was accepted, so damage on the way goes unnoticed until it is read")
	return nil
}

func (p *prober) overwrite(ctx context.Context) error {
	raw, ok := store.As[Raw](p.s)
	if !ok {
		return nil
	}
	key := p.at + "over"
	if err := p.put(ctx, key, body()); err != nil {
		return err
	}
	err := raw.PutOver(ctx, key, store.NewBody(body()))
	switch {
	case err == nil:
		// Not a problem to report: few services refuse this without a policy.
		p.v.OverwriteRefused = No
	case errors.Is(err, store.ErrTransient) || ctx.Err() != nil:
		return err
	default:
		p.v.OverwriteRefused = Yes
	}
	return nil
}
