package configs

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// YAML writes what a configuration comes to, with the defaults in each machine. What is
// not set is left out, and user and password of an address are masked.
func (c *Config) YAML() ([]byte, error) { return yaml.Marshal(plain(reflect.ValueOf(*c))) }

// Plain gives the same as values for JSON.
func (c *Config) Plain() any { return plain(reflect.ValueOf(*c)) }

// plain turns a value into maps, lists and words; nil: it is not set.
func plain(v reflect.Value) any {
	if _, period := v.Interface().(Period); v.IsZero() && !period {
		return nil
	}
	switch x := v.Interface().(type) {
	case Count:
		return int64(x)
	case fmt.Stringer:
		return x.String()
	case string:
		return masked(x)
	case bool:
		return x
	}
	switch v.Kind() {
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	case reflect.Struct:
		m := map[string]any{}
		if period, ok := v.Interface().(Period); ok {
			m["rate"] = period.Rate.String() // also where there is no limit
			if period.From != period.To {
				m["from"], m["to"] = period.From.String(), period.To.String() // also midnight
			}
		}
		for name, field := range fieldsOf(v).named {
			if value := plain(field); value != nil {
				m[name] = value
			}
		}
		return m
	default:
		return v.String()
	}
}

// masked hides user and password of an address.
func masked(text string) string {
	prefix := ""
	if rest, ok := strings.CutPrefix(text, "s3:"); ok && !strings.HasPrefix(rest, "//") {
		prefix, text = "s3:", rest
	}
	if u, err := url.Parse(text); err == nil && u.User != nil {
		u.User = url.User("***")
		text = u.String()
	}
	return prefix + text
}
