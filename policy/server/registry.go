package server

import (
	"net/http"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
)

// What the original does not have: the control plane's view of apps, cells and
// endpoints, as proper application/json.

func (s *Server) apps(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Apps(r.Context())
	if err != nil {
		return err
	}
	guids := make([]policy.AppID, len(list))
	for i, a := range list {
		guids[i] = a.GUID
	}
	see, err := s.visibleTo(r, guids)
	if err != nil {
		return err
	}
	apps := make([]api.App, 0, len(list))
	for _, a := range list {
		if see(a.GUID) {
			apps = append(apps, api.App{GUID: a.GUID, Name: a.Name, Space: a.Space, SpaceGUID: a.SpaceGUID,
				Org: a.Org, OrgGUID: a.OrgGUID, Instances: a.Instances})
		}
	}
	return answerJSON(w, api.Apps{Apps: apps})
}

func (s *Server) cells(w http.ResponseWriter, r *http.Request) error {
	who, _ := auth.FromContext(r.Context())
	if err := unlimited(who, "see the cells"); err != nil {
		return err
	}
	list, err := s.store.Cells(r.Context())
	if err != nil {
		return err
	}
	cells := make([]api.Cell, len(list))
	for i, c := range list {
		status := s.internal.Cell(c.Name)
		cells[i] = api.Cell{Name: c.Name, Kind: c.Kind, Mode: c.Mode, Underlay: c.Underlay, Port: c.Port,
			Subnet: c.Subnet, Key: c.Key, NextKey: c.NextKey, WireGuardPort: c.WireGuardPort, Tunnel: c.Tunnel, Generation: c.Generation, Renewed: c.Renewed, Expires: c.Expires,
			Acknowledged: status.Acknowledged, Alive: status.Live, LastSeen: status.LastSeen}
	}
	return answerJSON(w, api.Cells{Cells: cells})
}

func (s *Server) endpoints(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Endpoints(r.Context())
	if err != nil {
		return err
	}
	guids := make([]policy.AppID, len(list.Endpoints))
	for i, e := range list.Endpoints {
		guids[i] = e.App
	}
	see, err := s.visibleTo(r, guids)
	if err != nil {
		return err
	}
	endpoints := make([]api.Endpoint, 0, len(list.Endpoints))
	for _, e := range list.Endpoints {
		if see(e.App) {
			endpoints = append(endpoints, e)
		}
	}
	return answerJSON(w, api.Endpoints{Endpoints: endpoints, Revision: list.Revision})
}

// visibleTo is visible for the request's caller.
func (s *Server) visibleTo(r *http.Request, apps []policy.AppID) (func(policy.AppID) bool, error) {
	who, _ := auth.FromContext(r.Context())
	see, err := s.visible(r.Context(), who, apps)
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "check access failed", err)
	}
	return see, nil
}

func answerJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return writeMarshalled(w, v)
}
