package server

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/gorilla/mux"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
)

// The registry fills itself as cells register containers. Who wants a policy
// before an app's first container enters the app here.

func (s *Server) registerApp(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return refuse(http.StatusBadRequest, "failed reading request body", err)
	}
	var ref api.AppRef
	if err := json.Unmarshal(body, &ref); err != nil {
		return refuse(http.StatusBadRequest, "request body: "+err.Error(), nil)
	}
	if ref.Name == "" {
		return refuse(http.StatusBadRequest, "name is missing", nil)
	}
	ref.Org, ref.Space = orDefault(ref.Org), orDefault(ref.Space)
	who, _ := auth.FromContext(r.Context())
	switch {
	case who.IsAdmin():
	case s.options.Directory != nil:
		// A Cloud Controller has the apps of the spaces.
		return refuse(http.StatusForbidden, "only an admin may register apps beside those of the Cloud Controller", nil)
	case who.Spaces != nil && ref.GUID != "":
		// Policies may name the GUID already: who claims it would get them.
		return refuse(http.StatusForbidden, "a token that is limited to spaces may not choose a GUID", nil)
	case who.Spaces != nil:
		guid, err := s.spaceGUID(r, ref)
		if err != nil {
			return err
		}
		if !inSpaces(who.Spaces, ref.Org, ref.Space, guid) {
			return refuse(http.StatusForbidden, "the token is not for apps of "+ref.Org+"/"+ref.Space, nil)
		}
	}
	app, err := s.store.RegisterApp(r.Context(), ref)
	if err != nil {
		return err
	}
	s.log.Info("app registered", "by", who.Name, "app", app, "name", ref.Name, "space", ref.Space, "org", ref.Org)
	return answerJSON(w, api.Registered{GUID: app})
}

// spaceGUID is that of the app's space, "" for one that has no app yet.
func (s *Server) spaceGUID(r *http.Request, ref api.AppRef) (string, error) {
	list, err := s.store.Apps(r.Context())
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if a.Org == ref.Org && a.Space == ref.Space {
			return a.SpaceGUID, nil
		}
	}
	return "", nil
}

func (s *Server) removeApp(w http.ResponseWriter, r *http.Request) error {
	app := policy.AppID(mux.Vars(r)["guid"])
	who, _ := auth.FromContext(r.Context())
	// Asked about as a policy of the app with itself.
	if err := s.checkAccess(r.Context(), who, []policy.Policy{{Source: app, Destination: app}}); err != nil {
		return err
	}
	if err := s.store.RemoveApp(r.Context(), app); err != nil {
		return err
	}
	s.log.Info("app removed", "by", who.Name, "app", app)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
