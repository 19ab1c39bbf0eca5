package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// getSecurityGroups answers with a page of the groups that hold for the spaces.
// The original reads limit, its client sends per_page; both are taken, limit
// before per_page. A parameter that is no number is a 500, as there.
func (in *Internal) getSecurityGroups(w http.ResponseWriter, r *http.Request, _ ca.Peer) error {
	q := r.URL.Query()
	var filter store.GroupFilter
	if q.Has("space_guids") {
		filter.Spaces = strings.Split(q.Get("space_guids"), ",")
	}
	from, err := number(q, "from")
	if err != nil {
		return err
	}
	filter.From = int64(from)
	size := "limit"
	if !q.Has(size) {
		size = "per_page"
	}
	if filter.Limit, err = number(q, size); err != nil {
		return err
	}
	groups, next, err := in.store.SecurityGroups(r.Context(), filter)
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database read failed", cause: err}
	}
	page, err := api.NewGroupsPage(groups, next)
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "map asgs as bytes failed", cause: err}
	}
	return answerCell(w, page)
}

// number is a parameter, 0 where it is not given.
func number(q url.Values, name string) (int, error) {
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil {
		return 0, &httpStatus{code: http.StatusInternalServerError, text: "invalid value for '" + name + "' parameter", cause: err}
	}
	return n, nil
}

// getGroupsUpdated answers with the time of the last change of any group in
// nanoseconds since 1970, a bare number.
func (in *Internal) getGroupsUpdated(w http.ResponseWriter, r *http.Request, _ ca.Peer) error {
	at, err := in.store.SecurityGroupsUpdated(r.Context())
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database read failed", cause: err}
	}
	// The client that is gone cannot be told so.
	w.Write([]byte(strconv.FormatInt(at.UnixNano(), 10)))
	return nil
}
