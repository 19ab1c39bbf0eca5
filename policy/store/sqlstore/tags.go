package sqlstore

import (
	"context"
	"fmt"
	"math"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

func (d *db) Tag(ctx context.Context, id policy.AppID, kind string) (api.AppTag, error) {
	a := api.AppTag{App: id, Type: kind}
	if kind == api.TypeApp {
		a.Type = ""
	}
	_, err := d.write(ctx, "tag of "+string(id), func(t *tx) (err error) {
		if a.Type != "" {
			// An app that has no tag yet is of type app all the same: nobody may
			// take its name, and with it its policies, by asking first.
			var app bool
			if err := t.row(&app, `SELECT EXISTS (SELECT 1 FROM apps WHERE guid = ?)`, id); err != nil {
				return err
			}
			if app {
				return typeConflict(id, api.TypeApp, a.Type)
			}
		}
		given := len(t.delta.TagsSet)
		if a.Tag, err = t.assignTag(a, 1); err == nil && len(t.delta.TagsSet) > given {
			t.audit(api.TagGive, string(a.App), nil, api.NewTag(a))
		}
		return err
	})
	if err != nil {
		return api.AppTag{}, err
	}
	return a, nil
}

// tagOf is the tag that a's id has already, or NoTag. An id is unique across
// types.
func (t *tx) tagOf(a api.AppTag) (policy.Tag, error) {
	var tag policy.Tag
	has, err := found(t.row(&tag, `SELECT tag FROM tags WHERE app = ?`, a.App))
	if !has || err != nil {
		return policy.NoTag, err
	}
	var kind string
	if err := t.row(&kind, `SELECT type FROM tags WHERE tag = ?`, tag); err != nil {
		return policy.NoTag, err
	}
	if asked := tagType(a.Type); asked != kind {
		return policy.NoTag, typeConflict(a.App, kind, asked)
	}
	return tag, nil
}

func typeConflict(id policy.AppID, is, asked string) error {
	return fmt.Errorf("%w: %s is of type %s, not %s", store.ErrConflict, id, is, asked)
}

// tagType is the type as it is stored.
func tagType(kind string) string {
	if kind == "" {
		return api.TypeApp
	}
	return kind
}

func (d *db) RestTags(acknowledged func() api.Revision) { d.acknowledged.Store(&acknowledged) }

// rested is the last revision whose releases are in force everywhere; -1 while
// nobody can tell.
func (d *db) rested() int64 {
	f := d.acknowledged.Load()
	if f == nil {
		return -1
	}
	return int64(min((*f)(), math.MaxInt64))
}

// exhausted names the limit, and what stands in the way.
func (t *tx) exhausted() error {
	var used, resting int
	if err := t.QueryRowContext(t.ctx, `SELECT (SELECT count(*) FROM tags WHERE app IS NOT NULL), (SELECT count(*) FROM tags WHERE app IS NULL)`).
		Scan(&used, &resting); err != nil {
		return err
	}
	return fmt.Errorf("%w: of the %d that a VXLAN group policy id can be, %d are in use and %d rest until every cell knows of their release",
		store.ErrTagsExhausted, t.db.options.MaxTag, used, resting)
}
