package configs

import (
	"errors"
	"fmt"
	"os"
)

// ErrExposed: a file with a secret may be read by others.
var ErrExposed = errors.New("others may read this secret")

// CheckSecret finds fault with a file that has a secret and that others may read.
func CheckSecret(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the file with a secret: %w", err)
	}
	if mode := info.Mode().Perm(); info.Mode().IsRegular() && mode&0o007 != 0 {
		return fmt.Errorf("%s: %w (mode %04o); run: chmod 0600 %s", path, ErrExposed, mode, path)
	}
	return nil
}
