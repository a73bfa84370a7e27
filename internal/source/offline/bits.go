package offline

import (
	"context"

	"github.com/qbackup/qbackup/bitmapscan"
	"github.com/qbackup/qbackup/internal/extent"
)

// scan prepares the reading of a bitmap whose bits may be believed.
func (m *image) scan(b bitmap) *bitmapscan.Bitmap {
	return &bitmapscan.Bitmap{
		SizeBytes:        m.disk.Size(),
		GranularityBytes: b.GranularityBytes,
		ClusterBytes:     m.header.ClusterBytes(),
		Table:            b.table,
		Data:             m.top().io,
	}
}

// dirty streams what a bitmap marks, clipped to the disk.
func (m *image) dirty(ctx context.Context, b bitmap) extent.Seq {
	return m.scan(b).Extents(ctx)
}

// countBytes returns how many bytes a bitmap's set bits stand for.
func (m *image) countBytes(ctx context.Context, b bitmap) (int64, error) {
	bits, err := m.scan(b).Count(ctx)
	return bits * b.GranularityBytes, err
}
