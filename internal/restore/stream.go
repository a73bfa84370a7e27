package restore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// Stream writes all of src, zeros included, to w in ascending order. Ranges are read ahead in parallel.
func Stream(ctx context.Context, src Source, w io.Writer, o Options) error {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	type part struct {
		data []byte
		err  chan error
	}
	free := make(chan []byte, o.Workers+1) // bounds the memory: a part is read only into a free buffer
	for range o.Workers + 1 {
		free <- nil
	}
	parts := make(chan part, o.Workers)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(parts)
		for off := int64(0); off < src.Size(); off += rangeBytes {
			var buffer []byte
			select {
			case buffer = <-free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if buffer == nil {
				buffer = make([]byte, rangeBytes)
			}
			p := part{data: buffer[:min(rangeBytes, src.Size()-off)], err: make(chan error, 1)}
			group.Go(func() error {
				p.err <- readFull(ctx, src, p.data, off)
				return nil
			})
			select {
			case parts <- p:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	group.Go(func() error {
		for p := range parts {
			if err := <-p.err; err != nil {
				return err
			}
			if _, err := w.Write(p.data); err != nil {
				return fmt.Errorf("write to the stream: %w", err)
			}
			o.Stats.Written.Add(int64(len(p.data)))
			free <- p.data[:cap(p.data)]
		}
		return nil
	})
	return group.Wait()
}

func readFull(ctx context.Context, src Source, p []byte, off int64) error {
	n, err := src.ReadAtContext(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d of the point: %w", len(p), off, err)
}
