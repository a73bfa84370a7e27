package configs

import (
	"encoding/json"
	"reflect"
)

// Schema is the JSON schema of a configuration file, for editors. It is made of the types.
func Schema() ([]byte, error) {
	s := schemaOf(reflect.TypeFor[Config]())
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "Configuration of qbackup"
	return json.MarshalIndent(s, "", "  ")
}

type object = map[string]any

func schemaOf(t reflect.Type) object {
	switch v := reflect.New(t).Interface().(type) {
	case *Count:
		return object{"type": "integer", "minimum": 0}
	case scalar:
		return object{"type": "string", "pattern": v.pattern()}
	case *Images:
		return object{"anyOf": []object{
			{"type": "array", "items": object{"type": "string"}},
			{"type": "object", "additionalProperties": object{"type": "string"}},
		}}
	case *Timetable:
		return object{"anyOf": []object{
			schemaOf(reflect.TypeFor[Rate]()),
			{"type": "array", "items": schemaOf(reflect.TypeFor[Period]())},
		}}
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Slice:
		return object{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Struct:
		properties := object{}
		addProperties(t, properties)
		return object{"type": "object", "additionalProperties": false, "properties": properties}
	default:
		return object{"type": "string"}
	}
}

func addProperties(t reflect.Type, into object) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Tag.Get("yaml") == ",inline" {
			addProperties(f.Type, into)
			continue
		}
		s := schemaOf(f.Type)
		s["description"] = f.Tag.Get("doc")
		into[f.Tag.Get("yaml")] = s
	}
}
