package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// churn writes to an image as a guest would, through real QEMU: data, zeroes and discards of random place and size.
// Everything follows from the seed.
type churn struct {
	image     string
	sizeBytes int64
	cluster   int64
	random    *rand.Rand
}

func newChurn(image string, sizeBytes, cluster int64, seed uint64) *churn {
	return &churn{image, sizeBytes, cluster, rand.New(rand.NewPCG(seed, 0xc4))}
}

// write does n operations in one QEMU process.
func (c *churn) write(t *testing.T, n int) {
	t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for range n {
		args = append(args, "-c", c.operation())
	}
	testtool.Run(t, "qemu-io", append(args, c.image)...)
}

// compress writes n compressed clusters to an image that is still empty. It is done in a process of its own and before
// anything else, because QEMU 7.2 may put data over a compressed cluster when both are written by one process.
func (c *churn) compress(t *testing.T, n int) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, cluster := range c.random.Perm(int(c.sizeBytes / c.cluster))[:n] {
		args = append(args, "-c", fmt.Sprintf("write -c -P %d %d %d", c.random.IntN(255)+1, int64(cluster)*c.cluster, c.cluster))
	}
	testtool.Run(t, "qemu-io", append(args, c.image)...)
}

// place is a random range, aligned to unit, of at most limit bytes.
func (c *churn) place(unit, limit int64) (off, n int64) {
	n = min((c.random.Int64N(limit/unit)+1)*unit, c.sizeBytes/unit*unit)
	off = c.random.Int64N((c.sizeBytes-n)/unit+1) * unit
	return off, n
}

func (c *churn) operation() string {
	switch c.random.IntN(9) {
	case 5, 6:
		off, n := c.place(512, 4*c.cluster)
		return fmt.Sprintf("write -z %d %d", off, n)
	case 7:
		off, n := c.place(c.cluster, 8*c.cluster)
		return fmt.Sprintf("write -z -u %d %d", off, n)
	case 8:
		off, n := c.place(c.cluster, 8*c.cluster)
		return fmt.Sprintf("discard %d %d", off, n)
	default:
		off, n := c.place(512, 4*c.cluster)
		return fmt.Sprintf("write -P %d %d %d", c.random.IntN(255)+1, off, n)
	}
}
