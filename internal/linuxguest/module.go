package linuxguest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are the parts of the kernel that the guest uses. Some kernels
// have some of them built in.
var wantedModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4", "button", "evdev"}

// addModules adds the wanted modules and those that they need, and a list of
// them in the order in which they can be loaded.
func addModules(a *archive, root string) error {
	files, err := findModules(root)
	if err != nil {
		return err
	}
	builtIn, err := find(root, "lib/modules/*/modules.builtin")
	if err != nil {
		return err
	}
	list, err := os.ReadFile(builtIn)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		files[moduleName(strings.TrimSpace(line))] = "" // nothing to load
	}
	var order []string
	for _, name := range wantedModules {
		if order, err = withDependencies(files, order, name); err != nil {
			return err
		}
	}
	var load strings.Builder
	for _, name := range order {
		to := "lib/modules/" + name + ".ko"
		if err := addFile(a, to, files[name]); err != nil {
			return err
		}
		fmt.Fprintf(&load, "/%s\n", to)
	}
	a.add("etc/modules", modeFile, []byte(load.String()))
	return nil
}

// findModules returns the paths of all modules by name.
func findModules(root string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	return files, err
}

// moduleName is the name in the kernel: files have dashes where it has underscores.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// withDependencies appends a module to order, after those that it needs.
func withDependencies(files map[string]string, order []string, name string) ([]string, error) {
	path, ok := files[name]
	if !ok {
		return nil, fmt.Errorf("the kernel has no module %s, or scripts/guest leaves it out", name)
	}
	if path == "" || slices.Contains(order, name) {
		return order, nil
	}
	needed, err := dependencies(path)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	for _, n := range needed {
		if order, err = withDependencies(files, order, n); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	return append(order, name), nil
}

// dependencies are the names after "depends=" in the section .modinfo, which
// holds strings that end in a zero byte.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(text), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
