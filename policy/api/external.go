package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"tulle/policy"
)

// Version is the version of the networking API in a request's path.
type Version string

// The versions served. They differ in the shape of a destination: v0 has one
// port, v1 a range.
const (
	V0 Version = "v0"
	V1 Version = "v1"
)

// Paths of the external networking API. {version} is a Version; any other is
// answered 406 before authentication. PathCleanup and PathWhoami are admin's.
const (
	PathPolicies = "/networking/{version}/external/policies"         // GET -> Policies; POST Policies -> {}
	PathDelete   = "/networking/{version}/external/policies/delete"  // POST Policies -> {}
	PathCleanup  = "/networking/{version}/external/policies/cleanup" // POST -> Policies (always v1)
	PathTags     = "/networking/{version}/external/tags"             // GET -> Tags
	PathWhoami   = "/networking/{version}/external/whoami"           // GET -> Whoami
)

// MaxBody is the largest request body that the external API reads, in bytes.
const MaxBody = 10 << 20

// ParseVersion reads a request's version; its error is the text of the 406.
func ParseVersion(s string) (Version, error) {
	switch v := Version(s); v {
	case V0, V1:
		return v, nil
	}
	return "", fmt.Errorf("api version '%s' not supported", s)
}

// DecodePolicies reads the body of a create or delete and checks it as the
// original does: the first rule that the first bad policy breaks refuses the
// whole request. The error's text is the one the API answers with status 400.
func (v Version) DecodePolicies(body []byte) ([]policy.Policy, error) {
	if v == V0 {
		return decode[policiesV0](body)
	}
	return decode[Policies](body)
}

// EncodePolicies writes a list as the API answers it. A v0 list leaves out
// policies whose start and end port differ, silently, as the original does.
func (v Version) EncodePolicies(ps []policy.Policy) ([]byte, error) {
	if v == V0 {
		return json.Marshal(newPoliciesV0(ps))
	}
	return json.Marshal(NewPolicies(ps))
}

// decode is what both versions share: JSON, then the rules. Unknown fields are
// ignored and anything behind the value is a syntax error.
func decode[T interface {
	Domain() ([]policy.Policy, error)
}](body []byte) ([]policy.Policy, error) {
	var list T
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("mapper: unmarshal json: %w", err)
	}
	ps, err := list.Domain()
	if err != nil {
		return nil, fmt.Errorf("mapper: validate policies: %w", err)
	}
	return ps, nil
}

// TypeApp is an application's type in the tags list.
const TypeApp = "app"

// Tag is one entry of the tags list. Type is TypeApp for applications.
type Tag struct {
	ID   policy.AppID `json:"id"`
	Tag  string       `json:"tag"` // four upper-case hexadecimal digits
	Type string       `json:"type"`
}

// Tags is the answer of GET …/tags, ordered by tag.
type Tags struct {
	Tags []Tag `json:"tags"`
}

// MarshalJSON writes an empty list as [], never null.
func (t Tags) MarshalJSON() ([]byte, error) {
	type plain Tags
	t.Tags = orEmpty(t.Tags)
	return json.Marshal(plain(t))
}

// NewTags is the list in the API's shape.
func NewTags(tags []AppTag) Tags {
	list := make([]Tag, len(tags))
	for i, t := range tags {
		list[i] = NewTag(t)
	}
	return Tags{Tags: list}
}

// NewTag is one tag in the API's shape.
func NewTag(t AppTag) Tag {
	if t.Type == "" {
		t.Type = TypeApp
	}
	return Tag{ID: t.App, Tag: t.Tag.String(), Type: t.Type}
}

// TagRequest asks for the tag of an id at PathInternalTags, or makes it. Keys
// are read in any case: the real client capitalises them.
type TagRequest struct {
	ID   policy.AppID `json:"id"`
	Type string       `json:"type"`
}

// Whoami is the answer of GET …/whoami.
type Whoami struct {
	Subject string `json:"subject"`
}

// ErrorBody is the body of an error answer: {"error": "text"}, with the one
// space behind the colon that the original's formatting puts there. Unlike the
// original the text is escaped, so that the body is JSON whatever it quotes.
func ErrorBody(text string) []byte {
	var b bytes.Buffer
	b.WriteString(`{"error": `)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// A string always encodes, and a bytes.Buffer never fails to take it.
	_ = enc.Encode(text)
	b.Truncate(b.Len() - 1) // the encoder's newline
	b.WriteByte('}')
	return b.Bytes()
}

// ParseError reads an error body's text; ok is false where it is not one.
func ParseError(body []byte) (text string, ok bool) {
	var e struct {
		Error *string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == nil {
		return "", false
	}
	return *e.Error, true
}
