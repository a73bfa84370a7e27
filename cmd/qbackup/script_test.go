package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"qbackup": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		// [missing:TOOL] is for tools that a user's machine may lack; where they are required the script goes on, and fails.
		Condition: func(condition string) (bool, error) {
			tool, ok := strings.CutPrefix(condition, "missing:")
			if !ok {
				return false, fmt.Errorf("unknown condition %s", condition)
			}
			_, err := exec.LookPath(tool)
			return err != nil && os.Getenv("QBACKUP_REQUIRE_TOOLS") != "1", nil
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("QBACKUP_STATE_DIR", e.WorkDir+"/state")
			e.Setenv("CACHE_DIRECTORY", e.WorkDir+"/cache")
			return nil
		},
	})
}
