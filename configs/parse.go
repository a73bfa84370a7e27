package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// fileBytesMax bounds a configuration file.
const fileBytesMax = 4 << 20

// Load reads a file. Every fault is in the error, which is a Faults; one that cannot be
// read is an error of the file system.
func Load(path string, checks Checks) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		return nil, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	return Parse(text, path, checks)
}

// Parse reads the text of a file. The machines have the defaults where they do not say
// otherwise.
func Parse(text []byte, file string, checks Checks) (*Config, error) {
	d := &decoder{file: file, at: map[string]*yaml.Node{}}
	root, fault := document(text)
	if fault != nil {
		fault.File = file
		return nil, Faults{*fault}
	}
	c := start()
	if root != nil {
		d.config(root, c)
	}
	d.check(c, checks)
	if err := d.faults.sorted(); err != nil {
		return nil, err
	}
	return c, nil
}

// document parses the YAML of a file, which is one document; nil: an empty one.
func document(text []byte) (*yaml.Node, *Fault) {
	switch {
	case len(text) > fileBytesMax:
		return nil, &Fault{Text: fmt.Sprintf("is larger than %s", Bytes(fileBytesMax))}
	case !utf8.Valid(text):
		line := 1 + bytes.Count(text[:firstInvalid(text)], []byte("\n"))
		return nil, &Fault{Line: line, Column: 1, Text: "is not UTF-8"}
	}
	parser := yaml.NewDecoder(bytes.NewReader(text))
	var root, more yaml.Node
	err := parser.Decode(&root)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, syntaxFault(err)
	}
	if err := parser.Decode(&more); err == nil {
		return nil, &Fault{Line: more.Line, Column: 1, Text: "a second document begins; a configuration is one"}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxFault(err)
	}
	if root.Content[0].Tag == "!!null" {
		return nil, nil // comments only
	}
	return root.Content[0], nil
}

func firstInvalid(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(text)
}

// What the YAML library says of bad syntax; it repeats nothing of the file.
var (
	lineOfError = regexp.MustCompile(`^yaml: line ([0-9]+): (.*)$`)
	textOfError = regexp.MustCompile(`^yaml: (.*)$`)
)

func syntaxFault(err error) *Fault {
	if m := lineOfError.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		return &Fault{Line: line, Column: 1, Text: "not YAML: " + m[2]}
	}
	if m := textOfError.FindStringSubmatch(err.Error()); m != nil {
		return &Fault{Text: "not YAML: " + m[1]}
	}
	return &Fault{Text: "not YAML"}
}

// config fills c. The defaults are read before the machines, wherever they stand.
func (d *decoder) config(root *yaml.Node, c *Config) {
	var machines *yaml.Node
	rest := *root
	rest.Content = nil
	if root.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if key := root.Content[i]; key.Value == "machines" && root.Content[i+1].Tag != "!!null" {
				if machines != nil {
					d.twice(key, "")
				}
				machines = root.Content[i+1]
				d.at["machines"] = key
				continue
			}
			rest.Content = append(rest.Content, root.Content[i:i+2]...)
		}
	} else {
		rest.Content = root.Content
	}
	d.structure(&rest, "", c)
	if machines == nil {
		return
	}
	d.list(machines, "machines", func(item *yaml.Node, at string) {
		m := Machine{Settings: c.Defaults}
		// Who says his own hooks, or what he keeps, does not get others added to them.
		if has(item, "hooks") {
			m.Hooks = Hooks{}
		}
		if has(item, "keep") {
			m.Keep = Keep{}
		}
		d.structure(item, at, &m)
		c.Machines = append(c.Machines, m)
	})
}

func has(mapping *yaml.Node, key string) bool {
	for i := 0; i+1 < len(mapping.Content) && mapping.Kind == yaml.MappingNode; i += 2 {
		if mapping.Content[i].Value == key {
			return true
		}
	}
	return false
}
