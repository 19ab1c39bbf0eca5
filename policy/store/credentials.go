package store

import (
	"context"
	"time"

	"tulle/policy/api"
)

// JoinToken lets whoever has it get the credential of one cell, once.
type JoinToken struct {
	Sum      string        `json:"sum"` // of its secret, which is stored nowhere
	Cell     string        `json:"cell"`
	Spaces   []string      `json:"spaces"`   // that the cell may host, as ca.ParseSpace reads them
	Lifetime time.Duration `json:"lifetime"` // of the credential
	Expires  time.Time     `json:"expires"`
	Redeemed time.Time     `json:"-"` // when it was, by the store's clock
}

// CredentialStore keeps what is to be known of cells' credentials besides what
// stands in them: who may still get one, and which are void.
type CredentialStore interface {
	// AddJoinToken stores a token until it expires. ErrConflict.
	AddJoinToken(ctx context.Context, t JoinToken) error
	// RedeemJoinToken takes a token away and gives what it was good for.
	// ErrNotFound when it is unknown, used or expired; that is all one answer.
	RedeemJoinToken(ctx context.Context, sum string) (JoinToken, error)
	// CredentialRenewed records that a cell gets a new credential for its old one, and
	// says when it is to be issued: by the store's clock, as revocations are. ErrRevoked,
	// as from any change that a cell asks for, when the old one is void.
	CredentialRenewed(ctx context.Context, cell string, lifetime time.Duration) (issued time.Time, err error)
	// RevokeCell makes every credential of the cell void that was issued until
	// now, and ends its lease. Its subnet is given to nobody before the lease would
	// have run out: the host may go on using it.
	RevokeCell(ctx context.Context, cell string) (api.Revocation, error)
	// Revocations lists the newest of each cell, by name.
	Revocations(ctx context.Context) ([]api.Revocation, error)
}
