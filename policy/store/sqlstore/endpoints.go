package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

func (d *db) SetEndpoints(ctx context.Context, name string, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	answer := api.EndpointsResponse{Epoch: d.Epoch(), Apps: map[string]policy.AppID{}}
	revision, err := d.write(ctx, "endpoints of "+name, func(t *tx) error {
		clear(answer.Apps)
		answer.Refused = nil
		c, known, err := t.cell(name)
		switch {
		case err != nil:
			return err
		case !known || !c.live || c.Kind != api.KindTulle || c.expires <= t.leaseNow().UnixMicro():
			return fmt.Errorf("%w: cell %q has no lease", store.ErrNotFound, name)
		case r.Generation != c.Generation:
			return fmt.Errorf("%w: generation %d is not that of the lease, %d", store.ErrConflict, r.Generation, c.Generation)
		case r.Sequence > math.MaxInt64:
			return fmt.Errorf("%w: sequence %d is out of range", store.ErrConflict, r.Sequence)
		}
		stored, err := listEndpoints(ctx, t, name)
		if err != nil {
			return err
		}
		old := map[string]api.Endpoint{}
		for _, e := range stored {
			old[e.Container] = e
			answer.Apps[e.Container] = e.App
		}
		if int64(r.Sequence) <= c.sequence {
			return nil
		}
		var now map[string]api.Endpoint
		if now, answer.Refused, err = t.accept(c, r.Endpoints); err != nil {
			return err
		}
		clear(answer.Apps)
		for container, e := range now {
			answer.Apps[container] = e.App
		}
		if err := t.replaceEndpoints(old, now); err != nil {
			return err
		}
		return t.exec(`UPDATE cells SET sequence = ? WHERE name = ?`, int64(r.Sequence), name)
	})
	if err != nil {
		return api.EndpointsResponse{}, err
	}
	answer.Revision = revision
	return answer, nil
}

// accept goes through a cell's list: the endpoints by container, and the reason
// of each that is refused.
func (t *tx) accept(c cell, list []api.EndpointRegistration) (map[string]api.Endpoint, map[string]string, error) {
	accepted := map[string]api.Endpoint{}
	refused := map[string]string{}
	used := map[netip.Addr]string{}
	times := map[string]int{}
	for _, e := range list {
		times[e.Container]++
	}
	for _, e := range list {
		other, twice := used[e.Address]
		switch {
		case e.Container == "":
			refused[e.Container] = "the container has no id"
			continue
		case times[e.Container] > 1: // which of them is meant nobody can say
			refused[e.Container] = "the container is in the list twice"
			continue
		case !lease.Usable(c.Subnet, e.Address):
			refused[e.Container] = fmt.Sprintf("address %s is not a container's in the cell's lease %s", e.Address, c.Subnet)
			continue
		case twice:
			refused[e.Container] = fmt.Sprintf("address %s is container %s's", e.Address, other)
			continue
		case e.Incarnation > math.MaxUint32:
			refused[e.Container] = fmt.Sprintf("incarnation %d is out of range", e.Incarnation)
			continue
		}
		app, why, err := t.register(e.App)
		if err != nil {
			return nil, nil, err
		}
		if why != "" {
			refused[e.Container] = why
			continue
		}
		used[e.Address] = e.Container
		accepted[e.Container] = api.Endpoint{
			Cell: c.Name, Container: e.Container, Address: e.Address, App: app,
			Instance: e.Instance, Generation: c.Generation, Incarnation: e.Incarnation,
		}
	}
	return accepted, refused, nil
}

// replaceEndpoints writes the difference of two lists. An endpoint whose
// address or incarnation changed is another one: the old is removed by its key.
func (t *tx) replaceEndpoints(old, now map[string]api.Endpoint) error {
	for _, container := range slices.Sorted(maps.Keys(old)) {
		before := old[container]
		after, stays := now[container]
		if stays && after == before {
			continue
		}
		if !stays || key(after) != key(before) {
			t.delta.EndpointsRemoved = append(t.delta.EndpointsRemoved, key(before))
		}
		if err := t.exec(`DELETE FROM endpoints WHERE cell = ? AND container = ?`, before.Cell, container); err != nil {
			return err
		}
	}
	// After all deletions: two containers may have swapped their addresses.
	for _, container := range slices.Sorted(maps.Keys(now)) {
		e := now[container]
		if e == old[container] {
			continue
		}
		t.delta.EndpointsSet = append(t.delta.EndpointsSet, e)
		if err := t.putEndpoint(e); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putEndpoint(e api.Endpoint) error {
	return t.exec(`INSERT INTO endpoints (cell, container, address, app, instance, generation, incarnation)
		VALUES (?, ?, ?, ?, ?, ?, ?)`, e.Cell, e.Container, e.Address.String(), e.App, e.Instance, e.Generation, e.Incarnation)
}

// removeEndpoints removes all of a cell's.
func (t *tx) removeEndpoints(name string) error {
	old, err := listEndpoints(t.ctx, t, name)
	if err != nil {
		return err
	}
	for _, e := range old {
		t.delta.EndpointsRemoved = append(t.delta.EndpointsRemoved, key(e))
	}
	return t.exec(`DELETE FROM endpoints WHERE cell = ?`, name)
}

func key(e api.Endpoint) api.EndpointKey {
	return api.EndpointKey{Cell: e.Cell, Container: e.Container, Address: e.Address, Generation: e.Generation, Incarnation: e.Incarnation}
}

func (d *db) Endpoints(ctx context.Context) (es api.Endpoints, err error) {
	err = d.view(ctx, "read endpoints", func(t querier) error {
		if err := t.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&es.Revision); err != nil {
			return err
		}
		es.Endpoints, err = listEndpoints(ctx, t, "")
		return err
	})
	return es, err
}

// listEndpoints lists one cell's endpoints, or with an empty name all.
func listEndpoints(ctx context.Context, q querier, name string) ([]api.Endpoint, error) {
	return list(ctx, q, func(r *sql.Rows, e *api.Endpoint) error {
		var address string
		err := r.Scan(&e.Cell, &e.Container, &address, &e.App, &e.Instance, &e.Generation, &e.Incarnation)
		if err != nil {
			return err
		}
		e.Address, err = netip.ParseAddr(address)
		return err
	}, `SELECT cell, container, address, app, instance, generation, incarnation FROM endpoints
		WHERE ?1 = '' OR cell = ?1 ORDER BY cell, container`, name)
}

func (d *db) Apps(ctx context.Context) ([]store.App, error) {
	var apps []store.App
	err := d.read(ctx, "read apps", func(q querier) (err error) {
		apps, err = list(ctx, q, func(r *sql.Rows, a *store.App) error {
			return r.Scan(&a.GUID, &a.Name, &a.SpaceGUID, &a.Space, &a.OrgGUID, &a.Org, &a.Instances)
		}, `SELECT a.guid, a.name, coalesce(s.guid, ''), coalesce(s.name, ''), coalesce(o.guid, ''), coalesce(o.name, ''),
				(SELECT count(*) FROM endpoints e WHERE e.app = a.guid)
			FROM apps a LEFT JOIN spaces s ON s.guid = a.space LEFT JOIN orgs o ON o.guid = s.org`)
		return err
	})
	// Sorted here: databases order text differently.
	slices.SortFunc(apps, func(a, b store.App) int {
		return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Space, b.Space), cmp.Compare(a.Name, b.Name), cmp.Compare(a.GUID, b.GUID))
	})
	return apps, err
}
