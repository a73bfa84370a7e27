package target

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/source/virt"
)

// ErrSpec: what was said of a machine makes no sense.
var ErrSpec = errors.New("usage")

func specf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
}

// Freeze says whether the guest's file systems are frozen for the point in time.
type Freeze string

// The choices.
const (
	FreezeOff     Freeze = "off"
	FreezeTry     Freeze = "try"     // a point is made without, too
	FreezeRequire Freeze = "require" // no point without
)

// Spec says which machine is meant, and how it is read.
type Spec struct {
	// Name is the machine's; empty: that of its only image or of its domain.
	Name string
	// Images are [NAME=][raw:]IMAGE.
	Images []string
	// Monitor is the QMP socket of the machine's QEMU. With Images too, a machine whose
	// socket nobody answers is read from them.
	Monitor string
	// Domain is the name or UUID of a domain of the libvirt at URI.
	Domain, URI string

	Hold       bool     // keep the machine from starting for the whole run
	AllowDirs  []string // folders in which backing and data files may lie
	ScratchDir string   // empty: in the state directory

	Freeze       Freeze
	FreezeBudget time.Duration
	// Agent is the socket of the guest agent of a machine with a Monitor.
	Agent string

	DryRun bool // nothing is started or written
}

// MachineName is the name of the machine that a Spec names.
func (s *Spec) MachineName() (ident.MachineName, error) {
	if s.Domain != "" && s.Name == "" {
		name, err := virt.MachineName(s.Domain)
		if err != nil {
			return "", specf("%v", err)
		}
		return name, nil
	}
	images, err := parseImages(s.Images)
	if err != nil {
		return "", err
	}
	return machineName(s.Name, images)
}

// ImagePaths are the files of the images that a Spec names.
func (s *Spec) ImagePaths() ([]string, error) {
	images, err := parseImages(s.Images)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(images))
	for i, image := range images {
		paths[i] = filepath.Clean(image.Path)
	}
	return paths, nil
}

func (s *Spec) check() error {
	switch s.Freeze {
	case FreezeOff, FreezeTry, FreezeRequire:
	default:
		return specf("--freeze %s: say off, try or require", s.Freeze)
	}
	switch {
	case s.Domain != "" && (s.Monitor != "" || len(s.Images) > 0):
		return specf("--libvirt knows the disks of the domain itself; name neither images nor a socket")
	case s.Domain == "" && len(s.Images) == 0 && s.Monitor == "":
		return specf("name the machine's images, the QMP socket of its QEMU with --qmp, or its libvirt domain with --libvirt; see qbackup backup --help")
	case s.Monitor != "" && s.Freeze == FreezeRequire && s.Agent == "":
		return specf("--freeze require needs --guest-agent")
	}
	return nil
}

// parseImages reads [NAME=][raw:]IMAGE. A name is asked for where two files are called the same.
func parseImages(args []string) ([]offline.Image, error) {
	var images []offline.Image
	seen := map[string]bool{}
	for _, arg := range args {
		name, path, named := strings.Cut(arg, "=")
		if !named || strings.Contains(name, "/") {
			named, path = false, arg
		}
		var image offline.Image
		image.Path, image.Raw = strings.CutPrefix(path, "raw:")
		if image.Path == "" {
			return nil, specf("%q names no image", arg)
		}
		if image.Name = name; !named {
			image.Name = stem(image.Path)
		}
		if err := ident.CheckDiskName(image.Name); err != nil {
			return nil, specf("%v; give the disk a name: NAME=%s", err, path)
		}
		if seen[image.Name] {
			return nil, specf("two disks are called %s; name them: NAME=IMAGE", image.Name)
		}
		seen[image.Name] = true
		images = append(images, image)
	}
	return images, nil
}

// stem is the name of a file without folder and last ending.
func stem(path string) string {
	base := filepath.Base(path)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

func machineName(name string, images []offline.Image) (ident.MachineName, error) {
	if name == "" {
		switch {
		case len(images) == 0:
			return "", specf("name the machine with --machine")
		case len(images) > 1:
			return "", specf("several images are one machine; name it with --machine")
		}
		name = strings.ToLower(stem(images[0].Path))
	}
	machine, err := ident.ParseMachineName(name)
	if err != nil {
		return "", specf("%v; choose another with --machine", err)
	}
	return machine, nil
}
