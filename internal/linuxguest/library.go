package linuxguest

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// libraryFolder is one in which Debian's dynamic linker looks.
const libraryFolder = "lib/x86_64-linux-gnu"

// addLibraries adds all shared libraries that a program needs, and the dynamic
// linker. A program without any adds none.
func addLibraries(a *archive, root, program string) error {
	linker, names, err := needs(program)
	if err != nil {
		return err
	}
	if linker == "" {
		return nil
	}
	path, err := find(root, libraryFolder+"/"+filepath.Base(linker))
	if err != nil {
		return fmt.Errorf("%s needs a dynamic linker: %w", program, err)
	}
	if err := addFile(a, strings.TrimPrefix(linker, "/"), path); err != nil {
		return err
	}
	for i := 0; i < len(names); i++ { // names grows
		path, err := find(root, libraryFolder+"/"+names[i])
		if err != nil {
			return fmt.Errorf("%s needs a library: %w", program, err)
		}
		if err := addFile(a, libraryFolder+"/"+names[i], path); err != nil {
			return err
		}
		_, more, err := needs(path)
		if err != nil {
			return err
		}
		for _, name := range more {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return nil
}

// needs returns what a program or library says of itself: its dynamic linker, if
// it names one, and the names of the libraries that it needs.
func needs(path string) (linker string, libraries []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	if section := f.Section(".interp"); section != nil {
		text, err := section.Data()
		if err != nil {
			return "", nil, fmt.Errorf("read %s: %w", path, err)
		}
		linker = strings.TrimRight(string(text), "\x00")
	}
	libraries, err = f.ImportedLibraries()
	if err != nil {
		return "", nil, fmt.Errorf("read %s: %w", path, err)
	}
	return linker, libraries, nil
}
