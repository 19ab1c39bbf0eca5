package http1

import (
	"bytes"
	"fmt"
	"strings"
)

// Bounds of a request.
const (
	MaxHead   = 64 << 10 // request line and header, or a trailer section
	maxFields = 256
)

// Refusal is why a request is answered with 400 and goes no further.
type Refusal struct{ Why string }

func (r *Refusal) Error() string { return "request refused: " + r.Why }

func refuse(format string, a ...any) error { return &Refusal{fmt.Sprintf(format, a...)} }

// framing is where a request's body ends.
type framing struct {
	length  int64 // bytes; 0: none
	chunked bool
	upgrade bool // a WebSocket is asked for
}

// head checks a request's head, which ends with an empty line, and appends it to
// dst as the app gets it: without what pretends to be the header name, with the
// header itself, and without an upgrade where that is not to be had.
func head(dst, b []byte, name, value string, mayUpgrade bool) ([]byte, framing, error) {
	line, rest, err := cutLine(b)
	if err != nil {
		return nil, framing{}, err
	}
	v11, err := requestLine(line)
	if err != nil {
		return nil, framing{}, err
	}
	var f fields
	for {
		if line, rest, err = cutLine(rest); err != nil {
			return nil, framing{}, err
		}
		if len(line) == 0 {
			break
		}
		if err := f.add(line, canonical(name)); err != nil {
			return nil, framing{}, err
		}
	}
	fr, err := f.framing(v11)
	if err != nil {
		return nil, fr, err
	}
	fr.upgrade = fr.upgrade && mayUpgrade && !fr.chunked && fr.length == 0
	dst = append(dst, b[:bytes.IndexByte(b, '\n')+1]...)
	for _, field := range f.kept {
		if field.name == "upgrade" && !fr.upgrade {
			continue
		}
		dst = append(append(dst, field.line...), "\r\n"...)
	}
	dst = append(append(append(append(dst, name...), ": "...), value...), "\r\n\r\n"...)
	return dst, fr, nil
}

// cutLine takes a line, which ends with CR LF and has neither inside.
func cutLine(b []byte) (line, rest []byte, err error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil, nil, refuse("a line has no end")
	}
	if i == 0 || b[i-1] != '\r' {
		return nil, nil, refuse("a line ends with a bare line feed")
	}
	line = b[:i-1]
	if bytes.IndexByte(line, '\r') >= 0 {
		return nil, nil, refuse("a carriage return inside a line")
	}
	return line, b[i+1:], nil
}

// requestLine is "METHOD target HTTP/1.1" (RFC 9112, 3).
func requestLine(line []byte) (v11 bool, err error) {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok || !ok2 || !isToken(method) || len(target) == 0:
		return false, refuse("no HTTP request line")
	case bytes.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return false, refuse("a space or control character in the request's target")
	case string(version) == "HTTP/2.0" || string(version) == "HTTP/2":
		return false, refuse("HTTP/2 where HTTP/1.1 was agreed on")
	case string(version) != "HTTP/1.1" && string(version) != "HTTP/1.0":
		return false, refuse("neither HTTP/1.1 nor HTTP/1.0")
	case string(method) == "CONNECT":
		return false, refuse("CONNECT would make the connection a tunnel")
	}
	return string(version) == "HTTP/1.1", nil
}

// field is a header line and its name in lower case.
type field struct {
	name string
	line []byte
}

// fields are a head's.
type fields struct {
	kept       []field
	all        int
	hosts      int
	lengths    []string
	codings    []string
	connection []string
	upgrades   []string
}

// add takes a line in, unless it is the forged header's.
func (f *fields) add(line []byte, forged string) error {
	if f.all++; f.all > maxFields {
		return refuse("more than %d header lines", maxFields)
	}
	name, value, err := cutField(line)
	if err != nil {
		return err
	}
	lower, alike := strings.ToLower(name), canonical(name)
	switch alike {
	case forged:
		return nil
	case "content-length", "transfer-encoding":
		// An app behind CGI, WSGI or Rack cannot tell Content_Length from it.
		if lower != alike {
			return refuse("%q is another spelling of %s", name, alike)
		}
	}
	switch lower {
	case "host":
		f.hosts++
	case "content-length":
		f.lengths = append(f.lengths, value)
	case "transfer-encoding":
		f.codings = append(f.codings, value)
	case "upgrade":
		f.upgrades = append(f.upgrades, value)
	case "connection":
		for option := range strings.SplitSeq(value, ",") {
			option = strings.Trim(option, " \t")
			switch canonical(option) {
			case forged, "content-length", "transfer-encoding", "host":
				return refuse("Connection would have the next hop remove %s", option)
			}
			f.connection = append(f.connection, strings.ToLower(option))
		}
	}
	f.kept = append(f.kept, field{lower, line})
	return nil
}

// cutField is "name: value" without folding (RFC 9112, 5).
func cutField(line []byte) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", refuse("a header line is folded, or begins with a space")
	}
	n, v, ok := bytes.Cut(line, []byte(":"))
	switch {
	case !ok:
		return "", "", refuse("a header line has no colon")
	case len(n) > 0 && (n[len(n)-1] == ' ' || n[len(n)-1] == '\t'):
		return "", "", refuse("a space before a header's colon")
	case !isToken(n):
		return "", "", refuse("a header's name is no token")
	}
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", "", refuse("a control character in the value of %s", n)
		}
	}
	return string(n), string(bytes.Trim(v, " \t")), nil
}

// framing says where the body ends; two answers are none (RFC 9112, 6.3).
func (f *fields) framing(v11 bool) (fr framing, err error) {
	switch {
	case v11 && f.hosts != 1:
		return fr, refuse("%d Host headers", f.hosts)
	case f.hosts > 1:
		return fr, refuse("%d Host headers", f.hosts)
	case len(f.codings) > 0 && len(f.lengths) > 0:
		return fr, refuse("both Content-Length and Transfer-Encoding")
	case len(f.lengths) > 1:
		return fr, refuse("%d Content-Length headers", len(f.lengths))
	case len(f.codings) > 1:
		return fr, refuse("%d Transfer-Encoding headers", len(f.codings))
	case len(f.codings) == 1 && !v11:
		return fr, refuse("Transfer-Encoding in HTTP/1.0")
	case len(f.codings) == 1 && !same(f.codings[0], "chunked"):
		return fr, refuse("Transfer-Encoding is not chunked alone")
	}
	fr.chunked = len(f.codings) == 1
	if len(f.lengths) == 1 {
		if fr.length, err = number(f.lengths[0]); err != nil {
			return fr, err
		}
	}
	// No other protocol: in HTTP/2 over clear text, for one, every request would have
	// headers of its own.
	if v11 && len(f.upgrades) == 1 && same(f.upgrades[0], "websocket") {
		for _, option := range f.connection {
			fr.upgrade = fr.upgrade || option == "upgrade"
		}
	}
	return fr, nil
}

// number is a Content-Length: digits alone, of which 18 are no overflow.
func number(s string) (n int64, err error) {
	if s == "" || len(s) > 18 {
		return 0, refuse("Content-Length has %d digits", len(s))
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, refuse("Content-Length is no number")
		}
		n = 10*n + int64(c-'0')
	}
	return n, nil
}

// canonical is a header's name as an app may see it: CGI and its heirs have
// letters and digits alone, and "_" for the rest.
func canonical(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return '-'
	}, name)
}

// same compares a word with one in lower case, as what is behind does: of ASCII alone.
// Unicode has another k, with which it would be "chunked" here and nothing there.
func same(word, lower string) bool { return canonical(word) == lower }

// isToken: RFC 9110, 5.6.2.
func isToken(b []byte) bool {
	for _, c := range b {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return len(b) > 0
}
