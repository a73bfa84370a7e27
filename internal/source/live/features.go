package live

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source"
)

// features are what differs between the versions of QEMU. They are read from what
// it says of itself: distributions backport, and version numbers lie.
type features struct {
	flat                bool // query-named-block-nodes without nesting, 5.0
	blockExports        bool // block-export-add, 5.2; before, nbd-server-add
	maxConnections      bool // of nbd-server-start, 5.2
	graph               bool // x-debug-query-block-graph
	devices             bool // query-block
	status              bool // query-status; not in qemu-storage-daemon
	migrate             bool // query-migrate
	passFile            bool // getfd; not in qemu-storage-daemon
	removeInTransaction bool // 4.2
}

// needed are the commands without which there is no consistent point in time.
var needed = []string{
	"transaction", "block-dirty-bitmap-add", "block-dirty-bitmap-merge", "blockdev-backup", "blockdev-add", "job-dismiss", "nbd-server-start",
}

func learnFeatures(ctx context.Context, m *qmp.Monitor) (features, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	schema, err := m.Schema(ctx)
	if err != nil {
		return features{}, fmt.Errorf("ask QEMU what it can do: %w", err)
	}
	for _, command := range needed {
		if !schema.Command(command) {
			return features{}, &source.UsableError{Path: fmt.Sprintf("QEMU %s", m.Version()),
				Err:  fmt.Errorf("%w: it has no command %s", source.ErrMonitor, command),
				Hint: "a running machine can be backed up with QEMU 4.2 or newer; shut it down and back up its images"}
		}
	}
	return features{
		flat:                schema.Argument("query-named-block-nodes", "flat"),
		blockExports:        schema.Command("block-export-add"),
		maxConnections:      schema.Argument("nbd-server-start", "max-connections"),
		graph:               schema.Command("x-debug-query-block-graph"),
		devices:             schema.Command("query-block"),
		status:              schema.Command("query-status"),
		migrate:             schema.Command("query-migrate"),
		passFile:            schema.Command("getfd"),
		removeInTransaction: schema.Value("transaction", "actions/type", "block-dirty-bitmap-remove"),
	}, nil
}
