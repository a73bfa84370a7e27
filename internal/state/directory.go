package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Environment is what the choice of a directory depends on. Tests replace it.
type Environment struct {
	Get  func(name string) string // as os.Getenv
	Root bool                     // the process runs as root
	Home string                   // the user's home directory, "" when there is none
}

// HostEnvironment describes the running process.
func HostEnvironment() Environment {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return Environment{Get: os.Getenv, Root: os.Geteuid() == 0, Home: home}
}

// Dir returns the state directory: the flag --state-dir, else
// QBACKUP_STATE_DIR, else systemd's STATE_DIRECTORY (the first of several),
// else /var/lib/qbackup for root, $XDG_STATE_HOME/qbackup or
// ~/.local/state/qbackup for others. The result is absolute.
func Dir(flag string, env Environment) (string, error) {
	if dir := chosen(flag, env); dir != "" {
		return absolute(dir)
	}
	if dir := firstPath(env.Get("STATE_DIRECTORY")); dir != "" {
		return absolute(dir)
	}
	return fallback(env, "/var/lib", "XDG_STATE_HOME", ".local/state", "--state-dir or QBACKUP_STATE_DIR")
}

// CacheDir returns the directory for what can be fetched again: systemd's
// CACHE_DIRECTORY, else the folder "cache" of a state directory that was chosen
// by flag or QBACKUP_STATE_DIR (so that two such instances share nothing), else
// /var/cache/qbackup for root, $XDG_CACHE_HOME/qbackup or ~/.cache/qbackup.
func CacheDir(flag string, env Environment) (string, error) {
	if dir := firstPath(env.Get("CACHE_DIRECTORY")); dir != "" {
		return absolute(dir)
	}
	if dir := chosen(flag, env); dir != "" {
		return absolute(filepath.Join(dir, cacheFolder))
	}
	return fallback(env, "/var/cache", "XDG_CACHE_HOME", ".cache", "--state-dir or CACHE_DIRECTORY")
}

// RuntimeDir returns the directory for sockets: systemd's RUNTIME_DIRECTORY, else
// the folder "run" of a state directory that was chosen by flag or
// QBACKUP_STATE_DIR, else /run/qbackup for root, $XDG_RUNTIME_DIR/qbackup for
// others, and at last a folder of the user's in the one for temporary files.
func RuntimeDir(flag string, env Environment) (string, error) {
	if dir := firstPath(env.Get("RUNTIME_DIRECTORY")); dir != "" {
		return absolute(dir)
	}
	if dir := chosen(flag, env); dir != "" {
		return absolute(filepath.Join(dir, runtimeFolder))
	}
	if env.Root {
		return "/run/qbackup", nil
	}
	if dir := env.Get("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "qbackup"), nil
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("qbackup-%d", os.Geteuid())), nil
}

// ScratchDir returns the directory for what QEMU keeps while a running machine is
// backed up: a folder of the state directory, on the host's own disk.
func ScratchDir(flag string, env Environment) (string, error) {
	dir, err := Dir(flag, env)
	return filepath.Join(dir, scratchFolder), err
}

func chosen(flag string, env Environment) string {
	if flag != "" {
		return flag
	}
	return env.Get("QBACKUP_STATE_DIR")
}

func fallback(env Environment, system, variable, underHome, hint string) (string, error) {
	if env.Root {
		return filepath.Join(system, "qbackup"), nil
	}
	// The XDG specification says to ignore a relative value.
	if dir := env.Get(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "qbackup"), nil
	}
	if env.Home == "" {
		return "", fmt.Errorf("no home directory to keep files in: set %s", hint)
	}
	return absolute(filepath.Join(env.Home, underHome, "qbackup"))
}

func firstPath(list string) string {
	first, _, _ := strings.Cut(list, ":")
	return first
}

func absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", dir, err)
	}
	return abs, nil
}

// makeFolder creates a folder and its parents, and syncs the parent, so that a file
// synced inside it later can be found after a crash.
func makeFolder(dir string, mode fs.FileMode) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeFolder(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
