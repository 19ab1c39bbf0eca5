package server

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// maxRequestBody is the largest body of a request for a credential, in bytes.
const maxRequestBody = 32 << 10

// postJoin gives whoever has a join token the credential of the cell that the
// token names, for a key made there. It needs no certificate.
func (in *Internal) postJoin(w http.ResponseWriter, r *http.Request) {
	if err := in.join(w, r); err != nil {
		in.refuse(w, r, ca.Peer{}, err)
	}
}

func (in *Internal) join(w http.ResponseWriter, r *http.Request) error {
	var req api.Join
	if err := readBody(w, r, maxRequestBody, &req); err != nil {
		return err
	}
	if in.issuer == nil {
		return errNoIssuer
	}
	// A request that cannot be signed must not use the token up.
	if _, err := in.issuer.SignCell([]byte(req.Request), "probe", nil, time.Minute); err != nil {
		return badRequest(err.Error())
	}
	ctx := store.WithActor(r.Context(), store.Actor{Who: "join token", From: from(r)})
	token, err := in.store.RedeemJoinToken(ctx, ca.SecretSum(req.Secret))
	if errors.Is(err, store.ErrNotFound) {
		return forbidden("the join token is not known, was used or has expired")
	}
	if err != nil {
		return err
	}
	var spaces []ca.Space
	for _, text := range token.Spaces {
		s, err := ca.ParseSpace(text)
		if err != nil {
			return fmt.Errorf("join token of %s: %w", token.Cell, err)
		}
		spaces = append(spaces, s)
	}
	certificate, err := in.issuer.IssuedAt(token.Redeemed).SignCell([]byte(req.Request), token.Cell, spaces, token.Lifetime)
	if err != nil {
		return fmt.Errorf("sign credential of %s: %w", token.Cell, err)
	}
	in.log.Info("cell joined", "cell", token.Cell, "from", r.RemoteAddr)
	return answerCell(w, api.Joined{Cell: token.Cell, Certificate: string(certificate)})
}

// postCredential gives a cell a new credential of the same name, spaces and
// lifetime for the one that it shows.
func (in *Internal) postCredential(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	var req api.Renewal
	if err := in.readBody(w, r, cell, maxRequestBody, &req); err != nil {
		return err
	}
	if in.issuer == nil {
		return errNoIssuer
	}
	// A request that cannot be signed is none to be recorded.
	if _, err := in.issuer.SignCell([]byte(req.Request), "probe", nil, time.Minute); err != nil {
		return badRequest(err.Error())
	}
	old := r.TLS.PeerCertificates[0]
	lifetime := old.NotAfter.Sub(old.NotBefore.Add(ca.Backdate))
	// Recorded before it is given away. What cannot be recorded is not given.
	issued, err := in.store.CredentialRenewed(r.Context(), cell.Name, lifetime)
	if err != nil {
		return err
	}
	certificate, err := in.issuer.IssuedAt(issued).SignCell([]byte(req.Request), cell.Name, cell.Spaces, lifetime)
	if err != nil {
		return fmt.Errorf("sign credential of %s: %w", cell.Name, err)
	}
	in.log.Info("credential renewed", "cell", cell.Name)
	return answerCell(w, api.Renewed{Certificate: string(certificate)})
}

var errNoIssuer = &httpStatus{code: http.StatusServiceUnavailable, text: "this server issues no credentials"}
