package server

import (
	"io"
	"net/http"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/store"
)

// Security groups as they are managed; the original has them from the Cloud
// Controller alone.

func (s *Server) securityGroups(w http.ResponseWriter, r *http.Request) error {
	groups, _, err := s.store.SecurityGroups(r.Context(), store.GroupFilter{All: true})
	if err != nil {
		return err
	}
	list := make([]api.SecurityGroup, len(groups))
	for i, g := range groups {
		list[i] = api.NewSecurityGroup(g)
	}
	return answerJSON(w, api.SecurityGroups{SecurityGroups: list})
}

func (s *Server) securityGroup(w http.ResponseWriter, r *http.Request) error {
	g, err := s.store.SecurityGroup(r.Context(), mux.Vars(r)["guid"])
	if err != nil {
		return err
	}
	return answerJSON(w, api.NewSecurityGroup(g))
}

// putSecurityGroup stores a group whole and answers with it.
func (s *Server) putSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return refuse(http.StatusBadRequest, "failed reading request body", err)
	}
	g, err := api.DecodeSecurityGroup(mux.Vars(r)["guid"], body)
	if err != nil {
		return refuse(http.StatusBadRequest, err.Error(), nil)
	}
	if err := s.store.PutSecurityGroup(r.Context(), g); err != nil {
		return err
	}
	identity, _ := auth.FromContext(r.Context())
	s.log.Info("security group stored", "by", identity.Name, "guid", g.GUID, "name", g.Name, "rules", len(g.Rules))
	return answerJSON(w, api.NewSecurityGroup(g))
}

func (s *Server) deleteSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	guid := mux.Vars(r)["guid"]
	if err := s.store.DeleteSecurityGroup(r.Context(), guid); err != nil {
		return err
	}
	identity, _ := auth.FromContext(r.Context())
	s.log.Info("security group deleted", "by", identity.Name, "guid", guid)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
