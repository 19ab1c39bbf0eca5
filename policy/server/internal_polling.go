package server

import (
	"net/http"
	"strconv"
	"strings"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// The original's polling endpoints. The version in the path is not looked at:
// the shape is always v1.
const (
	pathInternalPolicies    = "/networking/{version}/internal/policies"
	pathInternalLastUpdated = "/networking/{version}/internal/policies_last_updated"
)

// getPolicies answers with the policies, tags included, whose source or
// destination is among the ids; without id with all.
func (in *Internal) getPolicies(w http.ResponseWriter, r *http.Request, _ ca.Peer) error {
	var filter store.Filter
	if q := r.URL.Query(); q.Has("id") {
		filter.IDs = []policy.AppID{}
		for _, id := range strings.Split(q.Get("id"), ",") {
			filter.IDs = append(filter.IDs, policy.AppID(id))
		}
	}
	policies, err := in.store.Policies(r.Context(), filter)
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database read failed", cause: err}
	}
	tags, err := in.store.Tags(r.Context())
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database read failed", cause: err}
	}
	byApp := make(map[policy.AppID]string, len(tags))
	for _, t := range tags {
		byApp[t.App] = t.Tag.String()
	}
	list := api.Policies{}
	for _, p := range api.NewPolicies(policies).Policies {
		p.Source.Tag, p.Destination.Tag = byApp[p.Source.ID], byApp[p.Destination.ID]
		if p.Source.Tag != "" && p.Destination.Tag != "" { // else removed between the two reads
			list.Policies = append(list.Policies, p)
		}
	}
	list.Total = len(list.Policies)
	return answerCell(w, list)
}

// getLastUpdated answers with the time of the last create or delete of policies
// in nanoseconds since 1970, a bare number.
func (in *Internal) getLastUpdated(w http.ResponseWriter, r *http.Request, _ ca.Peer) error {
	at, err := in.store.LastUpdated(r.Context())
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database read failed", cause: err}
	}
	w.Write([]byte(strconv.FormatInt(at.UnixNano(), 10)))
	return nil
}
