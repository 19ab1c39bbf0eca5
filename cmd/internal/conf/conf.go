// Package conf reads a program's configuration: strict YAML into a typed struct
// that holds the defaults.
//
// A program calls it once, at start, before it touches anything. Whatever is
// wrong with the file is told at once: every unknown key, wrong type and bad
// value, each with its line, its key and what stands there, so that an operator
// mends the file in one go. Nothing is guessed: a key without a value, a key
// that stands twice, an alias, a second document are errors.
//
// A field is named by its yaml tag. Fields may be strings, booleans, integers,
// floats, time.Duration ("30s"), anything with UnmarshalText (netip.Addr,
// netip.Prefix, netip.AddrPort, slog.Level, policy ids), structs, pointers,
// slices and string-keyed maps of these. A value with Validate() error, by value or pointer,
// is checked after it was read; a struct's Validate may name keys with Bad.
package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	Line  int    // 0: not at one place of the file
	Key   string // dotted, with list positions: "allow[1].uid"
	Value string // what stands there, shortened; "" where that is no scalar
	Text  string // what is wrong with it
}

// Error reads "line 4: port: 70000: must be a whole number from 0 to 65535".
func (p *Problem) Error() string {
	var b bytes.Buffer
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	if p.Value != "" {
		b.WriteString(p.Value + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Bad is what a struct's Validate returns for a key of its own: the loader adds
// line and value. Several are joined with errors.Join.
func Bad(key, format string, args ...any) error {
	return &Problem{Key: key, Text: fmt.Sprintf(format, args...)}
}

// Load reads the file at path into the struct that into points to, which holds
// the defaults. Keys that the file does not name keep them. With an error, which
// names the file and joins one *Problem for each thing that is wrong, into is
// left half filled and must not be used.
func Load(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := Parse(text, into); err != nil {
		return fmt.Errorf("configuration %s:\n%w", path, err)
	}
	return nil
}

// Parse is Load for a text in memory. An empty text is the defaults, validated.
func Parse(text []byte, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("conf: %T is not a pointer to a struct", into))
	}
	root, err := document(text)
	if err != nil {
		return err
	}
	l := loader{at: make(map[string]*yaml.Node)}
	l.decode(root, v.Elem(), "")
	slices.SortStableFunc(l.problems, func(a, b *Problem) int { return a.Line - b.Line })
	errs := make([]error, len(l.problems))
	for i, p := range l.problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// document is the mapping of a text that holds one document or none.
func document(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	empty := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return empty, nil
	case err != nil:
		return nil, &Problem{Text: err.Error()}
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, &Problem{Line: second.Line, Text: "a second document begins here, one is allowed"}
	} else if !errors.Is(err, io.EOF) {
		return nil, &Problem{Text: err.Error()}
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return empty, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, &Problem{Line: root.Line, Value: show(root), Text: "must be keys and values"}
	}
	return root, nil
}
