package server

import (
	"fmt"
	"net"
	"net/http"
	"strconv"

	"tulle/policy/api"
)

// audit answers with the record of changes, newest first.
func (s *Server) audit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := api.DefaultAuditLimit
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > api.MaxAuditLimit {
			return refuse(http.StatusBadRequest, fmt.Sprintf("limit %q is not a number from 1 to %d", text, api.MaxAuditLimit), nil)
		}
	}
	var before uint64
	if text := q.Get("before"); text != "" {
		var err error
		if before, err = strconv.ParseUint(text, 10, 64); err != nil || before == 0 {
			return refuse(http.StatusBadRequest, fmt.Sprintf("before %q is not an entry's id", text), nil)
		}
	}
	entries, err := s.store.Audit(r.Context(), before, limit+1)
	if err != nil {
		return err
	}
	answer := api.Audit{Entries: entries}
	if len(entries) > limit {
		answer.Entries = entries[:limit]
		answer.Next = entries[limit-1].ID
	}
	return answerJSON(w, answer)
}

// from is the address that a request came from, as its connection has it:
// headers that name another one can be written by anybody.
func from(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
