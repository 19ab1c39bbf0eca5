package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"tulle/policy"
	"tulle/policy/store"
)

func (d *db) App(ctx context.Context, guid policy.AppID) (store.App, error) {
	a := store.App{GUID: guid}
	err := d.read(ctx, "read app", func(q querier) error {
		err := q.QueryRowContext(ctx, `SELECT a.name, coalesce(s.guid, ''), coalesce(s.name, ''), coalesce(o.guid, ''), coalesce(o.name, '')
			FROM apps a LEFT JOIN spaces s ON s.guid = a.space LEFT JOIN orgs o ON o.guid = s.org
			WHERE a.guid = ?1`, string(guid)).Scan(&a.Name, &a.SpaceGUID, &a.Space, &a.OrgGUID, &a.Org)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: no app %s", store.ErrNotFound, guid)
		}
		return err
	})
	return a, err
}

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
