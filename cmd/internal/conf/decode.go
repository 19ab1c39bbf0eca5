package conf

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// loader walks a document and a value side by side and gathers what is wrong.
type loader struct {
	problems []*Problem
	at       map[string]*yaml.Node // where each key's value stands
}

func (l *loader) bad(n *yaml.Node, key, format string, args ...any) {
	l.problems = append(l.problems, &Problem{Line: n.Line, Key: key, Value: show(n), Text: fmt.Sprintf(format, args...)})
}

// show is a scalar as the file has it, short enough for a line of an error.
func show(n *yaml.Node) string {
	const most = 60
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return ""
	}
	s := n.Value
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	if n.ShortTag() == "!!str" {
		return strconv.Quote(s)
	}
	return s
}

// decode reads n into v, then lets v check itself if nothing was wrong with it.
func (l *loader) decode(n *yaml.Node, v reflect.Value, key string) {
	l.at[key] = n
	before := len(l.problems)
	switch {
	case n.Kind == yaml.AliasNode:
		l.bad(n, key, "aliases are not supported, write the value out")
		return
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		l.bad(n, key, "has no value; leave the key out for its default")
		return
	case v.Kind() == reflect.Pointer:
		// A pointer tells "absent" from "zero": it is made only here.
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		l.decode(n, v.Elem(), key)
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		l.decodeText(n, u, key)
	} else {
		switch v.Kind() {
		case reflect.Struct:
			l.decodeStruct(n, v, key)
		case reflect.Map:
			l.decodeMap(n, v, key)
		case reflect.Slice:
			l.decodeSlice(n, v, key)
		default:
			l.decodeScalar(n, v, key)
		}
	}
	if len(l.problems) == before {
		l.validate(n, v, key)
	}
}

func (l *loader) decodeText(n *yaml.Node, u encoding.TextUnmarshaler, key string) {
	if n.Kind != yaml.ScalarNode {
		l.bad(n, key, "must be one value, not a %s", kind(n))
		return
	}
	if err := u.UnmarshalText([]byte(n.Value)); err != nil {
		l.bad(n, key, "%v", err)
	}
}

func (l *loader) decodeStruct(n *yaml.Node, v reflect.Value, key string) {
	fields := make(map[string]reflect.Value)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			panic(fmt.Sprintf("conf: field %s of %s has no yaml tag", f.Name, v.Type()))
		}
		fields[name] = v.Field(i)
	}
	set := make(map[string]bool)
	l.pairs(n, key, func(name string, k, value *yaml.Node) {
		field, known := fields[name]
		if !known {
			l.problems = append(l.problems, &Problem{
				Line: k.Line, Key: join(key, name), Value: show(value), Text: "unknown key" + hint(name, fields),
			})
			return
		}
		set[name] = true
		l.decode(value, field, join(key, name))
	})
	// What the file does not name keeps its default, which must be good as well.
	for name, field := range fields {
		if !set[name] && field.Kind() == reflect.Struct {
			l.validate(n, field, join(key, name))
		}
	}
}

func (l *loader) decodeMap(n *yaml.Node, v reflect.Value, key string) {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		panic(fmt.Sprintf("conf: %s: map keys must be strings", t))
	}
	v.Set(reflect.MakeMap(t))
	l.pairs(n, key, func(name string, _, value *yaml.Node) {
		e := reflect.New(t.Elem()).Elem()
		l.decode(value, e, join(key, name))
		v.SetMapIndex(reflect.ValueOf(name).Convert(t.Key()), e)
	})
}

// pairs calls fn for each key of a mapping, once.
func (l *loader) pairs(n *yaml.Node, key string, fn func(name string, k, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		l.bad(n, key, "must be keys and values, not a %s", kind(n))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge":
			l.bad(k, key, "a key must be a plain word")
		case seen[k.Value]:
			l.bad(k, join(key, k.Value), "stands twice")
		default:
			seen[k.Value] = true
			fn(k.Value, k, value)
		}
	}
}

func (l *loader) decodeSlice(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		l.bad(n, key, "must be a list, not a %s", kind(n))
		return
	}
	// A list replaces its default, it is not added to it.
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		l.decode(e, v.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
}

func (l *loader) decodeScalar(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.ScalarNode {
		l.bad(n, key, "must be one value, not a %s", kind(n))
		return
	}
	tag := n.ShortTag()
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(n.Value)
		if err != nil {
			l.bad(n, key, "must be a duration such as 30s or 168h")
			return
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		// Names such as 123 or 1.0 are read as they are written.
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if tag != "!!bool" || err != nil {
			l.bad(n, key, "must be true or false")
			return
		}
		v.SetBool(b)
	case v.CanInt():
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		if tag != "!!int" || err != nil {
			limit := uint64(1) << (v.Type().Bits() - 1)
			l.bad(n, key, "must be a whole number from -%d to %d", limit, limit-1)
			return
		}
		v.SetInt(i)
	case v.CanUint():
		u, err := strconv.ParseUint(n.Value, 10, v.Type().Bits())
		if tag != "!!int" || err != nil {
			l.bad(n, key, "must be a whole number from 0 to %d", ^uint64(0)>>(64-v.Type().Bits()))
			return
		}
		v.SetUint(u)
	case v.CanFloat():
		f, err := strconv.ParseFloat(n.Value, v.Type().Bits())
		if (tag != "!!int" && tag != "!!float") || err != nil {
			l.bad(n, key, "must be a number")
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("conf: %s: fields of type %s are not supported", key, v.Type()))
	}
}

// validate asks the value itself. Problems that name a key of its own get the
// line and the value that stand there.
func (l *loader) validate(n *yaml.Node, v reflect.Value, key string) {
	checked, ok := v.Addr().Interface().(interface{ Validate() error })
	if !ok {
		return
	}
	err := checked.Validate()
	if err == nil {
		return
	}
	for _, e := range flatten(err) {
		var p *Problem
		if !errors.As(e, &p) {
			l.bad(n, key, "%v", e)
			continue
		}
		found := *p
		found.Key = join(key, p.Key)
		if at := l.at[found.Key]; at != nil {
			found.Line, found.Value = at.Line, show(at)
		}
		l.problems = append(l.problems, &found)
	}
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	}
	return "single value"
}

// hint lists the keys that there are; a slip of the finger is then plain to see.
func hint(name string, fields map[string]reflect.Value) string {
	var all []string
	for k := range fields {
		if strings.EqualFold(k, strings.ReplaceAll(name, "-", "_")) {
			return fmt.Sprintf("; %q is meant?", k)
		}
		all = append(all, k)
	}
	sort.Strings(all)
	return "; there are " + strings.Join(all, ", ")
}
