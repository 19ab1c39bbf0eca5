package store

import (
	"context"

	"tulle/policy/api"
)

// SecretStore passes on what cells need to come to secrets of their own, and learns
// none of them.
type SecretStore interface {
	// PutSecrets stores what the cell offers to others, one for each pair of cells,
	// and notes which offers it has taken up. What is out of date is left out: an offer
	// to a cell that has no lease or another encapsulation key by now, one that is not
	// newer than the stored one, an offer taken up that is not the stored one.
	// ErrConflict where something is not the cell's to say, or no offer.
	PutSecrets(ctx context.Context, cell string, r api.SecretsRequest) error
}
