package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"tulle/policy/store"
)

// exportStore answers with all that is stored, at one revision.
func (s *Server) exportStore(w http.ResponseWriter, r *http.Request) error {
	b, err := s.store.Export(r.Context())
	if err != nil {
		return err
	}
	s.log.Info("store exported", "revision", b.Revision)
	return answerJSON(w, b)
}

// importStore fills an empty store. The cells that are connected take a new
// snapshot under the new epoch.
func (s *Server) importStore(w http.ResponseWriter, r *http.Request) error {
	// A backup may be as large as it likes: who may open the socket may as well
	// fill the disk.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	b, err := store.ReadBackup(r.Body)
	if err != nil {
		return refuse(http.StatusBadRequest, err.Error(), nil)
	}
	if err := s.store.Import(r.Context(), b); err != nil {
		return err
	}
	s.log.Info("store imported", "epoch", s.store.Epoch(), "of_epoch", b.Epoch, "of_revision", b.Revision)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Export reads the whole store. ErrNoServer when nobody listens.
func (c *AdminClient) Export(ctx context.Context) (b *store.Backup, err error) {
	err = c.call(ctx, http.MethodGet, pathAdminStore, nil, func(body io.Reader) error {
		b, err = store.ReadBackup(body)
		return err
	})
	return b, err
}

// Import fills the empty store of a live server. ErrNoServer when nobody
// listens.
func (c *AdminClient) Import(ctx context.Context, b *store.Backup) error {
	body, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPut, pathAdminStore, bytes.NewReader(body), nil)
}
