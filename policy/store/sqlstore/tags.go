package sqlstore

import (
	"context"
	"fmt"

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
