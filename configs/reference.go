package configs

import (
	"reflect"
	"strings"
)

// Key is one key of the configuration, as manuals have it.
type Key struct {
	Path  string // "machines[].name"
	Value string // what may stand there; empty: other keys
	Doc   string
}

// Reference lists every key, in the order of the types.
func Reference() []Key { return keysOf(nil, reflect.TypeFor[Config](), "") }

func keysOf(keys []Key, t reflect.Type, path string) []Key {
	for i := range t.NumField() {
		f := t.Field(i)
		key := f.Tag.Get("yaml")
		if key == ",inline" {
			keys = append(keys, Key{
				Path: strings.TrimSuffix(path, ".") + ".*",
				Doc:  "every key of `defaults`, for this machine; `hooks` and `keep` replace those of the defaults as a whole",
			})
			continue
		}
		at := path + key
		keys = append(keys, Key{at, kindOf(f.Type), f.Tag.Get("doc")})
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner, at = inner.Elem(), at+"[]"
		}
		if inner.Kind() == reflect.Struct {
			keys = keysOf(keys, inner, at+".")
		}
	}
	return keys
}

func kindOf(t reflect.Type) string {
	switch reflect.New(t).Interface().(type) {
	case *Duration:
		return "duration: 90s, 15m, 26h, 7d, 4w"
	case *Count:
		return "number"
	case *Bytes:
		return "size: 256MiB, 10GB"
	case *Rate:
		return "rate: 20MB/s, unlimited"
	case *Freeze:
		return "off, try, require"
	case *Images:
		return "list, or mapping"
	case *Timetable:
		return "rate, or list"
	case *clock:
		return `time of day: "08:00"`
	case *Days:
		return "days: mon-fri"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list"
	case reflect.Struct:
		return ""
	case reflect.Bool:
		return "true, false"
	default:
		return "word"
	}
}
