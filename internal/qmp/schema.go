package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Schema is what a QEMU knows, in its own words: its commands, their arguments, and
// the values these may have. It does not change while QEMU runs.
//
// A path names an argument inside another: members parted by slashes, as in
// "actions/type" of the command transaction. Lists are stepped into, and of a union
// the members of all its branches count.
type Schema struct {
	commands map[string]entity // by name
	types    map[string]entity // by name, which QEMU makes up
}

// entity is one entry of the schema; what is filled depends on the kind.
type entity struct {
	Name        string `json:"name"`
	Kind        string `json:"meta-type"`
	ArgType     string `json:"arg-type"`     // command
	ElementType string `json:"element-type"` // array
	Members     []struct {
		Name string `json:"name"` // object, and enum since QEMU 6.2
		Type string `json:"type"` // object and alternate
	} `json:"members"`
	Variants []struct {
		Type string `json:"type"` // object that is a union
	} `json:"variants"`
	Values []string `json:"values"` // enum
}

// Schema asks QEMU once, and remembers the answer.
func (m *Monitor) Schema(ctx context.Context) (*Schema, error) {
	select {
	case m.schemaTurn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-m.schemaTurn }()
	if m.schema != nil {
		return m.schema, nil
	}
	var raw json.RawMessage
	if err := m.Execute(ctx, schemaCommand, nil, &raw); err != nil {
		return nil, fmt.Errorf("find out what QEMU can do: %w", err)
	}
	s, err := parseSchema(raw)
	if err != nil {
		return nil, fmt.Errorf("find out what QEMU can do: %w", err)
	}
	m.schema = s
	return s, nil
}

func parseSchema(raw []byte) (*Schema, error) {
	var list []entity
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	s := &Schema{commands: map[string]entity{}, types: map[string]entity{}}
	for _, e := range list {
		switch e.Kind {
		case "command":
			s.commands[e.Name] = e
		case "event":
		default:
			s.types[e.Name] = e
		}
	}
	return s, nil
}

// Command tells whether there is a command of this name.
func (s *Schema) Command(name string) bool {
	_, ok := s.commands[name]
	return ok
}

// Argument tells whether a command takes an argument, given by its path.
func (s *Schema) Argument(command, path string) bool {
	return len(s.find(command, path)) > 0
}

// Value tells whether an argument, given by its path, may have a value from an
// enumeration: Value("blockdev-add", "driver", "throttle").
func (s *Schema) Value(command, path, value string) bool {
	for _, e := range s.flatten(s.find(command, path)) {
		if e.Kind != "enum" {
			continue
		}
		if slices.Contains(e.Values, value) {
			return true
		}
		for _, m := range e.Members {
			if m.Name == value {
				return true
			}
		}
	}
	return false
}

// find gives the types that an argument may have.
func (s *Schema) find(command, path string) []string {
	c, ok := s.commands[command]
	if !ok {
		return nil
	}
	types := []string{c.ArgType}
	for name := range strings.SplitSeq(path, "/") {
		var next []string
		for _, e := range s.flatten(types) {
			for _, m := range e.Members {
				if e.Kind == "object" && m.Name == name {
					next = append(next, m.Type)
				}
			}
		}
		types = next
	}
	return types
}

// flatten gives the types themselves and those that they are made of: elements,
// branches and alternatives. Types may contain themselves.
func (s *Schema) flatten(types []string) []entity {
	var out []entity
	seen := map[string]bool{}
	for todo := slices.Clone(types); len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		e, ok := s.types[name]
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		out = append(out, e)
		switch e.Kind {
		case "array":
			todo = append(todo, e.ElementType)
		case "object":
			for _, v := range e.Variants {
				todo = append(todo, v.Type)
			}
		case "alternate":
			for _, m := range e.Members {
				todo = append(todo, m.Type)
			}
		}
	}
	return out
}
