// Command qbackup backs up the disks of QEMU machines incrementally, from their dirty bitmaps, as complete restore points
// in a folder or an object store, and restores them.
//
// There is one file per command: flags, wiring, and what is printed as text or JSON. What a command does is done by the
// packages below; what it may end with stands in exit.go.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/qbackup/qbackup/internal/store/observe"
)

// memoryLimit is what the garbage collector aims to stay under, so that the program fits into 256 MiB.
const memoryLimit = 208 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: arguments and streams in, exit code out.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, storeStats: new(observe.Stats)}
	root := p.rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var plugin *nagiosError
	if errors.As(err, &plugin) {
		return plugin.code
	}
	// The flag may stand after the one that could not be read.
	p.json = p.json || errors.Is(err, errUsage) && slices.Contains(args, "--json")
	code := exitCode(ctx, err)
	p.reportError(err, code)
	return code
}
