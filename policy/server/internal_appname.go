package server

import (
	"net/http"

	"github.com/gorilla/mux"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
)

// getAppName tells a cell the name of an app whose endpoints it knows anyway.
func (in *Internal) getAppName(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	app := policy.AppID(mux.Vars(r)["guid"])
	if !in.hub.Concerns(cell.Name, app) {
		return &httpStatus{code: http.StatusNotFound, text: "no app of cell " + cell.Name + " has a policy with that app"}
	}
	a, err := in.store.App(r.Context(), app)
	if err != nil {
		return err
	}
	in.hub.Seen(cell.Name)
	return answerCell(w, api.AppName{GUID: a.GUID, Name: a.Name, Space: a.Space, SpaceGUID: a.SpaceGUID, Org: a.Org, OrgGUID: a.OrgGUID})
}
