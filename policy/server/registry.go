package server

import (
	"net/http"

	"tulle/policy/api"
)

// What the original does not have: the control plane's view of apps, cells and
// endpoints, as proper application/json.

func (s *Server) apps(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Apps(r.Context())
	if err != nil {
		return err
	}
	apps := make([]api.App, len(list))
	for i, a := range list {
		apps[i] = api.App{GUID: a.GUID, Name: a.Name, Space: a.Space, SpaceGUID: a.SpaceGUID,
			Org: a.Org, OrgGUID: a.OrgGUID, Instances: a.Instances}
	}
	return answerJSON(w, api.Apps{Apps: apps})
}

func (s *Server) cells(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Cells(r.Context())
	if err != nil {
		return err
	}
	cells := make([]api.Cell, len(list))
	for i, c := range list {
		status := s.internal.Cell(c.Name)
		cells[i] = api.Cell{Name: c.Name, Kind: c.Kind, Mode: c.Mode, Underlay: c.Underlay, Port: c.Port,
			Subnet: c.Subnet, Generation: c.Generation, Renewed: c.Renewed, Expires: c.Expires,
			Acknowledged: status.Acknowledged, Alive: status.Live, LastSeen: status.LastSeen}
	}
	return answerJSON(w, api.Cells{Cells: cells})
}

func (s *Server) endpoints(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Endpoints(r.Context())
	if err != nil {
		return err
	}
	return answerJSON(w, list)
}

func answerJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return writeMarshalled(w, v)
}
