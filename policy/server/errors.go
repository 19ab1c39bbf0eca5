package server

import (
	"errors"
	"log/slog"
	"net/http"

	"tulle/policy/api"
	"tulle/policy/store"
)

// refusal is an answer that is no success: what the client reads and, for the
// log alone, why.
type refusal struct {
	status int
	text   string
	cause  error
}

func (r *refusal) Error() string {
	if r.cause == nil {
		return r.text
	}
	return r.text + ": " + r.cause.Error()
}

func (r *refusal) Unwrap() error { return r.cause }

func refuse(status int, text string, cause error) error { return &refusal{status, text, cause} }

// asRefusal gives an error its status and text. The handlers of the networking
// API name both, since the original has a text for each place; everywhere else
// the store's errors speak for themselves.
func asRefusal(err error) *refusal {
	var r *refusal
	switch {
	case errors.As(err, &r):
		if r.status == http.StatusInternalServerError && unavailable(r.cause) {
			return &refusal{http.StatusServiceUnavailable, r.text, r.cause}
		}
		return r
	case errors.Is(err, store.ErrNotFound):
		return &refusal{http.StatusNotFound, err.Error(), nil}
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNoLease), errors.Is(err, store.ErrTagsExhausted):
		return &refusal{http.StatusConflict, err.Error(), nil}
	}
	for _, why := range []error{store.ErrAway, store.ErrFull, store.ErrCorrupt} {
		if errors.Is(err, why) {
			return &refusal{http.StatusServiceUnavailable, why.Error(), err}
		}
	}
	return &refusal{http.StatusInternalServerError, "internal error", err}
}

// writeError is the one place where an error becomes an answer.
func writeError(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	refused := asRefusal(err)
	if refused.status >= http.StatusInternalServerError && r.Context().Err() == nil {
		log.Error("request", "method", r.Method, "path", r.URL.Path, "status", refused.status,
			"request_id", w.Header().Get(headerRequestID), "error", err)
	}
	if refused.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(refused.status)
	_ = write(w, api.ErrorBody(refused.text))
}
