package sqlstore

import (
	"context"
	"database/sql"
	"encoding/base64"
	"fmt"
	"math"

	"tulle/policy/api"
	"tulle/policy/store"
)

const secretColumns = `low, high, sequence, key_id, low_key, high_key, ciphertext, held`

func scanSecret(row interface{ Scan(...any) error }, s *api.PairSecret) error {
	var text string
	var from, to string
	err := row.Scan(&s.From, &s.To, &s.Sequence, &s.KeyID, &from, &to, &text, &s.Held)
	if err == nil {
		err = s.FromKey.UnmarshalText([]byte(from))
	}
	if err == nil {
		err = s.ToKey.UnmarshalText([]byte(to))
	}
	if err == nil {
		s.Ciphertext, err = base64.StdEncoding.DecodeString(text)
	}
	return err
}

func listSecrets(ctx context.Context, q querier) ([]api.PairSecret, error) {
	return list(ctx, q, func(r *sql.Rows, s *api.PairSecret) error { return scanSecret(r, s) },
		`SELECT `+secretColumns+` FROM pair_secrets ORDER BY low, high`)
}

func (d *db) PutSecrets(ctx context.Context, name string, r api.SecretsRequest) error {
	if err := checkSecrets(name, r); err != nil {
		return err
	}
	_, err := d.write(ctx, "secrets of "+name, func(t *tx) error {
		own, known, err := t.cell(name)
		if err != nil {
			return err
		}
		if !known || !own.live || own.EncapsulationKey == "" {
			return fmt.Errorf("%w: cell %q has no lease with an encapsulation key", store.ErrNotFound, name)
		}
		for _, s := range r.Offers {
			if err := t.offer(s); err != nil {
				return err
			}
		}
		for _, s := range r.Held {
			if err := t.hold(s.From, name, s.Sequence); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

func checkSecrets(name string, r api.SecretsRequest) error {
	if len(r.Offers) > api.MaxSecrets || len(r.Held) > api.MaxSecrets {
		return fmt.Errorf("%w: more than %d secrets at once", store.ErrConflict, api.MaxSecrets)
	}
	for _, s := range r.Offers {
		switch {
		case s.From != name || s.From >= s.To:
			return fmt.Errorf("%w: %s cannot offer a secret from %q to %q: it is the lower name's", store.ErrConflict, name, s.From, s.To)
		case len(s.Ciphertext) != api.CiphertextSize || s.Sequence == 0 || s.Sequence > math.MaxInt64 || s.Held || len(s.KeyID) != 32:
			return fmt.Errorf("%w: what %s offers to %s is no secret", store.ErrConflict, name, s.To)
		}
	}
	for _, s := range r.Held {
		if s.To != "" && s.To != name || s.Sequence > math.MaxInt64 {
			return fmt.Errorf("%w: %s cannot take up what was offered to %q", store.ErrConflict, name, s.To)
		}
	}
	return nil
}

func (t *tx) secret(from, to string) (s api.PairSecret, ok bool, err error) {
	ok, err = found(scanSecret(t.QueryRowContext(t.ctx, `SELECT `+secretColumns+` FROM pair_secrets WHERE low = ? AND high = ?`, from, to), &s))
	return s, ok, err
}

// offer stores an offer that is newer than the stored one, and that the other can
// take up.
func (t *tx) offer(s api.PairSecret) error {
	to, known, err := t.cell(s.To)
	if err != nil || !known || !to.live || to.Kind != api.KindTulle || to.EncapsulationKey.ID() != s.KeyID {
		return err
	}
	old, there, err := t.secret(s.From, s.To)
	if err != nil || there && old.Sequence >= s.Sequence {
		return err
	}
	t.delta.SecretsSet = append(t.delta.SecretsSet, s)
	return t.exec(`INSERT INTO pair_secrets (`+secretColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, 0)
		ON CONFLICT (low, high) DO UPDATE SET sequence = excluded.sequence, key_id = excluded.key_id, low_key = excluded.low_key,
		high_key = excluded.high_key, ciphertext = excluded.ciphertext, held = 0`,
		s.From, s.To, int64(s.Sequence), s.KeyID, s.FromKey.String(), s.ToKey.String(), base64.StdEncoding.EncodeToString(s.Ciphertext))
}

func (t *tx) hold(from, to string, sequence uint64) error {
	s, there, err := t.secret(from, to)
	if err != nil || !there || s.Held || s.Sequence != sequence {
		return err
	}
	s.Held = true
	t.delta.SecretsSet = append(t.delta.SecretsSet, s)
	return t.exec(`UPDATE pair_secrets SET held = 1 WHERE low = ? AND high = ?`, from, to)
}

// dropSecrets takes away what was offered by and to a cell.
func (t *tx) dropSecrets(name string) error {
	return t.exec(`DELETE FROM pair_secrets WHERE low = ? OR high = ?`, name, name)
}
