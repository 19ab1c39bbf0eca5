package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Scope is a right at the external API.
type Scope string

// The scopes of the networking API.
const (
	Admin Scope = "network.admin" // everything
	Write Scope = "network.write" // create, delete and list policies
)

// ErrUnknownToken means that the token is nobody's.
var ErrUnknownToken = errors.New("token is not known")

// ErrNoHeader is the text of a 401 for a request without Authorization.
var ErrNoHeader = errors.New("missing authorization header")

// Identity is who a request comes from.
type Identity struct {
	Name    string // for logs and whoami
	Subject string // what a Cloud Controller knows them by; "": it does not
	Scopes  []Scope
	// Spaces limit what the identity may name and see to the apps of these spaces
	// ("ORG/SPACE", or a space's GUID); nil: they do not. It is what a tokens file
	// has in place of a Cloud Controller.
	Spaces []string
}

// Has reports whether the identity has at least one of the scopes.
func (i Identity) Has(any ...Scope) bool {
	return slices.ContainsFunc(any, func(s Scope) bool { return slices.Contains(i.Scopes, s) })
}

// IsAdmin reports whether the identity may do everything.
func (i Identity) IsAdmin() bool { return i.Has(Admin) }

// Require is nil where the identity has one of the allowed scopes; otherwise an
// error whose text is the one of the original's 403.
func (i Identity) Require(allowed ...Scope) error {
	if i.Has(allowed...) {
		return nil
	}
	return fmt.Errorf("provided scopes %v do not include allowed scopes %v", i.Scopes, allowed)
}

// Authenticator tells whose a token is. Safe for concurrent use. It returns
// ErrUnknownToken, possibly wrapped, for a token that is nobody's; any other
// error means that it could not find out.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Identity, error)
}

// Bearer takes the token out of an Authorization header as the original does: a
// leading "Bearer " and then a leading "bearer " go, what is left is the token.
func Bearer(header string) (string, error) {
	if header == "" {
		return "", ErrNoHeader
	}
	return strings.TrimPrefix(strings.TrimPrefix(header, "Bearer "), "bearer "), nil
}

type contextKey struct{}

// NewContext returns ctx carrying the identity of its request.
func NewContext(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, i)
}

// FromContext is the identity that NewContext put there.
func FromContext(ctx context.Context) (Identity, bool) {
	i, ok := ctx.Value(contextKey{}).(Identity)
	return i, ok
}
