package server

import (
	"errors"
	"fmt"
	"net/http"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// maxCertificateBody holds a request for an RSA key of 8192 bits many times over.
const maxCertificateBody = 32 << 10

// postCertificate signs for an endpoint that this very cell has registered. What
// the certificate says is the server's word, from the store; the cell brings a key.
func (in *Internal) postCertificate(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	if in.instances == nil {
		return &httpStatus{code: http.StatusNotImplemented, text: "this server signs no certificates of containers"}
	}
	var req api.CertificateRequest
	if err := in.readBody(w, r, cell, maxCertificateBody, &req); err != nil {
		return err
	}
	of, err := in.store.Subject(r.Context(), cell.Name, req.Container)
	if err != nil {
		return err
	}
	routes, err := in.store.Routes(r.Context(), store.RouteFilter{App: of.App})
	if err != nil {
		return err
	}
	var names []string
	for _, route := range routes {
		names = append(names, string(route.Name))
	}
	signed, err := in.instances.SignInstance(ca.Instance{Container: of.Container, Address: of.Address, Names: names,
		App: of.App, Space: of.SpaceGUID, Org: of.OrgGUID}, in.trustDomain, []byte(req.Request), in.instanceLifetime)
	if errors.Is(err, ca.ErrRequest) {
		return badRequest(err.Error())
	}
	if err != nil {
		return fmt.Errorf("certificate of %s on %s: %w", of.Container, cell.Name, err)
	}
	leaf, err := (&ca.Credential{CertPEM: signed}).Certificate()
	if err != nil {
		return fmt.Errorf("certificate of %s on %s: %w", of.Container, cell.Name, err)
	}
	in.hub.Seen(cell.Name)
	// NotBefore is an hour before the signature (ca).
	return answerCell(w, api.Certificate{Certificate: string(signed), Trust: string(in.instances.TrustPEM()), NotAfter: leaf.NotAfter,
		Seconds: int64(leaf.NotAfter.Sub(leaf.NotBefore.Add(ca.Backdate)).Seconds())})
}

func (in *Internal) getTrust(w http.ResponseWriter, _ *http.Request, _ ca.Peer) error {
	if in.instances == nil {
		return answerCell(w, api.Trust{})
	}
	return answerCell(w, api.Trust{Trust: string(in.instances.TrustPEM())})
}
