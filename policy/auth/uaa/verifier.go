package uaa

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"tulle/policy/auth"
)

// maxToken is the longest token that is looked at, in bytes.
const maxToken = 64 << 10

// Verifier is an Authenticator by the keys that a UAA publishes. A token must be
// signed by one of them, with that key's own algorithm; be of the issuer; name
// one of the audiences; and not have expired. Tokens that only the UAA can judge
// are the Client's to check: opaque ones, and those marked revocable.
type Verifier struct {
	client *Client
	keys   keyring
	parser *jwt.Parser
}

var _ auth.Authenticator = (*Verifier)(nil)

// NewVerifier makes a verifier over a client. issuer is the tokens' "iss", such
// as https://uaa.example.com/oauth/token; audiences are the "aud" values of
// which a token must have one. Neither may be empty.
func NewVerifier(c *Client, issuer string, audiences []string) (*Verifier, error) {
	if issuer == "" || len(audiences) == 0 {
		return nil, errors.New("checking tokens by keys needs the issuer and an audience")
	}
	v := &Verifier{client: c, parser: jwt.NewParser(
		jwt.WithValidMethods(algorithms), jwt.WithIssuer(issuer), jwt.WithAudience(audiences...),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(c.options.Now), jwt.WithStrictDecoding(),
	)}
	v.keys.client = c
	return v, nil
}

// claims is what a token says.
type claims struct {
	jwt.RegisteredClaims
	UserName  string       `json:"user_name"`
	Scopes    []auth.Scope `json:"scope"`
	Revocable bool         `json:"revocable"`
}

// Authenticate checks the token.
func (v *Verifier) Authenticate(ctx context.Context, token string) (auth.Identity, error) {
	refuse := func(err error) (auth.Identity, error) {
		return auth.Identity{}, fmt.Errorf("%w: %w", auth.ErrUnknownToken, err)
	}
	if len(token) > maxToken {
		return refuse(fmt.Errorf("it is longer than %d bytes", maxToken))
	}
	if !strings.Contains(token, ".") {
		return v.client.Authenticate(ctx, token)
	}
	var c claims
	_, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) { return v.keyOf(ctx, t) })
	switch {
	case errors.Is(err, errNoUAA):
		return auth.Identity{}, err // which says nothing against the token
	case err != nil:
		return refuse(err)
	case strings.HasSuffix(c.ID, "-r"):
		// The UAA signs refresh tokens with the same key; so marks them, and
		// refuses them as access tokens itself.
		return refuse(errors.New("it is a refresh token"))
	case c.Revocable:
		return v.client.Authenticate(ctx, token)
	}
	i, err := subject{c.Subject, c.UserName, c.Scopes}.identity()
	if err != nil {
		return refuse(err)
	}
	return i, nil
}

// keyOf is the published key that the token names. Whatever else a header may
// carry, a key or an address of one, is not looked at.
func (v *Verifier) keyOf(ctx context.Context, t *jwt.Token) (any, error) {
	if _, critical := t.Header["crit"]; critical {
		return nil, errors.New("it has critical extensions, which are not known here") // RFC 7515 4.1.11
	}
	id, ok := t.Header["kid"].(string)
	if !ok || id == "" {
		return nil, errors.New("it names no key")
	}
	k, err := v.keys.key(ctx, id)
	if err != nil {
		return nil, err
	}
	if t.Method.Alg() != k.algorithm {
		return nil, fmt.Errorf("it is signed with %s, key %q is for %s", t.Method.Alg(), id, k.algorithm)
	}
	return k.public, nil
}
