package server

import (
	"encoding/json"
	"errors"
	"net/http"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// maxTagBody is the largest body of a request for a tag, in bytes.
const maxTagBody = 64 << 10

// putTag answers with the tag of an id, made if there is none. It is how the
// silk-daemon's bootstrap learns the tag of the router. A tag that is made so
// stays, so a cell that may not host every app may not ask either: it speaks for
// its own apps alone, which get their tags by their policies.
func (in *Internal) putTag(w http.ResponseWriter, r *http.Request, client ca.Peer) error {
	if client.Role == ca.RoleCell && !client.HostsAny() {
		return forbidden("cell " + client.Name + " may not ask for tags: it does not host every space")
	}
	body, err := readAll(w, r, maxTagBody)
	if err != nil {
		return &httpStatus{code: http.StatusBadRequest, text: "failed reading request body", cause: err}
	}
	var req api.TagRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return &httpStatus{code: http.StatusBadRequest, text: "failed parsing request body", cause: err}
	}
	tag, err := in.store.Tag(r.Context(), req.ID, req.Type)
	if errors.Is(err, store.ErrTagsExhausted) {
		return &httpStatus{code: http.StatusInternalServerError, text: "database create failed: " + exhaustedText(err)}
	}
	if errors.Is(err, store.ErrRevoked) {
		return err
	}
	if err != nil {
		return &httpStatus{code: http.StatusInternalServerError, text: "database create failed", cause: err}
	}
	return answerCell(w, api.NewTag(tag))
}
