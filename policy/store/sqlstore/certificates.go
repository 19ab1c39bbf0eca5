package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"tulle/policy/store"
)

func (d *db) Subject(ctx context.Context, cell, container string) (store.Subject, error) {
	s := store.Subject{Container: container}
	err := d.read(ctx, "read endpoint", func(q querier) error {
		var address string
		err := q.QueryRowContext(ctx, `SELECT e.address, e.app, coalesce(s.guid, ''), coalesce(s.org, '')
			FROM endpoints e JOIN apps a ON a.guid = e.app LEFT JOIN spaces s ON s.guid = a.space
			WHERE e.cell = ?1 AND e.container = ?2`, cell, container).Scan(&address, &s.App, &s.SpaceGUID, &s.OrgGUID)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: cell %s has no endpoint %s", store.ErrNotFound, cell, container)
		}
		if err != nil {
			return err
		}
		s.Address, err = netip.ParseAddr(address)
		return err
	})
	return s, err
}
