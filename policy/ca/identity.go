package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	uriScheme  = "tulle"
	spacesHost = "spaces"
	issuedHost = "issued" // microseconds since 1970, for revocations
)

// maxNameLen bounds a cell's name; it travels in every endpoint and every path.
const maxNameLen = 128

// Space is one entry of what a cell may host.
type Space struct {
	Any        bool
	Org, Space string // by names, both set
	GUID       string // or by the space's GUID
}

// AnySpace lets a cell host every application.
var AnySpace = Space{Any: true}

// ParseSpace reads "*", "ORG/SPACE" or a space GUID, as the command line gives it.
func ParseSpace(s string) (Space, error) {
	if s == "*" {
		return AnySpace, nil
	}
	org, space, named := strings.Cut(s, "/")
	switch {
	case s == "":
		return Space{}, errors.New(`space "": expected *, ORG/SPACE or a space GUID`)
	case !named:
		return Space{GUID: s}, nil
	case org == "" || space == "" || strings.Contains(space, "/"):
		return Space{}, fmt.Errorf("space %q: expected *, ORG/SPACE or a space GUID", s)
	}
	return Space{Org: org, Space: space}, nil
}

// String is the form that ParseSpace reads.
func (s Space) String() string {
	switch {
	case s.Any:
		return "*"
	case s.GUID != "":
		return s.GUID
	}
	return s.Org + "/" + s.Space
}

func (s Space) uri() *url.URL {
	switch {
	case s.Any:
		return &url.URL{Scheme: uriScheme, Host: spacesHost, Path: "/*", RawPath: "/*"}
	case s.GUID != "":
		return uri(spacesHost, s.GUID)
	}
	return uri(spacesHost, s.Org, s.Space)
}

// covers reports whether the entry lets an application of this space in. Empty
// arguments match nothing.
func (s Space) covers(org, space, guid string) bool {
	switch {
	case s.Any:
		return true
	case s.GUID != "":
		return s.GUID == guid
	}
	return s.Org != "" && s.Space != "" && s.Org == org && s.Space == space
}

// Peer is the party that a certificate names.
type Peer struct {
	Role   Role
	Name   string  // the cell's name; "APP/INSTANCE" of an instance
	Spaces []Space // of a cell: what it may host
	Issued time.Time
}

// HostsAny reports whether the cell may host every application.
func (p Peer) HostsAny() bool { return p.MayHost("", "", "") }

// MayHost reports whether the cell may host an application of the space org/space,
// whose GUID is guid ("" if not known).
func (p Peer) MayHost(org, space, guid string) bool {
	for _, s := range p.Spaces {
		if s.covers(org, space, guid) {
			return true
		}
	}
	return false
}

// Identify reads who cert names. It does not verify the certificate; the TLS
// configurations of this package have done that.
func Identify(cert *x509.Certificate) (Peer, error) {
	// Certificates from before there were revocations tell it to the second.
	p := Peer{Issued: cert.NotBefore.Add(Backdate)}
	for _, u := range cert.URIs {
		if u.Scheme == "spiffe" && p.Role == "" {
			app, err := instanceOf(u)
			if err != nil {
				return Peer{}, fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
			}
			p.Role, p.Name = RoleInstance, string(app)+"/"+cert.Subject.CommonName
			continue
		}
		if u.Scheme != uriScheme {
			continue
		}
		parts, err := segments(u)
		if err != nil {
			return Peer{}, fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
		}
		switch host := u.Host; {
		case host == spacesHost && len(parts) == 1 && u.EscapedPath() == "/*":
			p.Spaces = append(p.Spaces, AnySpace)
		case host == spacesHost && len(parts) == 1:
			p.Spaces = append(p.Spaces, Space{GUID: parts[0]})
		case host == spacesHost && len(parts) == 2:
			p.Spaces = append(p.Spaces, Space{Org: parts[0], Space: parts[1]})
		case host == issuedHost && len(parts) == 1:
			micros, err := strconv.ParseInt(parts[0], 10, 64)
			if err != nil {
				return Peer{}, fmt.Errorf("certificate of %q: %s is not understood", cert.Subject.CommonName, u)
			}
			p.Issued = time.UnixMicro(micros)
		case p.Role != "":
			return Peer{}, fmt.Errorf("certificate of %q names more than one party", cert.Subject.CommonName)
		case host == string(RoleCell) && len(parts) == 1:
			p.Role, p.Name = RoleCell, parts[0]
		default:
			return Peer{}, fmt.Errorf("certificate of %q: %s is not understood", cert.Subject.CommonName, u)
		}
	}
	if p.Role == "" {
		return Peer{}, fmt.Errorf("certificate of %q names no cell and no instance", cert.Subject.CommonName)
	}
	return p, nil
}

// CheckCellName refuses names that do not fit into a path, a log line and a
// metric label alike: letters, digits, dot, dash and underscore.
func CheckCellName(name string) error {
	if name == "" || len(name) > maxNameLen {
		return fmt.Errorf("cell name %q: must have 1 to %d characters", name, maxNameLen)
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		default:
			return fmt.Errorf("cell name %q: only letters, digits, dot, dash and underscore", name)
		}
	}
	if strings.Trim(name, ".") == "" {
		return fmt.Errorf("cell name %q: not only dots", name)
	}
	return nil
}

// uri is tulle://host/part/part, each part escaped whole.
func uri[H ~string](host H, parts ...string) *url.URL {
	plain, escaped := "", ""
	for _, part := range parts {
		plain += "/" + part
		escaped += "/" + escapeSegment(part)
	}
	return &url.URL{Scheme: uriScheme, Host: string(host), Path: plain, RawPath: escaped}
}

// escapeSegment escapes one path segment, a literal asterisk too,
// so that a space that is called "*" is not every space.
func escapeSegment(s string) string {
	return strings.ReplaceAll(url.PathEscape(s), "*", "%2A")
}

// segments undoes uri.
func segments(u *url.URL) ([]string, error) {
	path, ok := strings.CutPrefix(u.EscapedPath(), "/")
	if !ok {
		return nil, fmt.Errorf("%s has no path", u)
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		s, err := url.PathUnescape(part)
		if err != nil || s == "" {
			return nil, fmt.Errorf("%s is not understood", u)
		}
		parts[i] = s
	}
	return parts, nil
}
