package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// JoinName is the TLS server name under which the internal API lets in who has no
// certificate yet: such a connection may redeem a join token and nothing else. All
// other names ask for a cell's certificate in the handshake.
const JoinName = "join.tulle.internal"

// JoinToken is what an operator hands to a new cell: a secret that is good once,
// and the sum of the root by which the cell knows the server.
type JoinToken struct {
	Secret [24]byte
	Root   [sha256.Size]byte
}

const joinPrefix = "tulle-join-"

// NewJoinToken draws a token for a server under the root.
func NewJoinToken(server *Authority) JoinToken {
	t := JoinToken{Root: sha256.Sum256(server.cert.Raw)}
	rand.Read(t.Secret[:])
	return t
}

// String is the token as it is handed over.
func (t JoinToken) String() string {
	return joinPrefix + base64.RawURLEncoding.EncodeToString(append(t.Secret[:], t.Root[:]...))
}

// ParseJoinToken reads what String wrote.
func ParseJoinToken(text string) (t JoinToken, err error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), joinPrefix)
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if !ok || err != nil || len(raw) != len(t.Secret)+len(t.Root) {
		return JoinToken{}, errors.New("this is no join token: tulle-policy-server join-token makes one, which begins with " + joinPrefix)
	}
	copy(t.Secret[:], raw)
	copy(t.Root[:], raw[len(t.Secret):])
	return t, nil
}

// SecretText is the secret as it is sent.
func (t JoinToken) SecretText() string { return base64.RawURLEncoding.EncodeToString(t.Secret[:]) }

// SecretSum is what a server keeps of a secret.
func SecretSum(secretText string) string {
	sum := sha256.Sum256([]byte(secretText))
	return hex.EncodeToString(sum[:])
}

// WithJoin lets connections to JoinName in without a client certificate. Such a
// connection is shown the server's root as well.
func WithJoin(conf *tls.Config, server *Authority) *tls.Config {
	own := conf.GetCertificate
	join := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true, // they are for those who showed a certificate
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			leaf, err := own(h)
			if err != nil {
				return nil, err
			}
			chain := *leaf
			chain.Certificate = append(append([][]byte(nil), leaf.Certificate...), server.cert.Raw)
			return &chain, nil
		},
	}
	conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if h.ServerName == JoinName {
			return join, nil
		}
		return nil, nil
	}
	return conf
}

// JoinTLS configures the client that redeems the token at the server host: it
// goes by the root whose sum stands in the token, and keeps it for its credential.
// Root is set once a handshake has succeeded.
func JoinTLS(t JoinToken, host string) (conf *tls.Config, root func() []byte) {
	var found []byte
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: JoinName,
		NextProtos: []string{"http/1.1"},
		// The checks below are made in its place.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if sha256.Sum256(c.Raw) != t.Root {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
					return err
				}
				found = encodeCert(c.Raw)
				return nil
			}
			return errors.New("the server is not the one that the join token was made for")
		},
	}, func() []byte { return found }
}

// NewRequest makes a key and the request for its certificate, both in PEM.
func NewRequest() (key, request []byte, err error) {
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, made)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	key, err = encodeKey(made)
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), err
}

// ErrRequest: the certificate request is none, or its key is too weak.
var ErrRequest = errors.New("certificate request")

// requestedKey is the key of a request, which must be signed with it.
func requestedKey(request []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: no PEM block CERTIFICATE REQUEST", ErrRequest)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	switch k := r.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%w: the key must be ECDSA, Ed25519, or RSA of 2048 bits or more", ErrRequest)
}
