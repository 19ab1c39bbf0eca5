package uaa

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// algorithms are those a token may be signed with: by a key of which the UAA
// publishes one half. With the HS family whoever can check can also sign, so a
// key of that kind is none of ours to use, published or not.
var algorithms = []string{"RS256", "RS384", "RS512"}

// The moduli that are taken, in bits.
const (
	minModulus = 2048
	maxModulus = 16384
)

// key is a published key and the one algorithm that it is for: the token's
// header may not choose.
type key struct {
	algorithm string
	public    *rsa.PublicKey
}

// jwk is an entry of /token_keys (RFC 7517), which the UAA extends by the key's
// PEM text.
type jwk struct {
	ID        string `json:"kid"`
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	N         string `json:"n"`
	E         string `json:"e"`
	Value     string `json:"value"`
}

// parseKeys reads the answer of /token_keys: the keys by their ids and, for each
// entry that is of no use here, why.
func parseKeys(body []byte) (keys map[string]key, unused []error, err error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, nil, fmt.Errorf("uaa's answer to /token_keys: %w", err)
	}
	keys = make(map[string]key)
	for _, j := range set.Keys {
		k, err := j.key()
		if _, twice := keys[j.ID]; err == nil && twice {
			err = errors.New("its id stands twice")
		}
		if err != nil {
			unused = append(unused, fmt.Errorf("key %q: %w", j.ID, err))
			continue
		}
		keys[j.ID] = k
	}
	if len(keys) == 0 {
		return nil, unused, errors.Join(append([]error{errors.New("uaa publishes no key that tokens can be checked by")}, unused...)...)
	}
	return keys, unused, nil
}

func (j jwk) key() (key, error) {
	algorithm := j.Algorithm
	if algorithm == "" {
		algorithm = algorithms[0]
	}
	switch {
	case j.ID == "":
		return key{}, errors.New("it has no id")
	case j.Use != "" && j.Use != "sig":
		return key{}, fmt.Errorf("it is for %q, not for signatures", j.Use)
	case j.Type != "RSA" || !slices.Contains(algorithms, algorithm):
		return key{}, fmt.Errorf("%s keys for %q are not used", j.Type, j.Algorithm)
	}
	public, err := j.public()
	if err != nil {
		return key{}, err
	}
	if bits := public.N.BitLen(); bits < minModulus || bits > maxModulus {
		return key{}, fmt.Errorf("a modulus of %d bits is not taken, %d to %d are", bits, minModulus, maxModulus)
	}
	if public.E < 3 || public.E%2 == 0 {
		return key{}, fmt.Errorf("exponent %d is none", public.E)
	}
	return key{algorithm, public}, nil
}

func (j jwk) public() (*rsa.PublicKey, error) {
	if j.N == "" && j.E == "" {
		block, _ := pem.Decode([]byte(j.Value))
		if block == nil {
			return nil, errors.New("it has neither a modulus nor a PEM value")
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("value: %w", err)
		}
		public, ok := parsed.(*rsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("value is a %T", parsed)
		}
		return public, nil
	}
	n, err := base64.RawURLEncoding.DecodeString(j.N)
	if err != nil {
		return nil, fmt.Errorf("modulus: %w", err)
	}
	e, err := base64.RawURLEncoding.DecodeString(j.E)
	if err != nil {
		return nil, fmt.Errorf("exponent: %w", err)
	}
	exponent := new(big.Int).SetBytes(e)
	if exponent.BitLen() > 31 {
		return nil, fmt.Errorf("an exponent of %d bits is not taken", exponent.BitLen())
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}, nil
}
