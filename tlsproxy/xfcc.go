package tlsproxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
)

// headerXFCC says who calls, as Envoy writes it: key=value pairs, with ";" between.
//
//	By       this container's SPIFFE ID
//	Hash     SHA-256 of the client's certificate, hex
//	Subject  its subject, or without one what the cell knows of the caller
//	URI, DNS of its names
//
// Hash, URI and DNS are there only where a client certificate was verified; without
// one the Subject has the units that the caller's own certificate has, "OU=app:GUID"
// and, where they are known, space and organization.
const headerXFCC = "X-Forwarded-Client-Cert"

// xfcc is the header's value for a connection.
func xfcc(own, client *x509.Certificate, caller Caller) string {
	var b strings.Builder
	pair := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		b.WriteString(key + "=" + quoted(key == "Subject", value))
	}
	if own != nil {
		for _, u := range own.URIs {
			pair("By", u.String())
		}
	}
	if client == nil {
		pair("Subject", caller.subject())
		return b.String()
	}
	sum := sha256.Sum256(client.Raw)
	pair("Hash", hex.EncodeToString(sum[:]))
	pair("Subject", client.Subject.String())
	for _, u := range client.URIs {
		pair("URI", u.String())
	}
	for _, name := range client.DNSNames {
		pair("DNS", name)
	}
	return b.String()
}

// quoted is a value as the header has it: what has separators in it, and a subject
// in any case, in double quotes. What is no visible character is left out, since a
// certificate's names may have a line's end in them.
func quoted(always bool, value string) string {
	value = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, value)
	if !always && !strings.ContainsAny(value, `,;="`) {
		return value
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
}

// subject names a caller as its certificate's subject would.
func (c Caller) subject() string {
	var units []string
	for _, u := range []struct{ kind, guid string }{{"app", c.App}, {"space", c.Space}, {"organization", c.Org}} {
		if u.guid != "" {
			units = append(units, "OU="+u.kind+":"+escapeDN(u.guid))
		}
	}
	return strings.Join(units, ",")
}

// escapeDN escapes what separates the parts of a name (RFC 4514, 2.4).
func escapeDN(value string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `+`, `\+`, `"`, `\"`, `;`, `\;`, `<`, `\<`, `>`, `\>`).Replace(value)
}

// leaf is a certificate's first, parsed.
func leaf(c *tls.Certificate) *x509.Certificate {
	if c == nil || c.Leaf != nil || len(c.Certificate) == 0 {
		if c == nil {
			return nil
		}
		return c.Leaf
	}
	parsed, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil
	}
	return parsed
}
