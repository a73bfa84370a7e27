package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder fills values from the nodes of a YAML document. It goes on after a fault, so
// that all are found at once, and it notes where each key stands.
type decoder struct {
	file   string
	faults Faults
	at     map[string]*yaml.Node // by key path: the key's node
}

// compound is a value with a shape of its own.
type compound interface {
	decode(d *decoder, n *yaml.Node, path string)
}

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	d.faults = append(d.faults, Fault{d.file, n.Line, n.Column, path, fmt.Sprintf(format, args...)})
}

// faultAt is fault for a key that was read before; for one that does not stand in the
// file, of what it would stand in.
func (d *decoder) faultAt(path, format string, args ...any) {
	for where := path; ; {
		if n, ok := d.at[where]; ok {
			d.fault(n, path, format, args...)
			return
		}
		cut := strings.LastIndexAny(where, ".[")
		if cut < 0 {
			d.faults = append(d.faults, Fault{File: d.file, Key: path, Text: fmt.Sprintf(format, args...)})
			return
		}
		where = where[:cut]
	}
}

// value fills v, which can be set, from a node.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		d.fault(n, path, "aliases are not read; write it out")
		return
	}
	switch target := v.Addr().Interface().(type) {
	case compound:
		target.decode(d, n, path)
		return
	case scalar:
		d.scalar(n, path, target)
		return
	case *string:
		d.word(n, path, target)
		return
	case *[]string:
		var words []string
		d.list(n, path, func(item *yaml.Node, at string) {
			var w string
			if d.word(item, at, &w) {
				words = append(words, w)
			}
		})
		*target = words
		return
	case *bool:
		if err := n.Decode(target); err != nil || n.Tag != "!!bool" {
			d.fault(n, path, "must be true or false")
		}
		return
	}
	d.structure(n, path, v.Addr().Interface())
}

// structure fills the struct that v points to from a mapping.
func (d *decoder) structure(n *yaml.Node, path string, v any) {
	fields := fieldsOf(reflect.ValueOf(v).Elem())
	d.pairs(n, path, func(key, value *yaml.Node, at string) {
		field, ok := fields.named[key.Value]
		if !ok {
			d.unknown(key, path, fields.names)
			return
		}
		if value.Tag == "!!null" {
			d.fault(key, at, "has no value; give it one, or take the line out")
			return
		}
		d.value(value, at, field)
	})
}

// unknown is a key that does not exist. Secrets get a word of their own.
func (d *decoder) unknown(key *yaml.Node, path string, names []string) {
	name := strings.ToLower(key.Value)
	for _, secret := range []string{"secret", "password", "access_key", "token", "passphrase"} {
		if strings.Contains(name, secret) {
			d.fault(key, path, "a secret does not stand in this file; name a file or a systemd credential that has it (credentials.file, credentials.systemd, metrics.basic_auth.password_file)")
			return
		}
	}
	text := fmt.Sprintf("there is no key %q here", shortened(key.Value))
	if n := near(key.Value, names); n != "" {
		text += fmt.Sprintf("; did you mean %s?", n)
	} else {
		text += "; there are " + strings.Join(names, ", ")
	}
	d.fault(key, path, "%s", text)
}

func (d *decoder) twice(key *yaml.Node, path string) {
	d.fault(key, path, "the key %q stands here twice", shortened(key.Value))
}

func shortened(key string) string {
	const most = 40
	if len(key) > most {
		return strings.ToValidUTF8(key[:most], "") + "..."
	}
	return key
}

// pairs calls f for each key of a mapping.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping of keys to values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			d.fault(key, path, "a key must be a word")
			continue
		}
		if seen[key.Value] {
			d.twice(key, path)
			continue
		}
		seen[key.Value] = true
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		d.at[at] = key
		f(key, value, at)
	}
}

// list calls f for each item of a list.
func (d *decoder) list(n *yaml.Node, path string, f func(item *yaml.Node, at string)) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, path, "must be a list")
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.at[at] = item
		f(item, at)
	}
}

// wordTags are what a word may look like to YAML.
var wordTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!timestamp"}

// word reads one word; false: it is none.
func (d *decoder) word(n *yaml.Node, path string, into *string) bool {
	if n.Kind != yaml.ScalarNode || !slices.Contains(wordTags, n.Tag) || n.Value == "" {
		d.fault(n, path, "must be a word")
		return false
	}
	*into = n.Value
	return true
}

func (d *decoder) scalar(n *yaml.Node, path string, into scalar) bool {
	var text string
	if !d.word(n, path, &text) {
		return false
	}
	if err := into.parse(text); err != nil {
		d.fault(n, path, "%v", err)
		return false
	}
	return true
}

// fields are the keys of a struct, those of inlined ones among them.
type fields struct {
	names []string
	named map[string]reflect.Value
}

func fieldsOf(v reflect.Value) fields {
	f := fields{named: map[string]reflect.Value{}}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name != ",inline" {
			f.names = append(f.names, name)
			f.named[name] = v.Field(i)
			continue
		}
		inner := fieldsOf(v.Field(i))
		f.names = append(f.names, inner.names...)
		for name, field := range inner.named {
			f.named[name] = field
		}
	}
	return f
}
