package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Hostname is a name of the internal DNS, or a domain of such names: lower case,
// without the dot at its end. Make one with ParseHostname.
type Hostname string

// DefaultDomain is the internal domain that there is without anybody's doing.
const DefaultDomain Hostname = "apps.internal"

// maxHostname leaves room for "<index>." before the name and for the dot behind
// it within the 253 characters of RFC 1035.
const maxHostname = 240

// ParseHostname reads a name as clients write it, in any case and with or
// without the dot at its end. The characters are those of host names and the
// underscore, which Cloud Foundry's routes may have.
func ParseHostname(s string) (Hostname, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	switch {
	case name == "":
		return "", errors.New("the name is missing")
	case len(name) > maxHostname:
		return "", fmt.Errorf("%.40q…: a name has at most %d characters", s, maxHostname)
	}
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label); err != nil {
			return "", fmt.Errorf("%q: %w", s, err)
		}
	}
	return Hostname(name), nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("two dots have nothing between them")
	case label == "*":
		//lint:ignore ST1005 the original's text
		return errors.New("Wildcard hosts are not supported for internal domains.")
	case len(label) > 63:
		return fmt.Errorf("%q has more than 63 characters", label)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("%q begins or ends with a hyphen", label)
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return fmt.Errorf("%q: only letters, digits, hyphens and underscores may be used", label)
		}
	}
	return nil
}

// ParseDomain reads the name of an internal domain. The root, and the domains in
// which addresses are looked up, cannot be internal.
func ParseDomain(s string) (Hostname, error) {
	d, err := ParseHostname(s)
	if err != nil {
		return "", err
	}
	for _, reserved := range []Hostname{"in-addr.arpa", "ip6.arpa"} {
		if d.In(reserved) || reserved.In(d) {
			return "", fmt.Errorf("%q: addresses are looked up there", s)
		}
	}
	return d, nil
}

// In reports whether the name lies in the domain or is the domain.
func (h Hostname) In(domain Hostname) bool {
	rest, ok := strings.CutSuffix(string(h), string(domain))
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}

// Split cuts the first label off: the host of a route and its domain.
func (h Hostname) Split() (host string, domain Hostname) {
	host, rest, _ := strings.Cut(string(h), ".")
	return host, Hostname(rest)
}

// Instance splits "<index>.<name>", the name of one instance of a route.
func (h Hostname) Instance() (index string, name Hostname, ok bool) {
	index, name = h.Split()
	if _, err := strconv.ParseUint(index, 10, 32); err != nil || name == "" {
		return "", "", false
	}
	return index, name, true
}

// Route is one destination of a name: an app, whose live instances the name
// stands for, or an address that was registered for it. A name may have several
// destinations, and a destination several names. Exactly one of App and Address
// is set. Route is a map key.
type Route struct {
	Name    Hostname   `json:"name"`
	App     AppID      `json:"app,omitempty"`
	Address netip.Addr `json:"address,omitzero"`
}

// String reads like a sentence: "web.apps.internal -> web".
func (r Route) String() string {
	if r.App != "" {
		return string(r.Name) + " -> " + string(r.App)
	}
	return string(r.Name) + " -> " + r.Address.String()
}

// Validate checks a route that came from outside.
func (r Route) Validate() error {
	name, err := ParseHostname(string(r.Name))
	switch {
	case err != nil:
		return err
	case name != r.Name:
		return fmt.Errorf("name %q: is not written as %q", r.Name, name)
	case (r.App == "") == !r.Address.IsValid():
		return fmt.Errorf("route %s: needs an app or an address, and not both", r.Name)
	case r.Address.Zone() != "":
		return fmt.Errorf("route %s: address %s has a zone", r.Name, r.Address)
	case r.App != "":
		if _, domain := r.Name.Split(); domain == "" {
			return fmt.Errorf("route %s: lies in no domain", r.Name)
		}
	}
	return nil
}
