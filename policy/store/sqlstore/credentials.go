package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"tulle/policy/api"
	"tulle/policy/store"
)

// auditCredential is a credential in the audit record.
type auditCredential struct {
	Spaces  []string  `json:"spaces,omitempty"`
	Expires time.Time `json:"expires"` // of the token, or of the credential
}

func (d *db) AddJoinToken(ctx context.Context, token store.JoinToken) error {
	spaces, err := json.Marshal(token.Spaces)
	if err != nil {
		return err
	}
	_, err = d.write(ctx, "store join token of "+token.Cell, func(t *tx) error {
		if err := t.exec(`DELETE FROM join_tokens WHERE expires <= ?`, t.now.UnixMicro()); err != nil {
			return err
		}
		added, err := t.touch(`INSERT INTO join_tokens (sum, cell, spaces, lifetime, expires) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			token.Sum, token.Cell, string(spaces), int64(token.Lifetime/time.Second), token.Expires.UnixMicro())
		if err == nil && !added {
			err = fmt.Errorf("%w: the token is there already", store.ErrConflict)
		}
		t.audit(api.CellInvite, token.Cell, nil, auditCredential{token.Spaces, token.Expires.UTC()})
		return err
	})
	return err
}

func (d *db) RedeemJoinToken(ctx context.Context, sum string) (token store.JoinToken, err error) {
	_, err = d.write(ctx, "redeem join token", func(t *tx) error {
		token = store.JoinToken{Sum: sum, Redeemed: micros(t.now.UnixMicro())}
		var spaces string
		var seconds, expires int64
		known, err := found(t.QueryRowContext(ctx, `SELECT cell, spaces, lifetime, expires FROM join_tokens WHERE sum = ? AND expires > ?`,
			sum, t.now.UnixMicro()).Scan(&token.Cell, &spaces, &seconds, &expires))
		if err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("%w: the join token is not known, was used or has expired", store.ErrNotFound)
		}
		token.Lifetime, token.Expires = time.Duration(seconds)*time.Second, time.UnixMicro(expires)
		if err := json.Unmarshal([]byte(spaces), &token.Spaces); err != nil {
			return err
		}
		t.audit(api.CellJoin, token.Cell, nil, auditCredential{token.Spaces, t.now.Add(token.Lifetime).UTC()})
		return t.exec(`DELETE FROM join_tokens WHERE sum = ?`, sum)
	})
	return token, err
}

func (d *db) CredentialRenewed(ctx context.Context, cell string, lifetime time.Duration) (issued time.Time, err error) {
	_, err = d.write(ctx, "record the credential of "+cell, func(t *tx) error {
		issued = micros(t.now.UnixMicro())
		t.audit(api.CellRenew, cell, nil, auditCredential{Expires: issued.Add(lifetime)})
		return nil
	})
	return issued, err
}

func (d *db) RevokeCell(ctx context.Context, name string) (r api.Revocation, err error) {
	_, err = d.write(ctx, "revoke "+name, func(t *tx) error {
		r = api.Revocation{Cell: name, At: micros(t.now.UnixMicro())}
		c, known, err := t.cell(name)
		if err != nil {
			return err
		}
		if known && c.Kind != api.KindTulle {
			return fmt.Errorf("%w: %s is a %s peer, which has no credential", store.ErrConflict, name, c.Kind)
		}
		if err := t.exec(`INSERT INTO revocations (cell, at) VALUES (?, ?) ON CONFLICT (cell) DO UPDATE SET at = excluded.at`,
			name, r.At.UnixMicro()); err != nil {
			return err
		}
		// What it may still redeem goes, too.
		invited, err := t.touch(`DELETE FROM join_tokens WHERE cell = ?`, name)
		if err != nil {
			return err
		}
		t.delta.Revoked = append(t.delta.Revoked, r)
		t.audit(api.CellRevoke, name, nil, r)
		r.Unknown = !known && !invited
		if !c.live {
			return nil
		}
		return t.end(c, api.LeaseRelease)
	})
	return r, err
}

// admitted is f where the actor's credential still stands, which only f's own
// transaction can tell: whoever was let in before a revocation and took their time
// would have a lease, or a new credential, after it.
func admitted(by store.Actor, f func(*tx) error) func(*tx) error {
	if by.Cell == "" {
		return f
	}
	return func(t *tx) error {
		var at int64
		revoked, err := found(t.row(&at, `SELECT at FROM revocations WHERE cell = ?`, by.Cell))
		if err != nil {
			return err
		}
		if revoked && !by.Issued.After(micros(at)) {
			return fmt.Errorf("%w on %s", store.ErrRevoked, micros(at).Format(time.DateTime))
		}
		return f(t)
	}
}

func (d *db) Revocations(ctx context.Context) (list []api.Revocation, err error) {
	err = d.read(ctx, "read revocations", func(q querier) error {
		list, err = listRevocations(ctx, q)
		return err
	})
	return list, err
}

func listRevocations(ctx context.Context, q querier) ([]api.Revocation, error) {
	return list(ctx, q, func(r *sql.Rows, v *api.Revocation) error {
		var at int64
		err := r.Scan(&v.Cell, &at)
		v.At = micros(at)
		return err
	}, `SELECT cell, at FROM revocations ORDER BY cell`)
}

// resting lists the subnets of cells other than name whose credentials were
// revoked while they had a lease: as long as that would have lasted, the host may
// go on using it.
func resting(ctx context.Context, q querier, name string, now time.Time) ([]netip.Prefix, error) {
	return list(ctx, q, func(r *sql.Rows, p *netip.Prefix) error {
		var text string
		err := r.Scan(&text)
		if err == nil {
			*p, err = netip.ParsePrefix(text)
		}
		return err
	}, `SELECT subnet FROM cells WHERE live = 0 AND subnet IS NOT NULL AND expires > ? AND name <> ?
		AND name IN (SELECT cell FROM revocations)`, now.UnixMicro(), name)
}
