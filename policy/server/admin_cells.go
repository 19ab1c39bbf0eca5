package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

const (
	pathAdminJoinTokens  = "/v1/join-tokens"          // POST store.JoinToken -> 204
	pathAdminRevocations = "/v1/revocations"          // GET -> []api.Revocation
	pathAdminRevoke      = "/v1/cells/{name}/revoked" // PUT -> api.Revocation
)

func (s *Server) addJoinToken(w http.ResponseWriter, r *http.Request) error {
	var t store.JoinToken
	if err := adminBody(w, r, "join token", &t); err != nil {
		return err
	}
	if err := ca.CheckCellName(t.Cell); err != nil {
		return refuse(http.StatusBadRequest, err.Error(), nil)
	}
	if err := s.store.AddJoinToken(r.Context(), t); err != nil {
		return err
	}
	s.log.Info("join token made", "cell", t.Cell, "expires", t.Expires)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) revokeCell(w http.ResponseWriter, r *http.Request) error {
	name, err := url.PathUnescape(mux.Vars(r)["name"])
	if err != nil {
		return refuse(http.StatusBadRequest, "name: "+err.Error(), nil)
	}
	if err := ca.CheckCellName(name); err != nil {
		return refuse(http.StatusBadRequest, err.Error(), nil)
	}
	revoked, err := s.store.RevokeCell(r.Context(), name)
	if err != nil {
		return err
	}
	s.log.Warn("cell revoked", "cell", name)
	return answerJSON(w, revoked)
}

func (s *Server) revocations(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Revocations(r.Context())
	if err != nil {
		return err
	}
	return answerJSON(w, list)
}

// AddJoinToken stores a token. ErrNoServer when nobody listens.
func (c *AdminClient) AddJoinToken(ctx context.Context, t store.JoinToken) error {
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, pathAdminJoinTokens, bytes.NewReader(body), nil)
}

// RevokeCell makes the cell's credentials void. ErrNoServer when nobody listens.
func (c *AdminClient) RevokeCell(ctx context.Context, name string) (r api.Revocation, err error) {
	err = c.call(ctx, http.MethodPut, "/v1/cells/"+url.PathEscape(name)+"/revoked", nil, func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&r)
	})
	return r, err
}

// Revocations lists them. ErrNoServer when nobody listens.
func (c *AdminClient) Revocations(ctx context.Context) (list []api.Revocation, err error) {
	err = c.call(ctx, http.MethodGet, pathAdminRevocations, nil, func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&list)
	})
	return list, err
}
