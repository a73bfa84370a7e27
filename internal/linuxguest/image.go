package linuxguest

import (
	_ "embed" // the guest's scripts
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var (
	//go:embed init.sh
	initScript []byte
	//go:embed shutdown.sh
	shutdownScript []byte
)

// image is what QEMU boots.
type image struct {
	kernel    string // a path
	initramfs []byte
}

// buildImage makes the guest from the packages. Without them the test is skipped,
// or fails when QBACKUP_REQUIRE_TOOLS is 1.
func buildImage(t testing.TB, config Config) image {
	t.Helper()
	root, err := packages()
	if err != nil {
		if os.Getenv("QBACKUP_REQUIRE_TOOLS") == "1" {
			t.Fatalf("a Linux guest is needed and not prepared: %v; run scripts/guest (QBACKUP_REQUIRE_TOOLS=1)", err)
		}
		t.Skipf("a Linux guest is not prepared: %v; run scripts/guest", err)
	}
	kernel, err := find(root, "boot/vmlinuz-*")
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := buildInitramfs(root, config)
	if err != nil {
		t.Fatalf("build the guest: %v", err)
	}
	return image{kernel, initramfs}
}

// packages returns the folder into which scripts/guest unpacked them.
func packages() (string, error) {
	cache := os.Getenv("QBACKUP_GUEST")
	if cache == "" {
		tree, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for {
			if _, err := os.Stat(filepath.Join(tree, "go.mod")); err == nil {
				break
			}
			if tree == filepath.Dir(tree) {
				return "", errors.New("the test does not run in the source tree")
			}
			tree = filepath.Dir(tree)
		}
		cache = filepath.Join(tree, ".cache", "guest")
	}
	root := filepath.Join(cache, "root")
	_, err := os.Stat(root)
	return root, err
}

// find returns the only file of the packages that a pattern matches. Newer
// packages have below usr what older ones have at the top.
func find(root, pattern string) (string, error) {
	var found []string
	for _, top := range []string{root, filepath.Join(root, "usr")} {
		list, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			return "", err
		}
		found = append(found, list...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s in %s, want one", len(found), pattern, root)
	}
	return found[0], nil
}

func buildInitramfs(root string, config Config) ([]byte, error) {
	var a archive
	for _, folder := range []string{"bin", "dev", "etc", "lib", "lib64", "lib/modules", libraryFolder, "mnt", "proc", "run", "sbin", "sys"} {
		a.add(folder, modeFolder, nil)
	}
	a.add("init", modeFile, initScript)
	a.add("sbin/shutdown", modeFile, shutdownScript)
	a.add("etc/settings", modeFile, settings(config))
	for _, program := range []string{"bin/busybox", "sbin/qemu-ga"} {
		path, err := find(root, program)
		if err != nil {
			return nil, err
		}
		if err := addFile(&a, "bin/"+filepath.Base(program), path); err != nil {
			return nil, err
		}
		if err := addLibraries(&a, root, path); err != nil {
			return nil, err
		}
	}
	if err := addModules(&a, root); err != nil {
		return nil, err
	}
	return a.finish(), nil
}

func addFile(a *archive, name, path string) error {
	contents, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.add(name, modeFile, contents)
	return nil
}

// settings are variables of the script: how many files it writes to each disk, -1
// for no end, and whether the agent runs.
func settings(config Config) []byte {
	writes := config.Writes
	switch {
	case writes == 0:
		writes = -1
	case writes < 0:
		writes = 0
	}
	var s strings.Builder
	fmt.Fprintf(&s, "writes=%d\n", writes)
	if !config.NoAgent {
		s.WriteString("agent=yes\n")
	}
	return []byte(s.String())
}
